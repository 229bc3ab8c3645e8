// Between boxes in memory, four numbers side by side, and SIMD vectors of their coordinates.
#pragma once

#include "vector.h"
// After vector.h, whose functions its templates call.
#include "../math/boxes.h"

namespace sod_ops::simd {
inline namespace CPU_CAPABILITY {

// As many boxes as a vector of the accumulation type has lanes.
template <typename T>
struct BoxLanes {
  using Acc = Accumulator<T>;
  using V = Vectorized<Acc>;
  static constexpr int64_t kSize = V::size();

  // `count` boxes from p on, `step` elements from one to the next; those beyond count are 0.
  static math::Corners<V> load(const T* p, int64_t step, int64_t count = kSize) {
    if (step == 4 && count == kSize) return split(p);
    T packed[4 * kSize] = {};
    for (int64_t i = 0; i < count; ++i) std::copy_n(p + i * step, 4, packed + 4 * i);
    return split(packed);
  }

  // `count` boxes to p, side by side.
  static void store(const math::Corners<V>& corners, T* p, int64_t count = kSize) {
    if (count == kSize) return join(corners, p);
    T packed[4 * kSize];
    join(corners, packed);
    std::copy_n(packed, 4 * count, p);
  }

 private:
  using L = Lanes<T>;

  static math::Corners<V> split(const T* p) {
    V raw[4];
    for (int i = 0; i < 4 / L::kVectors; ++i) {
      const L lanes = L::load(p + i * L::kSize);
      std::copy_n(lanes.v, L::kVectors, raw + i * L::kVectors);
    }
    const auto [x_low, y_low] = at::vec::deinterleave2(raw[0], raw[1]);
    const auto [x_high, y_high] = at::vec::deinterleave2(raw[2], raw[3]);
    const auto [x1, x2] = at::vec::deinterleave2(x_low, x_high);
    const auto [y1, y2] = at::vec::deinterleave2(y_low, y_high);
    return {x1, y1, x2, y2};
  }

  static void join(const math::Corners<V>& c, T* p) {
    const auto [x_low, x_high] = at::vec::interleave2(c.x1, c.x2);
    const auto [y_low, y_high] = at::vec::interleave2(c.y1, c.y2);
    V raw[4];
    std::tie(raw[0], raw[1]) = at::vec::interleave2(x_low, y_low);
    std::tie(raw[2], raw[3]) = at::vec::interleave2(x_high, y_high);
    for (int i = 0; i < 4 / L::kVectors; ++i) {
      L lanes;
      std::copy_n(raw + i * L::kVectors, L::kVectors, lanes.v);
      lanes.store(p + i * L::kSize);
    }
  }
};

}  // namespace CPU_CAPABILITY
}  // namespace sod_ops::simd

// Sums over memory, for the kernels in csrc/simd.
#pragma once

#include "vector.h"

namespace sod_ops::simd {
inline namespace CPU_CAPABILITY {

// The sum of a[i] (kProduct: of a[i] * b[i]) over n elements. Four accumulators run side by side; every 64 registers
// they are added to a total, so that the rounding error grows with n / 64 and not with n.
template <typename T, bool kProduct>
inline Accumulator<T> sum_run(const T* a, const T* b, int64_t n) {
  using L = Lanes<T>;
  constexpr int64_t size = L::kSize;
  constexpr int64_t stretch = 64 * size;
  const auto add = [&](L& s, int64_t i, int64_t count) {
    if constexpr (kProduct) {
      s = fmadd(L::load(a + i, count), L::load(b + i, count), s);
    } else {
      s = s + L::load(a + i, count);
    }
  };
  L total = L::fill(0);
  const int64_t start = aligned_start(a, n);
  if (start > 0) add(total, 0, start);
  for (int64_t begin = start; begin < n; begin += stretch) {
    const int64_t end = std::min(n, begin + stretch);
    L s0 = L::fill(0), s1 = s0, s2 = s0, s3 = s0;
    int64_t i = begin;
    for (; i + 4 * size <= end; i += 4 * size) {
      add(s0, i, size);
      add(s1, i + size, size);
      add(s2, i + 2 * size, size);
      add(s3, i + 3 * size, size);
    }
    for (; i + size <= end; i += size) add(s0, i, size);
    if (i < end) add(s1, i, end - i);
    total = total + ((s0 + s1) + (s2 + s3));
  }
  return total.sum();
}

}  // namespace CPU_CAPABILITY
}  // namespace sod_ops::simd

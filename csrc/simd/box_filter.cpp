// Averages over windows; compiled once for each instruction set (see capability.h).
#include "box_filter.h"

#include <utility>

#include "vector.h"

namespace sod_ops {
inline namespace CPU_CAPABILITY {
namespace {

using simd::for_each_piece;
using simd::Lanes;

template <typename Acc>
void add(const Acc* row, const Acc* below, int64_t n, Acc* to) {
  using L = Lanes<Acc>;
  if (row == nullptr) std::swap(row, below);
  for_each_piece<Acc>(n, [&](int64_t i, auto count) {
    L sum = row == nullptr ? L::fill(0) : L::load(row + i, count);
    if (below != nullptr) sum = sum + L::load(below + i, count);
    sum.store(to + i, count);
  });
}

template <typename Acc>
void step(const Acc* row, Acc* ahead, const Acc* behind, int64_t n, Acc* to) {
  using L = Lanes<Acc>;
  for_each_piece<Acc>(n, [&](int64_t i, auto count) {
    L sum = L::load(ahead + i, count);
    if (row != nullptr) {
      sum = sum + L::load(row + i, count);
      sum.store(ahead + i, count);
    }
    (L::load(behind + i, count) + sum).store(to + i, count);
  });
}

// rows[i][j] becomes rows[j][i]. To interleave the upper half of the rows with the lower moves the top bit of the row's
// number below the column's bits and the column's top bit below the row's; so often as there are bits, it swaps them.
template <typename Acc>
inline __attribute__((always_inline)) void transpose(simd::Vectorized<Acc> (&rows)[Lanes<Acc>::kSize]) {
  constexpr int kSize = Lanes<Acc>::kSize;
#pragma GCC unroll 4
  for (int bit = 1; bit < kSize; bit *= 2) {
    simd::Vectorized<Acc> next[kSize];
#pragma GCC unroll 16
    for (int i = 0; i < kSize / 2; ++i) {
      std::tie(next[2 * i], next[2 * i + 1]) = at::vec::interleave2(rows[i], rows[i + kSize / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kSize; ++i) rows[i] = next[i];
  }
}

template <typename Acc>
void across(const Acc* rows, int64_t stride, int64_t width, int64_t half, Acc scale, Acc* scratch, Acc* to) {
  using V = simd::Vectorized<Acc>;
  constexpr int64_t kSize = Lanes<Acc>::kSize;
  const int64_t length = 2 * half + 1;
  // Column x of all rows is one register, at [x].
  Acc* const columns = scratch;
  Acc* const sums = columns + stride * kSize;
  Acc* behind = sums + stride * kSize;
  Acc* next_behind = behind + length * kSize;

  V tile[kSize];
  for (int64_t x = 0; x < width; x += kSize) {
#pragma GCC unroll 16
    for (int64_t i = 0; i < kSize; ++i) tile[i] = V::loadu(rows + i * stride + x);
    transpose<Acc>(tile);
#pragma GCC unroll 16
    for (int64_t i = 0; i < kSize; ++i) tile[i].store(columns + (x + i) * kSize);
  }

  // The sums from each element to the end of the block that starts at column `start`. Unless `start` is the first, they
  // are taken while the windows of the block before are put together, which hides the time an addition takes.
  const V factor(scale);
  const auto column = [&](int64_t x) { return x < 0 || x >= width ? V(0) : V::loadu(columns + x * kSize); };
  V sum(0);
  for (int64_t t = length - 1; t >= 0; --t) {
    sum = sum + column(t - half);
    sum.store(behind + t * kSize);
  }
  for (int64_t first = 0; first < width; first += length) {
    const int64_t next = first + length - half;
    V ahead(0), following(0);
    // Windows [first, first + length), as far as they lie in the row; the elements ahead are those of the next block.
    const int64_t count = std::min(length, width - first);
    const int64_t inside = std::min(length, width - next);
    if (next >= 0 && inside == length) {
      (V::loadu(behind) * factor).store(sums + first * kSize);
      following = V::loadu(columns + (next + length - 1) * kSize);
      following.store(next_behind + (length - 1) * kSize);
      for (int64_t t = 1; t < length; ++t) {
        ahead = ahead + V::loadu(columns + (next + t - 1) * kSize);
        ((V::loadu(behind + t * kSize) + ahead) * factor).store(sums + (first + t) * kSize);
        following = following + V::loadu(columns + (next + length - 1 - t) * kSize);
        following.store(next_behind + (length - 1 - t) * kSize);
      }
    } else {
      for (int64_t t = 0; t < count; ++t) {
        if (t > 0) ahead = ahead + column(next + t - 1);
        ((V::loadu(behind + t * kSize) + ahead) * factor).store(sums + (first + t) * kSize);
      }
      for (int64_t t = length - 1; t >= 0; --t) {
        following = following + column(next + t);
        following.store(next_behind + t * kSize);
      }
    }
    std::swap(behind, next_behind);
  }

  for (int64_t x = 0; x < width; x += kSize) {
#pragma GCC unroll 16
    for (int64_t i = 0; i < kSize; ++i) tile[i] = V::loadu(sums + (x + i) * kSize);
    transpose<Acc>(tile);
#pragma GCC unroll 16
    for (int64_t i = 0; i < kSize; ++i) tile[i].store(to + i * stride + x);
  }
}

template <typename Acc>
constexpr BoxFilterKernels<Acc> kernels() {
  return {Lanes<Acc>::kSize, add<Acc>, step<Acc>, across<Acc>};
}

}  // namespace
}  // namespace CPU_CAPABILITY

const AllBoxFilterKernels SOD_OPS_THIS_TABLE(box_filter_kernels) = {kernels<float>(), kernels<double>()};

}  // namespace sod_ops

// Between memory that runs along a row and vectors that hold one column each.
#pragma once

#include "vector.h"

namespace sod_ops::simd {
inline namespace CPU_CAPABILITY {

// The matrix of as many rows as a vector has lanes, `step` apart, transposed: columns[k] holds element k of every row.
// Interleaving the upper half of the rows with the lower, log2(lanes) times, carries a row's number into the lane.
template <typename A>
inline void transpose(const A* from, int64_t step, Vectorized<A>* columns) {
  constexpr int kSize = Vectorized<A>::size();
  Vectorized<A> other[kSize];
  for (int i = 0; i < kSize; ++i) columns[i] = Vectorized<A>::loadu(from + i * step);
  for (int stage = 1; stage < kSize; stage *= 2) {
    for (int i = 0; i < kSize / 2; ++i) {
      std::tie(other[2 * i], other[2 * i + 1]) = at::vec::interleave2(columns[i], columns[i + kSize / 2]);
    }
    for (int i = 0; i < kSize; ++i) columns[i] = other[i];
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace sod_ops::simd

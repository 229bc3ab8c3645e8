// Between memory that runs along a row and vectors that hold one column each.
#pragma once

#include "vector.h"

namespace sod_ops::simd {
inline namespace CPU_CAPABILITY {

// The square matrix of which each vector is a row, transposed in place: columns[k] then holds element k of every row.
// Interleaving the upper half of the rows with the lower, log2(lanes) times, carries a row's number into the lane.
template <typename A>
inline void transpose(Vectorized<A>* columns) {
  constexpr int kSize = Vectorized<A>::size();
  Vectorized<A> other[kSize];
  for (int stage = 1; stage < kSize; stage *= 2) {
    for (int i = 0; i < kSize / 2; ++i) {
      std::tie(other[2 * i], other[2 * i + 1]) = at::vec::interleave2(columns[i], columns[i + kSize / 2]);
    }
    for (int i = 0; i < kSize; ++i) columns[i] = other[i];
  }
}

// The same of as many rows as a vector has lanes, in memory, `step` apart.
template <typename A>
inline void transpose(const A* from, int64_t step, Vectorized<A>* columns) {
  for (int i = 0; i < Vectorized<A>::size(); ++i) columns[i] = Vectorized<A>::loadu(from + i * step);
  transpose(columns);
}

}  // namespace CPU_CAPABILITY
}  // namespace sod_ops::simd

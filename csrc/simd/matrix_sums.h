// Sums over the rows and over the columns of a matrix, taken in one pass over it.
//
// Rows are added up in stretches before their sum goes into the columns' totals, and columns in runs before theirs goes
// into the row's: the rounding error grows with rows / 32 and with columns / 512.
#pragma once

#include <algorithm>

#include "matrix.h"
#include "vector.h"

namespace sod_ops::simd {
inline namespace CPU_CAPABILITY {

// body(first row, last row, partial sums of the columns), the latter added to `column_sums` after every stretch of
// rows.
template <typename A, typename Body>
inline void in_stretches(int64_t rows, int64_t columns, A* column_sums, const Body& body) {
  constexpr int64_t kStretch = 32;
  A partial[kMatrixColumns];
  std::fill(column_sums, column_sums + columns, A(0));
  for (int64_t begin = 0; begin < rows; begin += kStretch) {
    std::fill(partial, partial + columns, A(0));
    body(begin, std::min(rows, begin + kStretch), partial);
    for (int64_t c = 0; c < columns; ++c) column_sums[c] += partial[c];
  }
}

// sums[i] += value, for `count` elements.
template <typename T>
inline void add_to(Accumulator<T>* sums, const Lanes<T>& value, int64_t count) {
  (Lanes<T>::load_accumulators(sums, count) + value).store_accumulators(sums, count);
}

// The sum of a row, to whose `run` the columns are added from left to right; next(c) before column c is.
template <typename T>
struct RowSum {
  static constexpr int64_t kRun = 512;

  Lanes<T> total = Lanes<T>::fill(0), run = total;
  int64_t end = kRun;

  void next(int64_t column) {
    if (column < end) return;
    total = total + run;
    run = Lanes<T>::fill(0);
    end += kRun;
  }
  Accumulator<T> sum() const { return (total + run).sum(); }
};

// value plus what stands at `other`, where there is something.
template <typename T>
inline Lanes<T> plus(const Lanes<T>& value, const T* other, int64_t count) {
  return other == nullptr ? value : value + Lanes<T>::load(other, count);
}

}  // namespace CPU_CAPABILITY
}  // namespace sod_ops::simd

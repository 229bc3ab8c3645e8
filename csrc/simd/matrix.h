// Matrices as kernels walk them.
#pragma once

#include <cstdint>

namespace sod_ops {

// Its rows are runs of memory, `step` apart.
template <typename E>
struct Matrix {
  E* data;
  int64_t step;
};

// Columns, at most, of a matrix whose columns are summed: their sums are on the stack. Long runs, so that few are
// begun.
constexpr int64_t kMatrixColumns = 4096;

}  // namespace sod_ops

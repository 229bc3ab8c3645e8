// Sums and maxima over one dimension of a matrix, read once, and the spreading of their gradients: what channel_pool
// and global_pool are made of. A maximum is the first of its value; where there is a NaN, it is the first of those.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

#include "capability.h"

namespace sod_ops {

// Matrices have rows that are runs of memory, `step` apart; neither dimension exceeds 2^30.
template <typename T>
struct MeanMaximumKernels {
  using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

  // For each column over the rows, and for each row over the columns: the sum, the maximum, and its row or column.
  using Reduce = void (*)(const T* x, int64_t step, int64_t rows, int64_t columns, Acc* sums, Acc* maxima,
                          int32_t* indices);
  Reduce over_rows;
  Reduce over_columns;

  // The opposite: to[i, j] is all[j], or first[j] where i = indices[j]; the other way round over columns. The matrix
  // `other` is added, unless it is null. `stream` says that the result outgrows the caches.
  using Spread = void (*)(int64_t rows, int64_t columns, const Acc* all, const Acc* first, const int32_t* indices,
                          const T* other, int64_t other_step, T* to, int64_t step, bool stream);
  Spread spread_over_rows;
  Spread spread_over_columns;
};

struct AllMeanMaximumKernels {
  MeanMaximumKernels<float> float32;
  MeanMaximumKernels<double> float64;
  MeanMaximumKernels<c10::BFloat16> bfloat16;
  MeanMaximumKernels<c10::Half> float16;
};

SOD_OPS_KERNEL_TABLE(AllMeanMaximumKernels, mean_maximum_kernels)

}  // namespace sod_ops

// What scSE's gates are computed from, and the gradient that goes back through it: the kernels on raw pointers.
// cpu/scse.cpp calls them for tiles of a sample.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

#include "capability.h"
#include "matrix.h"

namespace sod_ops {

// A matrix has the channels as its rows, or as its columns (`by_rows` says which); `weight` has a number for each.
template <typename T>
struct ScseKernels {
  using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

  // The sum of every channel, and the sum over all channels, each times its weight, of every pixel.
  void (*squeeze)(bool by_rows, int64_t rows, int64_t columns, Matrix<const T> x, const Acc* weight, Acc* row_sums,
                  Acc* column_sums);

  // grad_x[c, p] = channels[c] + weight[c] pixels[p], and what `other` has more unless its data is null; and of every
  // channel the sum of x[c, p] pixels[p]. `stream` says that grad_x outgrows the caches.
  void (*backward)(bool by_rows, int64_t rows, int64_t columns, Matrix<const T> x, const Acc* weight,
                   const Acc* channels, const Acc* pixels, Matrix<const T> other, Matrix<T> grad_x, Acc* sums,
                   bool stream);
};

struct AllScseKernels {
  ScseKernels<float> float32;
  ScseKernels<double> float64;
  ScseKernels<c10::BFloat16> bfloat16;
  ScseKernels<c10::Half> float16;
};

SOD_OPS_KERNEL_TABLE(AllScseKernels, scse_kernels)

}  // namespace sod_ops

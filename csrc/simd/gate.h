// Maps scaled by gates of their channels, of their pixels, or of both: the kernels on raw pointers. cpu/gate.cpp calls
// them for tiles of a sample.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

#include "capability.h"
#include "matrix.h"

namespace sod_ops {

// What an element of a matrix [rows, columns] is multiplied by, from a number of its row and one of its column.
enum class GateForm {
  row,     // the row's
  column,  // the column's
  sum,     // their sum
  logits,  // the sigmoid of their sum
};

template <typename T>
struct GateKernels {
  using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

  // The sigmoid of n logits and, where it is wanted (not null), its derivative.
  void (*sigmoid)(const Acc* logits, int64_t n, Acc* gates, Acc* slopes);

  // y = x g. `stream` says that the result outgrows the caches.
  void (*apply)(GateForm form, int64_t rows, int64_t columns, Matrix<const T> x, const Acc* row, const Acc* column,
                Matrix<T> y, bool stream);

  // grad_x = grad_y g, and sums over each row and each column of grad_y x, times the derivative of the sigmoid where g
  // is the sigmoid of a sum.
  void (*backward)(GateForm form, int64_t rows, int64_t columns, Matrix<const T> grad_y, Matrix<const T> x,
                   const Acc* row, const Acc* column, Matrix<T> grad_x, Acc* row_sums, Acc* column_sums, bool stream);
};

struct AllGateKernels {
  GateKernels<float> float32;
  GateKernels<double> float64;
  GateKernels<c10::BFloat16> bfloat16;
  GateKernels<c10::Half> float16;
};

SOD_OPS_KERNEL_TABLE(AllGateKernels, gate_kernels)

}  // namespace sod_ops

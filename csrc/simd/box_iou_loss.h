// The kernels of the IoU losses, on raw pointers, for a run of box pairs. cpu/box_iou_loss.cpp calls them.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

#include "capability.h"

namespace sod_ops {

// `count` pairs of boxes, each four elements side by side, and the step in elements from one box to the next.
template <typename T>
struct BoxPairs {
  const T* first;
  int64_t first_step;
  const T* second;
  int64_t second_step;
  int64_t count;
};

template <typename T>
struct BoxLossKernels {
  using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

  // `loss` is the number of a math::BoxLoss. Writes each pair's loss to `losses`, or, where that is null, returns their sum.
  double (*forward)(int64_t loss, const BoxPairs<T>& pairs, double eps, Acc* losses);

  // Writes the gradients of each pair's loss, times grad[i * grad_step] * scale; either side may be null.
  void (*backward)(int64_t loss, const BoxPairs<T>& pairs, double eps, const Acc* grad, int64_t grad_step, double scale,
                   T* grad_first, T* grad_second);
};

struct BoxIouLossKernels {
  BoxLossKernels<float> float32;
  BoxLossKernels<double> float64;
  BoxLossKernels<c10::BFloat16> bfloat16;
  BoxLossKernels<c10::Half> float16;
};

SOD_OPS_KERNEL_TABLE(BoxIouLossKernels, box_iou_loss_kernels)

}  // namespace sod_ops

// The kernel of the IoU losses, on raw pointers, for a run of box pairs. cpu/box_iou_loss.cpp calls it.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

#include "capability.h"

namespace sod_ops {

// `count` pairs of boxes, each four elements side by side with a step in elements from one to the next, and what to do
// with their losses.
template <typename T>
struct BoxLossRun {
  using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

  const T* first;
  int64_t first_step;
  const T* second;
  int64_t second_step;
  int64_t count;
  double eps;

  Acc* losses = nullptr;  // one for each pair; may be null

  // The gradients by both boxes, side by side, of the losses times grad[i * grad_step] * scale; either may be null.
  T* grad_first = nullptr;
  T* grad_second = nullptr;
  const Acc* grad = nullptr;
  int64_t grad_step = 0;
  double scale = 1;
};

// The sum of the losses. `loss` is the number of a math::BoxLoss in one of its flavours.
template <typename T>
using BoxLossKernel = double (*)(int64_t loss, const BoxLossRun<T>& run);

struct BoxIouLossKernels {
  BoxLossKernel<float> float32;
  BoxLossKernel<double> float64;
  BoxLossKernel<c10::BFloat16> bfloat16;
  BoxLossKernel<c10::Half> float16;
};

SOD_OPS_KERNEL_TABLE(BoxIouLossKernels, box_iou_loss_kernels)

}  // namespace sod_ops

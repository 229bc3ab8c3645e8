// What the operators of sigmoid focal loss on the CPU and on the GPU have in common: checks, weights and results.
#pragma once

#include <cmath>

#include "loss.h"

namespace sod_ops {

// A call of either operator, checked. sod_ops.sigmoid_focal_loss calls the operator before it looks at its arguments,
// and has better messages for what is refused here.
struct SigmoidFocalCall {
  static constexpr const char* kOp = "sigmoid_focal_loss";

  Reduction reduction;
  torch::headeronly::ScalarType dtype;  // of the loss
  double positive;                      // weight of a target 1
  double negative;                      // weight of a target 0
  double gamma;

  SigmoidFocalCall(const torch::stable::Tensor& inputs, const torch::stable::Tensor& targets, double alpha,
                   double exponent, int64_t reduction_index)
      : reduction(check_reduction(kOp, reduction_index)),
        dtype(promote(inputs.scalar_type(), targets.scalar_type())),
        positive(alpha >= 0 ? alpha : 1),
        negative(alpha >= 0 ? 1 - alpha : 1),
        gamma(exponent) {
    STD_TORCH_CHECK(is_floating(inputs.scalar_type()), kOp, ": inputs must be float32, float64, bfloat16 or float16");
    STD_TORCH_CHECK(is_readable(targets.scalar_type()), kOp,
                    ": targets must be float32, float64, bfloat16, float16, bool, uint8 or a signed integer");
    STD_TORCH_CHECK(same_device(inputs, targets), kOp, ": targets must be on the device of inputs");
    STD_TORCH_CHECK(same_shape(inputs, targets), kOp, ": targets must have the shape of inputs");
    STD_TORCH_CHECK((alpha >= 0 && alpha <= 1) || alpha == -1, kOp, ": alpha must be in [0, 1], or -1, got ", alpha);
    STD_TORCH_CHECK(gamma >= 0 && std::isfinite(gamma), kOp, ": gamma must be finite and 0 or more, got ", gamma);
  }

  void check_grad_output(const torch::stable::Tensor& grad_output, const torch::stable::Tensor& inputs) const {
    STD_TORCH_CHECK(same_device(inputs, grad_output) && grad_output.scalar_type() == dtype &&
                        (reduces() ? grad_output.dim() == 0 : same_shape(grad_output, inputs)),
                    kOp, "_backward: grad_output must have the shape, dtype and device of the loss");
  }

  bool reduces() const { return reduction != Reduction::none; }

  // What every loss is multiplied with before it is added up. The mean of nothing is infinity times 0: NaN.
  double factor(int64_t count) const { return reduction == Reduction::mean ? 1.0 / static_cast<double>(count) : 1.0; }

  torch::stable::Tensor empty_loss(const torch::stable::Tensor& inputs) const {
    return reduces() ? torch::stable::new_empty(inputs, {}, dtype) : empty_like(inputs, dtype);
  }

  torch::stable::Tensor empty_gradient(const torch::stable::Tensor& inputs, bool wanted) const {
    return wanted && reduces() ? torch::stable::empty_like(inputs) : torch::stable::new_empty(inputs, {0});
  }
};

}  // namespace sod_ops

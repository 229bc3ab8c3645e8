// What the operators of softmax focal loss on the CPU and on the GPU have in common: checks, the walk over positions,
// results.
#pragma once

#include <cmath>
#include <optional>
#include <vector>

#include "loss.h"

namespace sod_ops {

// A call of either operator, checked but for the values of the targets. sod_ops.softmax_focal_loss calls the operator
// before it looks at its arguments, and has better messages for what is refused here.
struct SoftmaxFocalCall {
  static constexpr const char* kOp = "softmax_focal_loss";
  using Tensor = torch::stable::Tensor;

  Reduction reduction;
  torch::headeronly::ScalarType dtype;  // of the loss
  int64_t classes = 0;
  double scale;  // of every loss
  double gamma;
  int64_t ignore_index;

  SoftmaxFocalCall(const Tensor& inputs, const Tensor& targets, const std::optional<Tensor>& alpha, double factor,
                   double exponent, int64_t ignored, int64_t reduction_index)
      : reduction(check_reduction(kOp, reduction_index)),
        dtype(inputs.scalar_type()),
        scale(factor),
        gamma(exponent),
        ignore_index(ignored) {
    STD_TORCH_CHECK(is_floating(dtype), kOp, ": inputs must be float32, float64, bfloat16 or float16");
    STD_TORCH_CHECK(inputs.dim() >= 2 && inputs.size(1) >= 1, kOp, ": inputs must be [N, K, ...] with K >= 1");
    classes = inputs.size(1);
    STD_TORCH_CHECK(is_readable(targets.scalar_type()) && !is_floating(targets.scalar_type()) &&
                        targets.scalar_type() != torch::headeronly::ScalarType::Bool,
                    kOp, ": targets must be uint8 or a signed integer");
    STD_TORCH_CHECK(same_device(inputs, targets), kOp, ": targets must be on the device of inputs");
    bool fits = targets.dim() == inputs.dim() - 1 && targets.size(0) == inputs.size(0);
    for (int64_t d = 1; fits && d < targets.dim(); ++d) fits = targets.size(d) == inputs.size(d + 1);
    STD_TORCH_CHECK(fits, kOp, ": targets must have the shape of inputs without the classes, [N, ...]");
    if (alpha.has_value()) {
      STD_TORCH_CHECK(is_floating(alpha->scalar_type()) && alpha->dim() == 1 && alpha->size(0) == classes, kOp,
                      ": alpha must be of a floating dtype and of shape [K]");
      STD_TORCH_CHECK(same_device(inputs, *alpha), kOp, ": alpha must be on the device of inputs");
    }
    STD_TORCH_CHECK(scale >= 0 && std::isfinite(scale), kOp, ": alpha must be finite and 0 or more, got ", scale);
    STD_TORCH_CHECK(gamma >= 0 && std::isfinite(gamma), kOp, ": gamma must be finite and 0 or more, got ", gamma);
  }

  void check_grad_output(const Tensor& grad_output, const Tensor& targets) const {
    STD_TORCH_CHECK(same_device(targets, grad_output) && grad_output.scalar_type() == dtype &&
                        (reduces() ? grad_output.dim() == 0 : same_shape(grad_output, targets)),
                    kOp, "_backward: grad_output must have the shape, dtype and device of the loss");
  }

  bool reduces() const { return reduction != Reduction::none; }
  bool averages() const { return reduction == Reduction::mean; }

  // In the memory order of targets, in which positions are walked.
  Tensor empty_loss(const Tensor& inputs, const Tensor& targets) const {
    return reduces() ? torch::stable::new_empty(inputs, {}, dtype) : empty_like(targets, dtype);
  }

  Tensor empty_gradient(const Tensor& inputs, bool wanted) const {
    return wanted && reduces() ? torch::stable::empty_like(inputs) : torch::stable::new_empty(inputs, {0});
  }
};

// Where the logits of a position, or their gradients, lie: the position's steps, and that from class to class.
struct ClassSteps {
  Steps position;
  int64_t of_class;
};

// How positions are walked, as rows and columns.
struct Positions {
  int64_t rows;
  int64_t columns;
  Steps targets;
  ClassSteps inputs;
  ClassSteps gradient;
  Steps upstream;

  int64_t count() const { return rows * columns; }

  // `gradient` may be inputs, `upstream` targets, where there is none.
  Positions(const torch::stable::Tensor& inputs, const torch::stable::Tensor& targets,
            const torch::stable::Tensor& gradient, const torch::stable::Tensor& upstream) {
    const std::vector<int64_t> strides[] = {strides_of(targets), without_class(inputs), without_class(gradient),
                                            strides_of(upstream)};
    const auto found = as_rows(targets.sizes(), strides);
    STD_TORCH_CHECK(found.has_value(), SoftmaxFocalCall::kOp,
                    ": the tensors must lie in memory as rows and columns at fixed steps");
    rows = found->rows;
    columns = found->columns;
    this->targets = found->steps[0];
    this->inputs = {found->steps[1], inputs.stride(1)};
    this->gradient = {found->steps[2], gradient.stride(1)};
    this->upstream = found->steps[3];
  }

 private:
  static std::vector<int64_t> strides_of(const torch::stable::Tensor& tensor) {
    const auto strides = tensor.strides();
    return {strides.begin(), strides.end()};
  }

  static std::vector<int64_t> without_class(const torch::stable::Tensor& tensor) {
    auto strides = strides_of(tensor);
    strides.erase(strides.begin() + 1);
    return strides;
  }
};

}  // namespace sod_ops

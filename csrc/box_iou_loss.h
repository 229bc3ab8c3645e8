// What the IoU losses' operators on the CPU and on the GPU have in common: checks and results.
#pragma once

#include <cmath>

#include "boxes.h"
#include "loss.h"
#include "math/box_iou_loss.h"

namespace sod_ops {

// A call of either operator, checked.
struct BoxLossCall {
  int64_t pairs;
  int64_t first_step;
  int64_t second_step;
  Reduction reduction;

  BoxLossCall(const torch::stable::Tensor& boxes1, const torch::stable::Tensor& boxes2, int64_t loss,
              int64_t reduction_index, double eps)
      : reduction(static_cast<Reduction>(reduction_index)) {
    constexpr auto op = "box_iou_loss";
    const BoxRows first = box_rows(op, "boxes1", boxes1), second = box_rows(op, "boxes2", boxes2);
    check_boxes_alike(op, boxes1, boxes2);
    STD_TORCH_CHECK(boxes1.dim() == boxes2.dim() && first.count == second.count, op,
                    ": boxes2 must have the shape of boxes1");
    STD_TORCH_CHECK(loss >= 0 && loss < math::kBoxLosses, op, ": unknown loss ", loss);
    STD_TORCH_CHECK(reduction_index >= 0 && reduction_index <= 2, op, ": unknown reduction ", reduction_index);
    STD_TORCH_CHECK(eps > 0 && std::isfinite(eps), op, ": eps must be finite and above 0, got ", eps);
    pairs = first.count;
    first_step = first.step;
    second_step = second.step;
  }

  // What the sum of the losses, and each pair's gradient, is multiplied with. The mean of nothing is 0.
  double scale() const { return reduction == Reduction::mean && pairs > 0 ? 1.0 / static_cast<double>(pairs) : 1.0; }

  // Whether the forward computes gradients too. Not in two bytes, where the mean's would be too small before the
  // incoming gradient, which may carry a loss scale, multiplies them; nor without a reduction, which would keep as much
  // as the inputs.
  bool keeps_gradients(torch::headeronly::ScalarType dtype) const {
    return reduction != Reduction::none && dtype == accumulator_of(dtype);
  }

  torch::stable::Tensor empty_result(const torch::stable::Tensor& boxes1) const {
    const auto dtype = accumulator_of(boxes1.scalar_type());
    if (reduction != Reduction::none || boxes1.dim() == 1) return new_dense(boxes1, {}, dtype);
    return new_dense(boxes1, {pairs}, dtype);
  }

  // The step from one pair's gradient to the next in the gradient of the result.
  int64_t grad_step(const torch::stable::Tensor& grad_output, const torch::stable::Tensor& boxes1) const {
    const bool scalar = reduction != Reduction::none || boxes1.dim() == 1;
    STD_TORCH_CHECK(grad_output.scalar_type() == accumulator_of(boxes1.scalar_type()) &&
                        on_same_device(grad_output, boxes1) && grad_output.dim() == (scalar ? 0 : 1) &&
                        (scalar || grad_output.size(0) == pairs),
                    "box_iou_loss_backward: grad_output must have the shape, dtype and device of the loss");
    const int64_t step = scalar || pairs == 1 ? 0 : grad_output.stride(0);
    STD_TORCH_CHECK(step == 0 || step == 1 || pairs == 0,
                    "box_iou_loss_backward: grad_output must be contiguous or expanded");
    return step;
  }
};

}  // namespace sod_ops

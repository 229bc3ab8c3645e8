// What the pairwise complete IoU's operators on the CPU and on the GPU have in common: checks and results.
#pragma once

#include <cmath>

#include "boxes.h"
#include "dtype.h"

namespace sod_ops {

// A call of either operator, checked.
struct BoxIouCall {
  BoxRows first;
  BoxRows second;

  BoxIouCall(const torch::stable::Tensor& boxes1, const torch::stable::Tensor& boxes2, double eps)
      : first(box_rows(kOp, "boxes1", boxes1)), second(box_rows(kOp, "boxes2", boxes2)) {
    STD_TORCH_CHECK(boxes1.dim() == 2 && boxes2.dim() == 2, kOp, ": boxes1 and boxes2 must be [N, 4] and [M, 4]");
    check_boxes_alike(kOp, boxes1, boxes2);
    STD_TORCH_CHECK(eps > 0 && std::isfinite(eps), kOp, ": eps must be finite and above 0, got ", eps);
  }

  int64_t pairs() const { return first.count * second.count; }

  void check_grad_output(const torch::stable::Tensor& grad_output, const torch::stable::Tensor& boxes1) const {
    STD_TORCH_CHECK(grad_output.scalar_type() == accumulator_of(boxes1.scalar_type()) &&
                        on_same_device(grad_output, boxes1) && grad_output.dim() == 2 &&
                        grad_output.size(0) == first.count && grad_output.size(1) == second.count,
                    "complete_box_iou_backward: grad_output must have the shape, dtype and device of the result");
    STD_TORCH_CHECK(pairs() == 0 || second.count == 1 || grad_output.stride(1) == 0 || grad_output.stride(1) == 1,
                    "complete_box_iou_backward: rows of grad_output must be contiguous or expanded");
  }

 private:
  static constexpr auto kOp = "complete_box_iou";
};

}  // namespace sod_ops

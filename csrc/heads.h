// What the losses of several heads against one mask have in common on every device: checks, weights and results.
#pragma once

#include <vector>

#include "loss.h"

namespace sod_ops {

// A call of one of their operators, checked. The public functions call the operators before they look at their
// arguments, and have better messages for what is refused here.
struct HeadsCall : SamplesCall {
  const std::vector<torch::stable::Tensor>& heads;  // [B, 1, H, W] each
  const torch::stable::Tensor& mask;
  const std::vector<double>& weights;  // one for each head
  int64_t height, width;

  HeadsCall(const char* name, const char* argument, const std::vector<torch::stable::Tensor>& tensors,
            const torch::stable::Tensor& target, const std::vector<double>& head_weights, int64_t reduction_index)
      : SamplesCall{name, target, check_reduction(name, reduction_index), {}, 0},
        heads(tensors),
        mask(target),
        weights(head_weights) {
    STD_TORCH_CHECK(!heads.empty() && heads.size() == weights.size(), op,
                    ": there must be a head and a weight for each");
    STD_TORCH_CHECK(is_readable(mask.scalar_type()), op,
                    ": mask must be float32, float64, bfloat16, float16, bool, uint8 or a signed integer");
    STD_TORCH_CHECK(mask.dim() == 4 && mask.size(1) == 1, op, ": mask must be of shape [B, 1, H, W]");
    for (const auto& head : heads) {
      STD_TORCH_CHECK(is_floating(head.scalar_type()) && head.scalar_type() == heads[0].scalar_type(), op, ": ",
                      argument, " must be float32, float64, bfloat16 or float16, all heads the same");
      STD_TORCH_CHECK(same_device(head, mask), op, ": mask must be on the device of ", argument);
      STD_TORCH_CHECK(same_shape(head, mask), op, ": ", argument, " must have the shape of mask");
    }
    dtype = promote(heads[0].scalar_type(), mask.scalar_type());
    samples = mask.size(0);
    height = mask.size(2);
    width = mask.size(3);
  }

  double pixels() const { return static_cast<double>(height) * static_cast<double>(width); }

  std::vector<torch::stable::Tensor> empty_gradients(bool wanted) const {
    std::vector<torch::stable::Tensor> gradients;
    if (wanted) {
      for (const auto& head : heads) gradients.push_back(torch::stable::empty_like(head));
    }
    return gradients;
  }
};

}  // namespace sod_ops

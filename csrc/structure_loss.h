// What the operators of the structure loss on the CPU and on the GPU have in common.
#pragma once

#include "heads.h"

namespace sod_ops {

struct StructureCall : HeadsCall {
  int64_t kernel_size;
  bool published;

  StructureCall(const std::vector<torch::stable::Tensor>& logits, const torch::stable::Tensor& mask, int64_t window,
                bool as_published, const std::vector<double>& weights, int64_t reduction)
      : HeadsCall("structure_loss", "logits", logits, mask, weights, reduction),
        kernel_size(window),
        published(as_published) {
    STD_TORCH_CHECK(kernel_size > 0 && kernel_size % 2 == 1, op, ": kernel_size must be odd and above 0, got ",
                    kernel_size);
  }
};

}  // namespace sod_ops

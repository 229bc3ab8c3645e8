// What the operators of the adaptive pixel intensity loss on the CPU and on the GPU have in common.
#pragma once

#include "heads.h"

namespace sod_ops {

struct IntensityCall : HeadsCall {
  bool published;

  IntensityCall(const std::vector<torch::stable::Tensor>& probabilities, const torch::stable::Tensor& mask,
                bool as_published, const std::vector<double>& weights, int64_t reduction)
      : HeadsCall("adaptive_pixel_intensity_loss", "probabilities", probabilities, mask, weights, reduction),
        published(as_published) {}
};

}  // namespace sod_ops

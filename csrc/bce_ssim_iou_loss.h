// What the operators of BASNet's hybrid loss on the CPU and on the GPU have in common.
#pragma once

#include "heads.h"
#include "math/bce_ssim_iou_loss.h"
#include "ssim.h"

namespace sod_ops {

struct HybridCall : HeadsCall {
  math::HybridWeights terms;
  int64_t window_size;
  double sigma;

  HybridCall(const std::vector<torch::stable::Tensor>& probabilities, const torch::stable::Tensor& target,
             const math::HybridWeights& term_weights, int64_t window, double deviation,
             const std::vector<double>& head_weights, int64_t reduction_index)
      : HeadsCall("bce_ssim_iou_loss", "probabilities", probabilities, target, head_weights, reduction_index),
        terms(term_weights),
        window_size(window),
        sigma(deviation) {
    for (double number : {terms.cross_entropy, terms.similarity, terms.overlap, terms.smooth}) {
      STD_TORCH_CHECK(number >= 0 && std::isfinite(number), op,
                      ": the terms' weights and smooth must be finite and 0 or more, got ", number);
    }
    check_gaussian(op, window_size, sigma);
  }
};

}  // namespace sod_ops

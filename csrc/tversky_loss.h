// What the operators of the Tversky loss on the CPU and on the GPU have in common.
#pragma once

#include <cmath>

#include "heads.h"
#include "math/tversky_loss.h"

namespace sod_ops {

struct TverskyCall : HeadsCall {
  math::TverskyOptions options;

  TverskyCall(const std::vector<torch::stable::Tensor>& logits, const torch::stable::Tensor& mask, double alpha,
              double beta, double smooth, const std::vector<double>& weights, int64_t reduction)
      : HeadsCall("tversky_loss", "logits", logits, mask, weights, reduction), options{alpha, beta, smooth} {
    for (double value : {alpha, beta, smooth}) {
      STD_TORCH_CHECK(value >= 0 && std::isfinite(value), op,
                      ": alpha, beta and smooth must be finite and 0 or more, got ", value);
    }
  }
};

}  // namespace sod_ops

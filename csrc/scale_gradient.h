// What the operator scale_gradient_ on the CPU and on the GPU has in common.
#pragma once

#include "loss.h"

namespace sod_ops {

inline void check_scale_gradient(const torch::stable::Tensor& gradient, const torch::stable::Tensor& factor) {
  STD_TORCH_CHECK(is_floating(gradient.scalar_type()) && is_floating(factor.scalar_type()) && factor.numel() == 1 &&
                      same_device(gradient, factor),
                  "scale_gradient_: factor must be one number of a floating dtype on the device of gradient");
  const auto rows = as_rows(gradient.sizes(), {gradient.strides()});
  STD_TORCH_CHECK(rows.has_value() && rows->rows <= 1 && (rows->columns <= 1 || rows->steps[0].column == 1),
                  "scale_gradient_: gradient must be dense");
}

}  // namespace sod_ops

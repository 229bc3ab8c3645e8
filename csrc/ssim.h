// What the operators of the structural similarity on the CPU and on the GPU have in common.
#pragma once

#include <cmath>

#include "loss.h"

namespace sod_ops {

// ValueError in Python's words is more precise; this is for calls of the operators themselves.
inline void check_gaussian(const std::string& op, int64_t window_size, double sigma) {
  STD_TORCH_CHECK(window_size > 0 && window_size % 2 == 1, op, ": window_size must be odd and above 0, got ",
                  window_size);
  STD_TORCH_CHECK(sigma > 0 && std::isfinite(sigma), op, ": sigma must be finite and above 0, got ", sigma);
}

// The weights of a Gaussian window along one axis, by their distance from its middle: they add up to 1.
class GaussianWindow {
 public:
  GaussianWindow(int64_t window_size, double sigma) : sigma_(sigma) {
    double sum = unscaled(0);
    for (int64_t t = 1; t <= window_size / 2; ++t) sum += 2 * unscaled(t);
    scale_ = 1 / sum;
  }

  double weight(int64_t distance) const { return unscaled(distance) * scale_; }
  double scale() const { return scale_; }

 private:
  double unscaled(int64_t distance) const {
    const double deviations = static_cast<double>(distance) / sigma_;
    return std::exp(-0.5 * deviations * deviations);
  }

  double sigma_, scale_;
};

struct SsimCall : SamplesCall {
  const torch::stable::Tensor& x;  // [N, C, H, W]
  const torch::stable::Tensor& y;
  int64_t window_size;
  double sigma;
  int64_t channels, height, width;

  SsimCall(const torch::stable::Tensor& first, const torch::stable::Tensor& second, int64_t window, double deviation,
           int64_t reduction_index)
      : SamplesCall{"ssim", first, check_reduction("ssim", reduction_index), {}, 0},
        x(first),
        y(second),
        window_size(window),
        sigma(deviation) {
    STD_TORCH_CHECK(is_floating(x.scalar_type()) && is_floating(y.scalar_type()), op,
                    ": x and y must be float32, float64, bfloat16 or float16");
    STD_TORCH_CHECK(x.dim() == 4 && same_shape(x, y), op, ": x and y must be of one shape [N, C, H, W]");
    STD_TORCH_CHECK(same_device(x, y), op, ": y must be on the device of x");
    check_gaussian(op, window_size, sigma);
    dtype = promote(x.scalar_type(), y.scalar_type());
    samples = x.size(0);
    channels = x.size(1);
    height = x.size(2);
    width = x.size(3);
  }

  double elements() const { return static_cast<double>(channels * height) * static_cast<double>(width); }
};

}  // namespace sod_ops

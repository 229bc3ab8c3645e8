// BASNet's hybrid loss on the GPU, in three launches for up to 16 heads. The arithmetic stands in
// ../math/bce_ssim_iou_loss.h and ../math/ssim.h.
#include "../bce_ssim_iou_loss.h"

#include <cmath>
#include <tuple>

#include "similarity.h"

namespace sod_ops::cuda {
namespace {

using torch::stable::Tensor;

struct HybridLoss {
  static constexpr int kSums = 4;
  static constexpr bool kWeighted = false;
  template <typename T>
  struct Coefficients {
    math::HybridCoefficients<T> own;
    T similarity;
  };

  math::HybridWeights terms;

  // What is no probability makes its sample's loss and gradients NaN: to say so would wait for the device.
  template <typename T>
  __device__ __forceinline__ void add(T x, T y, T index, T (&sums)[kSums]) const {
    const T p = x >= 0 && x <= 1 ? x : static_cast<T>(NAN);
    const auto part = math::hybrid_sums(p, y);
    sums[0] += part.cross_entropy;
    sums[1] += part.intersection;
    sums[2] += part.total;
    sums[3] += index;
  }

  __device__ static math::HybridSums<double> sums_of(const HeadSums& head, int64_t sample) {
    const double* sums = head.sums + sample * kSums;
    return {sums[0], sums[1], sums[2]};
  }

  __device__ double loss(const HeadSums& head, int64_t sample) const {
    return math::hybrid_loss(terms, sums_of(head, sample), head.sums[sample * kSums + 3], head.pixels);
  }

  template <typename T>
  __device__ Coefficients<T> coefficients(const HeadSums& head, int64_t sample, double weight) const {
    const double factor = weight * head.gradient(sample);
    return {math::hybrid_coefficients<T>(terms, sums_of(head, sample), head.pixels, factor),
            static_cast<T>(-factor * terms.similarity / head.pixels)};
  }

  template <typename T>
  __device__ __forceinline__ T derivative(const Coefficients<T>& c, T x, T y, T similarity) const {
    return c.similarity * similarity + math::hybrid_derivative(c.own, x, y);
  }
};

void run(const HybridCall& call, const Tensor* grad_output, const Tensor* loss, const std::vector<Tensor>& gradients) {
  const Launcher launcher(call.mask);
  for_accumulator(call.dtype, [&](auto* type) {
    using Acc = std::remove_pointer_t<decltype(type)>;
    run_similarity_heads<Acc>(launcher, call, call.window_size, call.sigma, HybridLoss{call.terms}, grad_output, loss,
                              gradients);
  });
}

// The loss, and its gradient by each head where it is a mean or a sum and `with_gradient` holds, otherwise no
// gradients.
std::tuple<Tensor, std::vector<Tensor>> bce_ssim_iou_loss(std::vector<Tensor> probabilities, const Tensor& mask,
                                                          double bce_weight, double ssim_weight, double iou_weight,
                                                          double smooth, int64_t window_size, double sigma,
                                                          std::vector<double> weights, int64_t reduction,
                                                          bool with_gradient) {
  const HybridCall call(probabilities, mask, {bce_weight, ssim_weight, iou_weight, smooth}, window_size, sigma, weights,
                        reduction);
  Tensor loss = call.empty_loss();
  std::vector<Tensor> gradients = call.empty_gradients(with_gradient && call.reduces());
  run(call, nullptr, &loss, gradients);
  return {loss, gradients};
}

// The gradient by each head.
std::vector<Tensor> bce_ssim_iou_loss_backward(const Tensor& grad_output, std::vector<Tensor> probabilities,
                                               const Tensor& mask, double bce_weight, double ssim_weight,
                                               double iou_weight, double smooth, int64_t window_size, double sigma,
                                               std::vector<double> weights, int64_t reduction) {
  const HybridCall call(probabilities, mask, {bce_weight, ssim_weight, iou_weight, smooth}, window_size, sigma, weights,
                        reduction);
  call.check_grad_output(grad_output);
  std::vector<Tensor> gradients = call.empty_gradients(true);
  run(call, &grad_output, nullptr, gradients);
  return gradients;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sod_ops, CUDA, m) {
  m.impl("bce_ssim_iou_loss", TORCH_BOX(&bce_ssim_iou_loss));
  m.impl("bce_ssim_iou_loss_backward", TORCH_BOX(&bce_ssim_iou_loss_backward));
}

}  // namespace sod_ops::cuda

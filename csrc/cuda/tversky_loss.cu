// The Tversky loss on the GPU, in three launches for up to 16 heads. The arithmetic stands in ../math/tversky_loss.h.
#include "../tversky_loss.h"

#include <tuple>

#include "heads.h"

namespace sod_ops::cuda {
namespace {

using torch::stable::Tensor;

struct TverskyLoss {
  static constexpr int kSums = 3;
  static constexpr bool kWeighted = false;
  template <typename T>
  using Coefficients = math::TverskyCoefficients<T>;

  math::TverskyOptions options;

  template <typename T>
  __device__ __forceinline__ void add(T x, T y, T, T (&sums)[kSums]) const {
    const auto part = math::tversky_sums(x, y);
    sums[0] += part.intersection;
    sums[1] += part.predicted;
    sums[2] += part.target;
  }

  __device__ static math::TverskySums<double> sums_of(const HeadSums& head, int64_t sample) {
    const double* sums = head.sums + sample * kSums;
    return {sums[0], sums[1], sums[2]};
  }

  __device__ double loss(const HeadSums& head, int64_t sample) const {
    const auto ratio = math::tversky_ratio(sums_of(head, sample), options);
    return 1 - ratio.above / ratio.below;
  }

  template <typename T>
  __device__ Coefficients<T> coefficients(const HeadSums& head, int64_t sample, double weight) const {
    return math::tversky_coefficients<T>(sums_of(head, sample), options, weight * head.gradient(sample));
  }

  template <typename T>
  __device__ __forceinline__ T derivative(const Coefficients<T>& c, T x, T y, T) const {
    return math::tversky_derivative(c, x, y);
  }
};

void run(const TverskyCall& call, const Tensor* grad_output, const Tensor* loss, const std::vector<Tensor>& gradients) {
  const Launcher launcher(call.mask);
  for_accumulator(call.dtype, [&](auto* type) {
    using Acc = std::remove_pointer_t<decltype(type)>;
    run_heads<Acc>(launcher, call, TverskyLoss{call.options}, {}, grad_output, loss, gradients);
  });
}

// The loss, and its gradient by each head where it is a mean or a sum and `with_gradient` holds, otherwise no
// gradients.
std::tuple<Tensor, std::vector<Tensor>> tversky_loss(std::vector<Tensor> logits, const Tensor& mask, double alpha,
                                                     double beta, double smooth, std::vector<double> weights,
                                                     int64_t reduction, bool with_gradient) {
  const TverskyCall call(logits, mask, alpha, beta, smooth, weights, reduction);
  Tensor loss = call.empty_loss();
  std::vector<Tensor> gradients = call.empty_gradients(with_gradient && call.reduces());
  run(call, nullptr, &loss, gradients);
  return {loss, gradients};
}

// The gradient by each head.
std::vector<Tensor> tversky_loss_backward(const Tensor& grad_output, std::vector<Tensor> logits, const Tensor& mask,
                                          double alpha, double beta, double smooth, std::vector<double> weights,
                                          int64_t reduction) {
  const TverskyCall call(logits, mask, alpha, beta, smooth, weights, reduction);
  call.check_grad_output(grad_output);
  std::vector<Tensor> gradients = call.empty_gradients(true);
  run(call, &grad_output, nullptr, gradients);
  return gradients;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sod_ops, CUDA, m) {
  m.impl("tversky_loss", TORCH_BOX(&tversky_loss));
  m.impl("tversky_loss_backward", TORCH_BOX(&tversky_loss_backward));
}

}  // namespace sod_ops::cuda

// The Tversky loss on the CPU: threads and memory. The arithmetic stands in ../math/tversky_loss.h.
#include "../tversky_loss.h"

#include <tuple>

#include "../simd/tversky_loss.h"
#include "heads.h"

namespace sod_ops {
namespace {

using math::TverskySums;
using torch::stable::Tensor;

template <typename Acc>
class TverskyPass : public HeadsPass<Acc, TverskySums> {
  using Base = HeadsPass<Acc, TverskySums>;

 public:
  static constexpr int64_t kMaps = 0;
  using Worker = typename Base::RowBuffers;

  TverskyPass(const TverskyCall& call, const Bands& bands, const Tensor* grad_output,
              const std::vector<Tensor>& gradients)
      : Base(call, bands, grad_output, gradients), call_(call) {}

  Worker worker() const { return this->row_buffers(); }

  void sums(const Bands::Band& band, int64_t number, const Acc*, Worker& worker) {
    for (int64_t y = band.begin; y < band.end; ++y) {
      const Acc* mask = this->mask_.row(band.plane, y, worker.mask.get());
      this->add_row(band, number, y, worker,
                    [&](const Acc* logits) { return kernels().sums(logits, mask, call_.width); });
    }
  }

  void derive(const Bands::Band& band, const Acc*, Worker& worker) {
    this->derive_rows(
        band, worker,
        [&](int64_t h) {
          return math::tversky_coefficients<Acc>(this->of(band.plane, h), call_.options,
                                                 this->weight(h) * this->gradient(band.plane));
        },
        [&](const auto& coefficients, const Acc* logits, const Acc* mask, int64_t, Acc* to) {
          kernels().derivative(coefficients, logits, mask, call_.width, to);
        });
  }

  std::vector<double> losses() {
    std::vector<double> losses(static_cast<size_t>(call_.samples), 0.0);
    for (int64_t b = 0; b < call_.samples; ++b) {
      for (int64_t h = 0; h < this->heads_; ++h) {
        const auto ratio = math::tversky_ratio(this->of(b, h), call_.options);
        losses[static_cast<size_t>(b)] += this->weight(h) * (1 - ratio.above / ratio.below);
      }
    }
    return losses;
  }

 private:
  static const TverskyKernels<Acc>& kernels() {
    if constexpr (std::is_same_v<Acc, float>) return tversky_kernels().float32;
    if constexpr (std::is_same_v<Acc, double>) return tversky_kernels().float64;
  }

  const TverskyCall& call_;
};

// Writes the loss, if it is wanted, and the gradients of the heads, if there are any.
void run(const TverskyCall& call, const Tensor* grad_output, const Tensor* loss, const std::vector<Tensor>& gradients) {
  for_accumulator(call.dtype, [&](auto* type) {
    using Acc = std::remove_pointer_t<decltype(type)>;
    const Bands bands(call.samples, call.height, 1);
    TverskyPass<Acc> pass(call, bands, grad_output, gradients);
    run_passes<Acc>(call, bands, !gradients.empty(), pass);
    if (loss != nullptr) write_loss(call, pass.losses(), *loss);
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

STABLE_TORCH_LIBRARY_IMPL(sod_ops, CPU, m) {
  m.impl("tversky_loss", TORCH_BOX(&tversky_loss));
  m.impl("tversky_loss_backward", TORCH_BOX(&tversky_loss_backward));
}

}  // namespace sod_ops

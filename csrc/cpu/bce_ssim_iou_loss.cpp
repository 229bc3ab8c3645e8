// BASNet's hybrid loss on the CPU: threads and memory. The arithmetic stands in ../math/bce_ssim_iou_loss.h and
// ../math/ssim.h.
#include "../bce_ssim_iou_loss.h"

#include <atomic>
#include <tuple>

#include "../simd/bce_ssim_iou_loss.h"
#include "heads.h"
#include "similarity.h"

namespace sod_ops {
namespace {

using math::HybridSums;
using torch::stable::Tensor;

// The map of a sample holds the mask's averages over windows, for all heads. What else the similarity needs passes by
// in the second pass, when the sums of the first give the rest of a pixel's derivative.
template <typename Acc>
class HybridPass : public HeadsPass<Acc, HybridSums> {
  using Base = HeadsPass<Acc, HybridSums>;

 public:
  static constexpr int64_t kMaps = 1;

  struct Worker {
    GaussianRows<Acc> mask;
    SimilarityRows<Acc> similarity;
    typename Base::RowBuffers rows;
  };

  HybridPass(const HybridCall& call, const GaussianTaps<Acc>& down, const GaussianTaps<Acc>& across, const Bands& bands,
             const Tensor* grad_output, const std::vector<Tensor>& gradients)
      : Base(call, bands, grad_output, gradients),
        call_(call),
        down_(down),
        across_(across),
        derives_(!gradients.empty()),
        band_indices_(static_cast<size_t>(bands.count * this->heads_)) {}

  Worker worker() const {
    return {{down_, across_, call_.height, call_.width, 1},
            {down_, across_, call_.height, call_.width, true, derives_},
            this->row_buffers()};
  }

  void sums(const Bands::Band& band, int64_t number, Acc* map, Worker& worker) {
    bool outside = false;
    int64_t next = worker.mask.begin(band.begin);
    for (int64_t y = band.begin; y < band.end; ++y) {
      for (; next < worker.mask.end(y); ++next) {
        const Acc* row = this->mask_.row(band.plane, next, worker.rows.mask.get());
        std::copy(row, row + call_.width, worker.mask.next_row());
        worker.mask.average_row(next);
      }
      const auto window = worker.mask.around(y);
      GaussianRows<Acc>::kernels().filter(window.rows, window.weights, window.count, call_.width,
                                          map + y * call_.width);
      const Acc* mask = this->mask_.row(band.plane, y, worker.rows.mask.get());
      this->add_row(band, number, y, worker.rows, [&](const Acc* probabilities) {
        return kernels().sums(probabilities, mask, call_.width, outside);
      });
    }
    if (outside) outside_ = true;
  }

  void derive(const Bands::Band& band, const Acc* map, Worker& worker) {
    for (int64_t h = 0; h < this->heads_; ++h) {
      const double factor = this->weight(h) * this->gradient(band.plane);
      Head head{*this,
                worker,
                band.plane,
                h,
                map,
                math::hybrid_coefficients<Acc>(call_.terms, this->of(band.plane, h), call_.pixels(), factor),
                static_cast<Acc>(-factor * call_.terms.similarity / call_.pixels())};
      worker.similarity.walk(band.begin, band.end, head);
    }
  }

  std::vector<double> losses() {
    STD_TORCH_CHECK(!outside_, call_.op, ": probabilities must be in [0, 1]");
    std::vector<double> losses(static_cast<size_t>(call_.samples), 0.0);
    for (int64_t b = 0; b < call_.samples; ++b) {
      for (int64_t h = 0; h < this->heads_; ++h) {
        double indices = 0;
        for (int64_t i = b * this->bands_.per_plane; i < (b + 1) * this->bands_.per_plane; ++i) {
          indices += band_indices_[static_cast<size_t>(i * this->heads_ + h)];
        }
        losses[static_cast<size_t>(b)] +=
            this->weight(h) * math::hybrid_loss(call_.terms, this->of(b, h), indices, call_.pixels());
      }
    }
    return losses;
  }

 private:
  // A head's rows as SimilarityRows takes and gives them.
  struct Head {
    HybridPass& pass;
    Worker& worker;
    int64_t sample, number;
    const Acc* mask_averages;
    math::HybridCoefficients<Acc> coefficients;
    Acc factor;  // of the similarity's derivatives

    const Acc* x(int64_t y) const { return pass.head(number).row(sample, y, worker.rows.head.get()); }
    const Acc* y(int64_t y) const { return pass.mask_.row(sample, y, worker.rows.mask.get()); }
    const Acc* mean_y(int64_t y) const { return mask_averages + y * pass.call_.width; }

    void index(int64_t y, Acc sum) {
      const int64_t band = sample * pass.bands_.per_plane + y / pass.bands_.rows;
      pass.band_indices_[static_cast<size_t>(band * pass.heads_ + number)] += sum;
    }

    void derivatives(int64_t row, const typename GaussianRows<Acc>::Window& window, int64_t stride) {
      const auto& sink = pass.gradient_of(number);
      const Acc *probabilities = x(row), *mask = y(row);
      Acc* to = sink.at(sample, row, worker.rows.gradient.get());
      GaussianRows<Acc>::kernels().derivatives(window.rows, stride, window.weights, window.count, probabilities, mask,
                                               factor, pass.call_.width, to, nullptr);
      kernels().derivative(coefficients, probabilities, mask, pass.call_.width, to);
      sink.write(sample, row, to);
    }
  };

  static const HybridKernels<Acc>& kernels() {
    if constexpr (std::is_same_v<Acc, float>) return hybrid_kernels().float32;
    if constexpr (std::is_same_v<Acc, double>) return hybrid_kernels().float64;
  }

  const HybridCall& call_;
  const GaussianTaps<Acc>&down_, &across_;
  bool derives_;
  std::atomic<bool> outside_ = false;
  std::vector<double> band_indices_;  // [bands, heads]: sums of the similarity's indices
};

// Writes the loss, if it is wanted, and the gradients of the heads, if there are any.
void run(const HybridCall& call, const Tensor* grad_output, const Tensor* loss, const std::vector<Tensor>& gradients) {
  for_accumulator(call.dtype, [&](auto* type) {
    using Acc = std::remove_pointer_t<decltype(type)>;
    const GaussianTaps<Acc> down(call.window_size, call.sigma, call.height),
        across(call.window_size, call.sigma, call.width);
    const Bands bands(call.samples, call.height, 2 * down.count());
    HybridPass<Acc> pass(call, down, across, bands, grad_output, gradients);
    run_passes<Acc>(call, bands, true, pass);
    if (loss != nullptr) write_loss(call, pass.losses(), *loss);
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

STABLE_TORCH_LIBRARY_IMPL(sod_ops, CPU, m) {
  m.impl("bce_ssim_iou_loss", TORCH_BOX(&bce_ssim_iou_loss));
  m.impl("bce_ssim_iou_loss_backward", TORCH_BOX(&bce_ssim_iou_loss_backward));
}

}  // namespace sod_ops

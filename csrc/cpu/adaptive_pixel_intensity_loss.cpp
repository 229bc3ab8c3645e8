// The adaptive pixel intensity loss on the CPU: threads and memory. The arithmetic stands in
// ../math/adaptive_pixel_intensity_loss.h.
#include "../adaptive_pixel_intensity_loss.h"

#include <atomic>
#include <tuple>

#include "../simd/adaptive_pixel_intensity_loss.h"
#include "heads.h"

namespace sod_ops {
namespace {

using math::IntensitySums;
using torch::stable::Tensor;

constexpr int64_t kSmall = 3, kMedium = 15, kLarge = 31;

// The map of a sample holds its pixels' weights.
template <typename Acc>
class IntensityPass : public HeadsPass<Acc, IntensitySums> {
  using Base = HeadsPass<Acc, IntensitySums>;

 public:
  static constexpr int64_t kMaps = 1;

  struct Worker {
    BoxBand<Acc> small, medium, large;
    typename Base::RowBuffers rows;
  };

  IntensityPass(const IntensityCall& call, const Bands& bands, const Tensor* grad_output,
                const std::vector<Tensor>& gradients)
      : Base(call, bands, grad_output, gradients),
        call_(call),
        band_weights_(static_cast<size_t>(bands.count)),
        weights_(static_cast<size_t>(call.samples)) {}

  Worker worker() const {
    const auto box = [&](int64_t kernel_size) {
      return BoxBand<Acc>(call_.height, call_.width, kernel_size, this->bands_.rows);
    };
    return {box(kSmall), box(kMedium), box(kLarge), this->row_buffers()};
  }

  void sums(const Bands::Band& band, int64_t number, Acc* map, Worker& worker) {
    const auto read = [&](int64_t y) { return this->mask_.row(band.plane, y, worker.rows.mask.get()); };
    for (auto* box : {&worker.small, &worker.medium, &worker.large}) box->start(band.begin);
    const int64_t stride = worker.small.stride();
    bool outside = false;
    for (int64_t first = band.begin; first < band.end; first += worker.small.group()) {
      const int64_t count = std::min(worker.small.group(), band.end - first);
      const Acc* small = worker.small.next(count, read);
      const Acc* medium = worker.medium.next(count, read);
      const Acc* large = worker.large.next(count, read);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t y = first + i, at = i * stride;
        const Acc* mask = read(y);
        Acc* weights = map + y * call_.width;
        band_weights_[static_cast<size_t>(number)] +=
            kernels().weigh(small + at, medium + at, large + at, mask, call_.width, weights);
        this->add_row(band, number, y, worker.rows, [&](const Acc* probabilities) {
          return kernels().sums[call_.published](probabilities, mask, weights, call_.width, outside);
        });
      }
    }
    if (outside) outside_ = true;
  }

  void finish(int64_t sample) {
    Base::finish(sample);
    const int64_t begin = sample * this->bands_.per_plane;
    for (int64_t i = begin; i < begin + this->bands_.per_plane; ++i) {
      weights_[static_cast<size_t>(sample)] += band_weights_[static_cast<size_t>(i)];
    }
  }

  void derive(const Bands::Band& band, const Acc* map, Worker& worker) {
    double cross_entropy = 0, error = 0;
    for (int64_t b = 0; call_.published && b < call_.samples; ++b) {
      const auto norms = math::intensity_norms(weights(b), call_.pixels());
      const double scale = 0.7 * this->gradient(b) * weights(b) / (call_.pixels() * static_cast<double>(call_.samples));
      cross_entropy += scale / norms.cross_entropy;
      error += scale / norms.absolute_error;
    }
    this->derive_rows(
        band, worker.rows,
        [&](int64_t h) {
          const double weight = this->weight(h);
          return math::intensity_coefficients<Acc>(this->of(band.plane, h), weights(band.plane), call_.pixels(),
                                                   weight * this->gradient(band.plane), weight * cross_entropy,
                                                   weight * error, call_.published);
        },
        [&](const auto& coefficients, const Acc* probabilities, const Acc* mask, int64_t y, Acc* to) {
          kernels().derivative(coefficients, probabilities, mask, map + y * call_.width, call_.width, to);
        });
  }

  std::vector<double> losses() {
    STD_TORCH_CHECK(!outside_, call_.op, ": probabilities must be in [0, 1]");
    std::vector<double> losses(static_cast<size_t>(call_.samples), 0.0);
    const double all = call_.pixels() * static_cast<double>(call_.samples);
    for (int64_t h = 0; h < this->heads_; ++h) {
      double cross_entropy = 0, error = 0;
      for (int64_t b = 0; b < call_.samples; ++b) {
        cross_entropy += this->of(b, h).cross_entropy / all;
        error += this->of(b, h).absolute_error / all;
      }
      for (int64_t b = 0; b < call_.samples; ++b) {
        IntensitySums<double> sums = this->of(b, h);
        if (call_.published) {
          sums.cross_entropy = weights(b) * cross_entropy;
          sums.absolute_error = weights(b) * error;
        }
        losses[static_cast<size_t>(b)] += this->weight(h) * math::intensity_loss(sums, weights(b), call_.pixels());
      }
    }
    return losses;
  }

 private:
  static const IntensityKernels<Acc>& kernels() {
    if constexpr (std::is_same_v<Acc, float>) return intensity_kernels().float32;
    if constexpr (std::is_same_v<Acc, double>) return intensity_kernels().float64;
  }

  double weights(int64_t sample) const { return weights_[static_cast<size_t>(sample)]; }

  const IntensityCall& call_;
  std::atomic<bool> outside_ = false;
  std::vector<double> band_weights_;  // [bands]: sums of the pixels' weights
  std::vector<double> weights_;       // [samples]
};

// Writes the loss, if it is wanted, and the gradients of the heads, if there are any.
void run(const IntensityCall& call, const Tensor* grad_output, const Tensor* loss,
         const std::vector<Tensor>& gradients) {
  for_accumulator(call.dtype, [&](auto* type) {
    using Acc = std::remove_pointer_t<decltype(type)>;
    const Bands bands(call.samples, call.height, kLarge);
    IntensityPass<Acc> pass(call, bands, grad_output, gradients);
    // As published, a pixel's derivative depends on the weights of all samples.
    call.published ? run_together<Acc>(call, bands, !gradients.empty(), pass)
                   : run_passes<Acc>(call, bands, !gradients.empty(), pass);
    if (loss != nullptr) write_loss(call, pass.losses(), *loss);
  });
}

// The loss, and its gradient by each head where it is a mean or a sum and `with_gradient` holds, otherwise no
// gradients.
std::tuple<Tensor, std::vector<Tensor>> adaptive_pixel_intensity_loss(std::vector<Tensor> probabilities,
                                                                      const Tensor& mask, bool as_published,
                                                                      std::vector<double> weights, int64_t reduction,
                                                                      bool with_gradient) {
  const IntensityCall call(probabilities, mask, as_published, weights, reduction);
  Tensor loss = call.empty_loss();
  std::vector<Tensor> gradients = call.empty_gradients(with_gradient && call.reduces());
  run(call, nullptr, &loss, gradients);
  return {loss, gradients};
}

// The gradient by each head.
std::vector<Tensor> adaptive_pixel_intensity_loss_backward(const Tensor& grad_output, std::vector<Tensor> probabilities,
                                                           const Tensor& mask, bool as_published,
                                                           std::vector<double> weights, int64_t reduction) {
  const IntensityCall call(probabilities, mask, as_published, weights, reduction);
  call.check_grad_output(grad_output);
  std::vector<Tensor> gradients = call.empty_gradients(true);
  run(call, &grad_output, nullptr, gradients);
  return gradients;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sod_ops, CPU, m) {
  m.impl("adaptive_pixel_intensity_loss", TORCH_BOX(&adaptive_pixel_intensity_loss));
  m.impl("adaptive_pixel_intensity_loss_backward", TORCH_BOX(&adaptive_pixel_intensity_loss_backward));
}

}  // namespace sod_ops

// The structure loss on the CPU: threads and memory. The arithmetic stands in ../math/structure_loss.h.
#include "../structure_loss.h"

#include <tuple>

#include "../simd/structure_loss.h"
#include "heads.h"

namespace sod_ops {
namespace {

using math::StructureSums;
using torch::stable::Tensor;

// The map of a sample holds its pixels' weights: the sums of every head are taken with them, and the derivatives too.
template <typename Acc>
class StructurePass : public HeadsPass<Acc, StructureSums> {
  using Base = HeadsPass<Acc, StructureSums>;

 public:
  static constexpr int64_t kMaps = 1;

  struct Worker {
    BoxBand<Acc> box;
    typename Base::RowBuffers rows;
  };

  StructurePass(const StructureCall& call, const Bands& bands, const Tensor* grad_output,
                const std::vector<Tensor>& gradients)
      : Base(call, bands, grad_output, gradients),
        call_(call),
        band_weights_(static_cast<size_t>(bands.count)),
        weights_(static_cast<size_t>(call.samples)) {
    for (double value : this->gradient_) batch_ += value / (call.pixels() * static_cast<double>(call.samples));
  }

  Worker worker() const {
    return {{call_.height, call_.width, call_.kernel_size, this->bands_.rows}, this->row_buffers()};
  }

  void sums(const Bands::Band& band, int64_t number, Acc* map, Worker& worker) {
    const auto read = [&](int64_t y) { return this->mask_.row(band.plane, y, worker.rows.mask.get()); };
    worker.box.start(band.begin);
    for (int64_t first = band.begin; first < band.end; first += worker.box.group()) {
      const int64_t count = std::min(worker.box.group(), band.end - first);
      const Acc* averages = worker.box.next(count, read);
      for (int64_t y = first; y < first + count; ++y, averages += worker.box.stride()) {
        const Acc* mask = read(y);
        Acc* weights = map + y * call_.width;
        band_weights_[static_cast<size_t>(number)] += kernels().weigh(averages, mask, call_.width, weights);
        this->add_row(band, number, y, worker.rows, [&](const Acc* logits) {
          return kernels().sums[call_.published](logits, mask, weights, call_.width);
        });
      }
    }
  }

  void finish(int64_t sample) {
    Base::finish(sample);
    const int64_t begin = sample * this->bands_.per_plane;
    for (int64_t i = begin; i < begin + this->bands_.per_plane; ++i) {
      weights_[static_cast<size_t>(sample)] += band_weights_[static_cast<size_t>(i)];
    }
  }

  void derive(const Bands::Band& band, const Acc* map, Worker& worker) {
    this->derive_rows(
        band, worker.rows,
        [&](int64_t h) {
          const double weight = this->weight(h);
          return math::structure_coefficients<Acc>(this->of(band.plane, h), weights_[static_cast<size_t>(band.plane)],
                                                   weight * this->gradient(band.plane), weight * batch_,
                                                   call_.published);
        },
        [&](const auto& coefficients, const Acc* logits, const Acc* mask, int64_t y, Acc* to) {
          kernels().derivative(coefficients, logits, mask, map + y * call_.width, call_.width, to);
        });
  }

  std::vector<double> losses() {
    std::vector<double> losses(static_cast<size_t>(call_.samples), 0.0);
    for (int64_t h = 0; h < this->heads_; ++h) {
      double mean = 0;
      for (int64_t b = 0; b < call_.samples; ++b) {
        mean += terms(b, h).cross_entropy / static_cast<double>(call_.samples);
      }
      for (int64_t b = 0; b < call_.samples; ++b) {
        const auto of_sample = terms(b, h);
        const double cross_entropy = call_.published ? mean : of_sample.cross_entropy;
        losses[static_cast<size_t>(b)] += this->weight(h) * (cross_entropy + of_sample.overlap);
      }
    }
    return losses;
  }

 private:
  static const StructureKernels<Acc>& kernels() {
    if constexpr (std::is_same_v<Acc, float>) return structure_kernels().float32;
    if constexpr (std::is_same_v<Acc, double>) return structure_kernels().float64;
  }

  math::StructureTerms terms(int64_t sample, int64_t head) {
    return math::structure_terms(this->of(sample, head), weights_[static_cast<size_t>(sample)], call_.pixels(),
                                 call_.published);
  }

  const StructureCall& call_;
  double batch_ = 0;
  std::vector<double> band_weights_;  // [bands]: sums of the pixels' weights
  std::vector<double> weights_;       // [samples]
};

// Writes the loss, if it is wanted, and the gradients of the heads, if there are any.
void run(const StructureCall& call, const Tensor* grad_output, const Tensor* loss,
         const std::vector<Tensor>& gradients) {
  for_accumulator(call.dtype, [&](auto* type) {
    using Acc = std::remove_pointer_t<decltype(type)>;
    const Bands bands(call.samples, call.height, call.kernel_size);
    StructurePass<Acc> pass(call, bands, grad_output, gradients);
    run_passes<Acc>(call, bands, !gradients.empty(), pass);
    if (loss != nullptr) write_loss(call, pass.losses(), *loss);
  });
}

// The loss, and its gradient by each head where it is a mean or a sum and `with_gradient` holds, otherwise no
// gradients.
std::tuple<Tensor, std::vector<Tensor>> structure_loss(std::vector<Tensor> logits, const Tensor& mask,
                                                       int64_t kernel_size, bool as_published,
                                                       std::vector<double> weights, int64_t reduction,
                                                       bool with_gradient) {
  const StructureCall call(logits, mask, kernel_size, as_published, weights, reduction);
  Tensor loss = call.empty_loss();
  std::vector<Tensor> gradients = call.empty_gradients(with_gradient && call.reduces());
  run(call, nullptr, &loss, gradients);
  return {loss, gradients};
}

// The gradient by each head.
std::vector<Tensor> structure_loss_backward(const Tensor& grad_output, std::vector<Tensor> logits, const Tensor& mask,
                                            int64_t kernel_size, bool as_published, std::vector<double> weights,
                                            int64_t reduction) {
  const StructureCall call(logits, mask, kernel_size, as_published, weights, reduction);
  call.check_grad_output(grad_output);
  std::vector<Tensor> gradients = call.empty_gradients(true);
  run(call, &grad_output, nullptr, gradients);
  return gradients;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sod_ops, CPU, m) {
  m.impl("structure_loss", TORCH_BOX(&structure_loss));
  m.impl("structure_loss_backward", TORCH_BOX(&structure_loss_backward));
}

}  // namespace sod_ops

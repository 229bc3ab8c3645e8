// The structure loss on the CPU: threads and memory. The arithmetic stands in ../math/structure_loss.h.
#include "../structure_loss.h"

#include <tuple>

#include "../simd/structure_loss.h"
#include "heads.h"

namespace sod_ops {
namespace {

using math::StructureSums;
using torch::stable::Tensor;

template <typename Acc>
const StructureKernels<Acc>& kernels_of() {
  if constexpr (std::is_same_v<Acc, float>) return structure_kernels().float32;
  if constexpr (std::is_same_v<Acc, double>) return structure_kernels().float64;
}

void add(const StructureSums<double>& from, StructureSums<double>& to) {
  to.cross_entropy += from.cross_entropy;
  to.intersection += from.intersection;
  to.total += from.total;
}

// The map of a sample holds its pixels' weights, which the first head's sums are taken with and the others' too.
template <typename Acc>
class StructurePass {
 public:
  struct Worker {
    BoxBand<Acc> box;
    std::unique_ptr<Acc[]> mask, head, gradient;  // a row
  };

  // `gradient` is that of each sample's loss; `gradients`, of the heads, may be empty.
  StructurePass(const StructureCall& call, const Bands& bands, std::vector<double> gradient,
                const std::vector<Tensor>& gradients)
      : call_(call),
        bands_(bands),
        heads_(static_cast<int64_t>(call.heads.size())),
        mask_(call.mask),
        gradient_(std::move(gradient)),
        band_sums_(static_cast<size_t>(bands.count * heads_)),
        band_weights_(static_cast<size_t>(bands.count)),
        sums_(static_cast<size_t>(call.samples * heads_)),
        weights_(static_cast<size_t>(call.samples)) {
    for (const Tensor& head : call.heads) logits_.emplace_back(head);
    for (const Tensor& tensor : gradients) gradients_.emplace_back(tensor);
    for (double value : gradient_) batch_ += value / (call.pixels() * static_cast<double>(call.samples));
  }

  Worker worker() const {
    return {{call_.height, call_.width, call_.kernel_size, bands_.rows},
            scratch<Acc>(call_.width),
            scratch<Acc>(call_.width),
            scratch<Acc>(call_.width)};
  }

  void sums(const Bands::Band& band, int64_t number, Acc* map, Worker& worker) {
    const auto& kernels = kernels_of<Acc>();
    const auto read = [&](int64_t y) { return mask_.row(band.plane, y, worker.mask.get()); };
    StructureSums<double>* sums = band_sums_.data() + number * heads_;
    worker.box.start(band.begin);
    for (int64_t first = band.begin; first < band.end; first += worker.box.group()) {
      const int64_t count = std::min(worker.box.group(), band.end - first);
      const Acc* averages = worker.box.next(count, read);
      for (int64_t y = first; y < first + count; ++y) {
        const Acc* row = read(y);
        Acc* weights = map + y * call_.width;
        band_weights_[static_cast<size_t>(number)] +=
            kernels.weigh(averages + (y - first) * worker.box.stride(), row, call_.width, weights);
        for (int64_t h = 0; h < heads_; ++h) {
          const Acc* logits = logits_[static_cast<size_t>(h)].row(band.plane, y, worker.head.get());
          const auto of_row = kernels.sums[call_.published](logits, row, weights, call_.width);
          add({of_row.cross_entropy, of_row.intersection, of_row.total}, sums[h]);
        }
      }
    }
  }

  void finish(int64_t sample) {
    for (int64_t i = sample * bands_.per_plane; i < (sample + 1) * bands_.per_plane; ++i) {
      weights_[static_cast<size_t>(sample)] += band_weights_[static_cast<size_t>(i)];
      for (int64_t h = 0; h < heads_; ++h) add(band_sums_[static_cast<size_t>(i * heads_ + h)], of(sample, h));
    }
  }

  void derive(const Bands::Band& band, const Acc* map, Worker& worker) {
    for (int64_t h = 0; h < heads_; ++h) {
      const double weight = call_.weights[static_cast<size_t>(h)];
      const auto coefficients = math::structure_coefficients<Acc>(
          of(band.plane, h), weights_[static_cast<size_t>(band.plane)],
          weight * gradient_[static_cast<size_t>(band.plane)], weight * batch_, call_.published);
      const auto& source = logits_[static_cast<size_t>(h)];
      const auto& sink = gradients_[static_cast<size_t>(h)];
      for (int64_t y = band.begin; y < band.end; ++y) {
        Acc* to = sink.at(band.plane, y, worker.gradient.get());
        kernels_of<Acc>().derivative(coefficients, source.row(band.plane, y, worker.head.get()),
                                     mask_.row(band.plane, y, worker.mask.get()), map + y * call_.width, call_.width,
                                     to);
        sink.write(band.plane, y, to);
      }
    }
  }

  std::vector<double> losses() {
    std::vector<double> losses(static_cast<size_t>(call_.samples), 0.0);
    for (int64_t h = 0; h < heads_; ++h) {
      const double weight = call_.weights[static_cast<size_t>(h)];
      double mean = 0;
      for (int64_t b = 0; b < call_.samples; ++b) mean += terms(b, h).cross_entropy / static_cast<double>(call_.samples);
      for (int64_t b = 0; b < call_.samples; ++b) {
        const auto of_sample = terms(b, h);
        losses[static_cast<size_t>(b)] +=
            weight * ((call_.published ? mean : of_sample.cross_entropy) + of_sample.overlap);
      }
    }
    return losses;
  }

 private:
  StructureSums<double>& of(int64_t sample, int64_t head) { return sums_[static_cast<size_t>(sample * heads_ + head)]; }

  math::StructureTerms terms(int64_t sample, int64_t head) {
    return math::structure_terms(of(sample, head), weights_[static_cast<size_t>(sample)], call_.pixels(),
                                 call_.published);
  }

  const StructureCall& call_;
  const Bands& bands_;
  int64_t heads_;
  SourcePlanes<Acc> mask_;
  std::vector<SourcePlanes<Acc>> logits_;
  std::vector<SinkPlanes<Acc>> gradients_;
  std::vector<double> gradient_;
  double batch_ = 0;
  std::vector<StructureSums<double>> band_sums_;  // [bands, heads]
  std::vector<double> band_weights_;              // [bands]
  std::vector<StructureSums<double>> sums_;       // [samples, heads]
  std::vector<double> weights_;                   // [samples]
};

// Writes the loss, if it is wanted, and the gradients of the heads, if there are any.
void run(const StructureCall& call, const Tensor* grad_output, const Tensor* loss,
         const std::vector<Tensor>& gradients) {
  for_accumulator(call.dtype, [&](auto* type) {
    using Acc = std::remove_pointer_t<decltype(type)>;
    const Bands bands(call.samples, call.height, call.kernel_size);
    StructurePass<Acc> pass(call, bands, gradients_of_samples(call, grad_output), gradients);
    if (call.samples > 0 && call.width > 0) run_passes<Acc>(call, bands, !gradients.empty(), pass);
    if (loss != nullptr) write_loss(call, pass.losses(), *loss);
  });
}

// The loss, and its gradient by each head where it is a mean or a sum and `with_gradient` holds, otherwise no gradients.
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

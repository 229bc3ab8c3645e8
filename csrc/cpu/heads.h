// How the losses of several heads against one mask go over a batch on the CPU. A loss is a function of sums over each
// sample; once these are known, so are the derivatives.
#pragma once

#include "../heads.h"
#include "box_band.h"
#include "parallel.h"
#include "planes.h"
#include "samples.h"

namespace sod_ops {

// What the passes of these losses have in common. Sums<T> is what a pixel adds to, for each head, and has add_to().
template <typename Acc, template <typename> typename Sums>
class HeadsPass {
 public:
  // A row of each, for what doesn't lie in memory as it is wanted.
  struct RowBuffers {
    std::unique_ptr<Acc[]> mask, head, gradient;
  };

  // `gradients`, of the heads, may be empty: then only sums are wanted.
  HeadsPass(const HeadsCall& call, const Bands& bands, const torch::stable::Tensor* grad_output,
            const std::vector<torch::stable::Tensor>& gradients)
      : bands_(bands),
        heads_(static_cast<int64_t>(call.heads.size())),
        gradient_(gradients_of_samples(call, grad_output)),
        mask_(call.mask),
        width_(call.width),
        weights_(call.weights),
        band_sums_(static_cast<size_t>(bands.count * heads_)),
        sums_(static_cast<size_t>(call.samples * heads_)) {
    for (const auto& head : call.heads) logits_.emplace_back(head);
    for (const auto& tensor : gradients) gradients_.emplace_back(tensor);
  }

  RowBuffers row_buffers() const { return {scratch<Acc>(width_), scratch<Acc>(width_), scratch<Acc>(width_)}; }

  // Adds up what the bands of a sample have given.
  void finish(int64_t sample) {
    for (int64_t i = sample * bands_.per_plane * heads_; i < (sample + 1) * bands_.per_plane * heads_; ++i) {
      add_to(band_sums_[static_cast<size_t>(i)], of(sample, i % heads_));
    }
  }

  Sums<double>& of(int64_t sample, int64_t head) { return sums_[static_cast<size_t>(sample * heads_ + head)]; }

 protected:
  // Adds what sum(logits) gives for each head's row y to its sums in band number `number`.
  template <typename Sum>
  void add_row(const Bands::Band& band, int64_t number, int64_t y, RowBuffers& rows, const Sum& sum) {
    for (int64_t h = 0; h < heads_; ++h) {
      const Acc* logits = logits_[static_cast<size_t>(h)].row(band.plane, y, rows.head.get());
      add_to(sum(logits), band_sums_[static_cast<size_t>(number * heads_ + h)]);
    }
  }

  // Writes a band's gradients: derivative(coefficients(h), logits, mask, y, to) for each head's row y.
  template <typename Coefficients, typename Derivative>
  void derive_rows(const Bands::Band& band, RowBuffers& rows, const Coefficients& coefficients,
                   const Derivative& derivative) {
    for (int64_t h = 0; h < heads_; ++h) {
      const auto of_head = coefficients(h);
      const auto& source = logits_[static_cast<size_t>(h)];
      const auto& sink = gradients_[static_cast<size_t>(h)];
      for (int64_t y = band.begin; y < band.end; ++y) {
        Acc* to = sink.at(band.plane, y, rows.gradient.get());
        derivative(of_head, source.row(band.plane, y, rows.head.get()), mask_.row(band.plane, y, rows.mask.get()), y,
                   to);
        sink.write(band.plane, y, to);
      }
    }
  }

  const SourcePlanes<Acc>& head(int64_t head) const { return logits_[static_cast<size_t>(head)]; }
  const SinkPlanes<Acc>& gradient_of(int64_t head) const { return gradients_[static_cast<size_t>(head)]; }
  double weight(int64_t head) const { return weights_[static_cast<size_t>(head)]; }
  double gradient(int64_t sample) const { return gradient_[static_cast<size_t>(sample)]; }

  const Bands& bands_;
  int64_t heads_;
  std::vector<double> gradient_;  // of every sample's loss
  SourcePlanes<Acc> mask_;

 private:
  int64_t width_;
  const std::vector<double>& weights_;
  std::vector<SourcePlanes<Acc>> logits_;
  std::vector<SinkPlanes<Acc>> gradients_;
  std::vector<Sums<double>> band_sums_;  // [bands, heads]
  std::vector<Sums<double>> sums_;       // [samples, heads]
};

// Runs a loss's passes over every sample: pass.sums(band, i, map, worker) for each of its bands, of which this is
// number i in the batch, pass.finish(sample) and, where `second`, pass.derive(band, map, worker) for each band again.
// `map` is memory for Pass::kMaps numbers per pixel of the sample, and a worker, which pass.worker() makes, what one
// thread works with.
//
// Where there are enough samples for all threads, each takes some, and the second pass finds in its caches what the
// first has read; otherwise all threads share each sample. Either way a sample is taken in the same bands, so that the
// result is the same.
template <typename Acc, typename Pass>
void run_passes(const HeadsCall& call, const Bands& bands, bool second, Pass& pass) {
  const int64_t samples = call.samples, per_sample = bands.per_plane;
  if (samples == 0 || call.width == 0) return;
  const int64_t elements = bands.rows * call.width * static_cast<int64_t>(call.heads.size());
  const int64_t map_size = Pass::kMaps * call.height * call.width;
  if (samples >= static_cast<int64_t>(torch::stable::get_num_threads())) {
    return parallel_tasks(samples, elements * per_sample, [&](int64_t first, int64_t last) {
      const auto map = scratch<Acc>(map_size);
      auto worker = pass.worker();
      for (int64_t b = first; b < last; ++b) {
        const int64_t begin = b * per_sample, end = begin + per_sample;
        for (int64_t i = begin; i < end; ++i) pass.sums(bands[i], i, map.get(), worker);
        pass.finish(b);
        for (int64_t i = begin; second && i < end; ++i) pass.derive(bands[i], map.get(), worker);
      }
    });
  }
  const auto map = scratch<Acc>(map_size);
  for (int64_t b = 0; b < samples; ++b) {
    const int64_t begin = b * per_sample;
    parallel_tasks(per_sample, elements, [&](int64_t first, int64_t last) {
      auto worker = pass.worker();
      for (int64_t i = begin + first; i < begin + last; ++i) pass.sums(bands[i], i, map.get(), worker);
    });
    pass.finish(b);
    if (!second) continue;
    parallel_tasks(per_sample, elements, [&](int64_t first, int64_t last) {
      auto worker = pass.worker();
      for (int64_t i = begin + first; i < begin + last; ++i) pass.derive(bands[i], map.get(), worker);
    });
  }
}

// The same where a derivative depends on the sums of all samples: with a map for each.
template <typename Acc, typename Pass>
void run_together(const HeadsCall& call, const Bands& bands, bool second, Pass& pass) {
  if (call.samples == 0 || call.width == 0) return;
  const int64_t elements = bands.rows * call.width * static_cast<int64_t>(call.heads.size());
  const int64_t map_size = Pass::kMaps * call.height * call.width;
  const auto maps = scratch<Acc>(call.samples * map_size);
  parallel_tasks(bands.count, elements, [&](int64_t first, int64_t last) {
    auto worker = pass.worker();
    for (int64_t i = first; i < last; ++i) {
      pass.sums(bands[i], i, maps.get() + bands[i].plane * map_size, worker);
    }
  });
  for (int64_t b = 0; b < call.samples; ++b) pass.finish(b);
  if (!second) return;
  parallel_tasks(bands.count, elements, [&](int64_t first, int64_t last) {
    auto worker = pass.worker();
    for (int64_t i = first; i < last; ++i) {
      pass.derive(bands[i], maps.get() + bands[i].plane * map_size, worker);
    }
  });
}

}  // namespace sod_ops

// How the losses of several heads against one mask go over a batch on the CPU. A loss is a function of sums over each
// sample; once these are known, so are the derivatives.
#pragma once

#include "../heads.h"
#include "box_band.h"
#include "parallel.h"
#include "planes.h"

namespace sod_ops {

// The gradient of every sample's loss: what came in (1 where nothing did), times the factor of a mean.
inline std::vector<double> gradients_of_samples(const HeadsCall& call, const torch::stable::Tensor* grad_output) {
  std::vector<double> gradients(static_cast<size_t>(call.samples), 1.0);
  if (grad_output != nullptr && call.samples > 0) {
    const int64_t step = call.reduces() ? 0 : grad_output->stride(0);
    converters<double>().read[static_cast<int>(grad_output->scalar_type())](
        grad_output->data_ptr(), {0, step}, call.samples, 0, call.samples, gradients.data());
  }
  for (double& gradient : gradients) gradient *= call.factor();
  return gradients;
}

// Writes the loss from the samples' losses.
inline void write_loss(const HeadsCall& call, const std::vector<double>& of_samples,
                       const torch::stable::Tensor& loss) {
  const auto write = converters<double>().write[static_cast<int>(loss.scalar_type())];
  if (!call.reduces()) return write(of_samples.data(), call.samples, loss.data_ptr(), 0);
  double sum = 0;
  for (double value : of_samples) sum += value;
  // The mean of nothing is NaN.
  const double value = sum * call.factor();
  write(&value, 1, loss.data_ptr(), 0);
}

// Runs a loss's passes over every sample: pass.sums(band, i, map, worker) for each of its bands, of which this is number
// i in the batch, pass.finish(sample) and, where `second`, pass.derive(band, map, worker) for each band again. `map` is
// memory for a number per pixel of the sample, and a worker, which pass.worker() makes, what one thread works with.
//
// Where there are enough samples for all threads, each takes some, and the second pass finds in its caches what the
// first has read; otherwise all threads share each sample. Either way a sample is taken in the same bands, so that the
// result is the same.
template <typename Acc, typename Pass>
void run_passes(const HeadsCall& call, const Bands& bands, bool second, Pass& pass) {
  const int64_t samples = call.samples, per_sample = bands.per_plane;
  const int64_t elements = bands.rows * call.width * static_cast<int64_t>(call.heads.size());
  if (samples >= static_cast<int64_t>(torch::stable::get_num_threads())) {
    return parallel_tasks(samples, elements * per_sample, [&](int64_t first, int64_t last) {
      const auto map = scratch<Acc>(call.height * call.width);
      auto worker = pass.worker();
      for (int64_t b = first; b < last; ++b) {
        const int64_t begin = b * per_sample, end = begin + per_sample;
        for (int64_t i = begin; i < end; ++i) pass.sums(bands[i], i, map.get(), worker);
        pass.finish(b);
        for (int64_t i = begin; second && i < end; ++i) pass.derive(bands[i], map.get(), worker);
      }
    });
  }
  const auto map = scratch<Acc>(call.height * call.width);
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

}  // namespace sod_ops

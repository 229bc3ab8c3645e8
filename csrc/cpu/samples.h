// From samples' losses to the result of an operator on the CPU, and from its gradient to theirs.
#pragma once

#include <vector>

#include "../loss.h"
#include "elements.h"

namespace sod_ops {

// The gradient of every sample's loss: what came in (1 where nothing did), times the factor of a mean.
inline std::vector<double> gradients_of_samples(const SamplesCall& call, const torch::stable::Tensor* grad_output) {
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
inline void write_loss(const SamplesCall& call, const std::vector<double>& of_samples,
                       const torch::stable::Tensor& loss) {
  const auto write = converters<double>().write[static_cast<int>(loss.scalar_type())];
  if (!call.reduces()) return write(of_samples.data(), call.samples, loss.data_ptr(), 0, 1, false);
  double sum = 0;
  for (double value : of_samples) sum += value;
  // The mean of nothing is NaN.
  const double value = sum * call.factor();
  write(&value, 1, loss.data_ptr(), 0, 1, false);
}

}  // namespace sod_ops

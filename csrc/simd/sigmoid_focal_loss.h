// Sigmoid focal loss over a run of elements. cpu/sigmoid_focal_loss.cpp calls it for each.
#pragma once

#include <cstdint>

#include "../math/focal_loss.h"
#include "capability.h"

namespace sod_ops {

template <typename Acc>
struct SigmoidFocalParameters {
  Acc positive;  // weight of a target 1, times the factor of a mean and of the incoming gradient of a mean or a sum
  Acc negative;  // the same of a target 0
  Acc gamma;
};

template <typename Acc>
struct SigmoidFocalKernels {
  // Writes the n losses to `loss` and their derivatives, times `upstream` where that is not null, to `derivative`,
  // where these are not null. Returns the sum of the losses.
  using Run = Acc (*)(const SigmoidFocalParameters<Acc>& p, const Acc* x, const Acc* y, int64_t n, Acc* loss,
                      const Acc* upstream, Acc* derivative);
  Run run[4];  // by math::Focus
};

struct AllSigmoidFocalKernels {
  SigmoidFocalKernels<float> float32;
  SigmoidFocalKernels<double> float64;
};

SOD_OPS_KERNEL_TABLE(AllSigmoidFocalKernels, sigmoid_focal_kernels)

}  // namespace sod_ops

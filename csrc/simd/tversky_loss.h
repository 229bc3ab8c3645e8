// The Tversky loss along a row of pixels. cpu/tversky_loss.cpp calls it for each.
#pragma once

#include <cstdint>

#include "../math/tversky_loss.h"
#include "capability.h"

namespace sod_ops {

template <typename Acc>
struct TverskyKernels {
  // The sums over n pixels.
  math::TverskySums<Acc> (*sums)(const Acc* x, const Acc* y, int64_t n);

  // The derivatives at n pixels.
  void (*derivative)(const math::TverskyCoefficients<Acc>& coefficients, const Acc* x, const Acc* y, int64_t n,
                     Acc* to);
};

struct AllTverskyKernels {
  TverskyKernels<float> float32;
  TverskyKernels<double> float64;
};

SOD_OPS_KERNEL_TABLE(AllTverskyKernels, tversky_kernels)

}  // namespace sod_ops

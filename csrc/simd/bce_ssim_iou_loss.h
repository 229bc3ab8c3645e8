// BASNet's hybrid loss along a row of pixels, but for its structural similarity (ssim.h). cpu/bce_ssim_iou_loss.cpp
// calls it for each.
#pragma once

#include <cstdint>

#include "../math/bce_ssim_iou_loss.h"
#include "capability.h"

namespace sod_ops {

template <typename Acc>
struct HybridKernels {
  // The sums over n pixels. `outside` becomes true where a probability is outside [0, 1].
  math::HybridSums<Acc> (*sums)(const Acc* p, const Acc* y, int64_t n, bool& outside);

  // Adds the derivatives at n pixels to `similarity`, those of the similarity.
  void (*derivative)(const math::HybridCoefficients<Acc>& coefficients, const Acc* p, const Acc* y, int64_t n,
                     Acc* similarity);
};

struct AllHybridKernels {
  HybridKernels<float> float32;
  HybridKernels<double> float64;
};

SOD_OPS_KERNEL_TABLE(AllHybridKernels, hybrid_kernels)

}  // namespace sod_ops

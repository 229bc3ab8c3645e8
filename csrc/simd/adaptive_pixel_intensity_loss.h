// The adaptive pixel intensity loss along a row of pixels. cpu/adaptive_pixel_intensity_loss.cpp calls it for each.
#pragma once

#include <cstdint>

#include "../math/adaptive_pixel_intensity_loss.h"
#include "capability.h"

namespace sod_ops {

template <typename Acc>
struct IntensityKernels {
  // Writes the n weights of pixels y in whose three surroundings the averages are those, and returns their sum.
  Acc (*weigh)(const Acc* small, const Acc* medium, const Acc* large, const Acc* y, int64_t n, Acc* weights);

  // The sums over n pixels; [1] as published. `outside` becomes true where a probability is outside of [0, 1].
  math::IntensitySums<Acc> (*sums[2])(const Acc* p, const Acc* y, const Acc* weights, int64_t n, bool& outside);

  // The derivatives at n pixels.
  void (*derivative)(const math::IntensityCoefficients<Acc>& coefficients, const Acc* p, const Acc* y,
                     const Acc* weights, int64_t n, Acc* to);
};

struct AllIntensityKernels {
  IntensityKernels<float> float32;
  IntensityKernels<double> float64;
};

SOD_OPS_KERNEL_TABLE(AllIntensityKernels, intensity_kernels)

}  // namespace sod_ops

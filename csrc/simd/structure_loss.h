// The structure loss along a row of pixels. cpu/structure_loss.cpp calls it for each.
#pragma once

#include <cstdint>

#include "../math/structure_loss.h"
#include "capability.h"

namespace sod_ops {

template <typename Acc>
struct StructureKernels {
  // Writes the n weights of pixels y in whose surroundings the averages are those, and returns their sum.
  Acc (*weigh)(const Acc* averages, const Acc* y, int64_t n, Acc* weights);

  // The sums over n pixels; [1] as published.
  math::StructureSums<Acc> (*sums[2])(const Acc* x, const Acc* y, const Acc* weights, int64_t n);

  // The derivatives at n pixels.
  void (*derivative)(const math::StructureCoefficients<Acc>& coefficients, const Acc* x, const Acc* y,
                     const Acc* weights, int64_t n, Acc* to);
};

struct AllStructureKernels {
  StructureKernels<float> float32;
  StructureKernels<double> float64;
};

SOD_OPS_KERNEL_TABLE(AllStructureKernels, structure_kernels)

}  // namespace sod_ops

// Softmax focal loss of a block of positions. cpu/softmax_focal_loss.cpp calls it for each.
#pragma once

#include <cstdint>

#include "../math/focal_loss.h"
#include "capability.h"

namespace sod_ops {

// Logits lie in lines: planar, a line is a class and holds all positions; otherwise a line is a position and holds all
// classes.
template <typename Acc>
struct SoftmaxFocalBlock {
  int64_t positions;
  int64_t classes;
  Acc gamma;
  const Acc* const* logits;  // by line
  const Acc* targets;        // [positions]: a class, or -1, which is ignored
  const Acc* weights;        // [positions]: what the loss is multiplied with, and the derivatives too

  Acc* exponentials;  // scratch: lines of `stride` numbers, a multiple of a register; may be where the logits are
  int64_t stride;
  Acc* scratch;  // [3, positions rounded up to a register]

  Acc* losses;            // [positions rounded up to a register]
  Acc* const* gradients;  // by line, may be where the exponentials are; or null
};

template <typename Acc>
struct SoftmaxFocalKernels {
  using Run = void (*)(const SoftmaxFocalBlock<Acc>& block);
  Run planar[4];  // by math::Focus
  Run rows[4];
};

struct AllSoftmaxFocalKernels {
  SoftmaxFocalKernels<float> float32;
  SoftmaxFocalKernels<double> float64;
};

SOD_OPS_KERNEL_TABLE(AllSoftmaxFocalKernels, softmax_focal_kernels)

}  // namespace sod_ops

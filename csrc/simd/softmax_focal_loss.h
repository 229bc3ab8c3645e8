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
  const Acc* logits;  // by line; may be `values`
  int64_t logits_stride;
  Acc* values;     // by line: becomes the gradients
  int64_t stride;  // from line to line; planar, whole registers
  // By position, readable up to whole registers:
  const Acc* targets;   // a class, or -1 where the position is ignored
  const Acc* weights;   // what the loss is multiplied with, and its derivatives too
  const Acc* upstream;  // and the derivatives alone; or null
  Acc* losses;          // or null
  Acc* scratch;         // [3, positions in whole registers]
};

// Targets of positions, each of which is a class, the ignored index, or neither.
struct TargetCount {
  int64_t counted;  // not ignored
  int64_t classes;  // of those, classes
};

template <typename Acc>
struct SoftmaxFocalKernels {
  // Returns the sum of the losses.
  using Run = Acc (*)(const SoftmaxFocalBlock<Acc>& block);
  // By math::Focus; without and with the gradient.
  Run planar[4][2];
  Run rows[4][2];

  // Targets and weights as a block has them, from the weight of each class.
  void (*prepare)(const int64_t* numbers, int64_t n, int64_t ignore_index, const Acc* class_weights, Acc* targets,
                  Acc* weights);
};

struct AllSoftmaxFocalKernels {
  SoftmaxFocalKernels<float> float32;
  SoftmaxFocalKernels<double> float64;
  TargetCount (*count)(const int64_t* numbers, int64_t n, int64_t ignore_index, int64_t classes);
};

SOD_OPS_KERNEL_TABLE(AllSoftmaxFocalKernels, softmax_focal_kernels)

}  // namespace sod_ops

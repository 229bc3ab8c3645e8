// Copying boxes between the samples of a batch, a line at a time.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>

#include "capability.h"
#include "lines.h"

namespace sod_ops {

// x1, y1, x2, y2 of every sample, the latter two beyond the last pixel.
using CutBoxes = const int64_t (*)[4];

// Lines [begin, end), counted through all samples and planes, of a dense output whose line `begin` is at `to`.
template <typename T>
struct CutmixKernels {
  // Sample n of `images`, but of partner[n] within boxes[n]; past the caches (see cpu/cache.h) where asked for.
  void (*forward)(const Lines& lines, const T* images, const int64_t* partner, CutBoxes boxes, int64_t begin,
                  int64_t end, T* to, bool past_caches);
};

// The gradient: sample n of `grads` outside boxes[n], plus sample receiver[n] of them within that one's box.
template <typename T>
struct CutmixBackwardKernels {
  void (*backward)(const Lines& lines, const T* grads, const int64_t* receiver, CutBoxes boxes, int64_t begin,
                   int64_t end, T* to);
};

struct AllCutmixKernels {
  CutmixKernels<uint8_t> bytes;
  CutmixBackwardKernels<float> float32;
  CutmixBackwardKernels<double> float64;
  CutmixBackwardKernels<c10::BFloat16> bfloat16;
  CutmixBackwardKernels<c10::Half> float16;
};

SOD_OPS_KERNEL_TABLE(AllCutmixKernels, cutmix_kernels)

}  // namespace sod_ops

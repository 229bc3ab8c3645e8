// Averages over a square window around every pixel, in steps that cpu/box_band.h puts together.
//
// Along either axis, let blocks of k elements follow each other, k the window's length. A window that starts at element
// t of a block is the block's sum from t to its end and the next block's sum up to t: two additions for the running
// sums and one for the window, whatever k is. Nothing is ever subtracted, so that nothing drifts, and what is infinite
// or NaN reaches its own windows only.
#pragma once

#include <cstdint>

#include "capability.h"

namespace sod_ops {

template <typename Acc>
struct BoxFilterKernels {
  // Rows that `across` takes together: one for each lane of a register.
  int64_t group;

  // to = row + below; either may be null: zeros.
  void (*add)(const Acc* row, const Acc* below, int64_t n, Acc* to);

  // ahead += row, then to = behind + ahead; `row` may be null.
  void (*step)(const Acc* row, Acc* ahead, const Acc* behind, int64_t n, Acc* to);

  // The sums of windows of 2 half + 1 columns, times `scale`, in each of `group` rows that lie `stride` apart, a
  // multiple of `group`. `scratch` is 2 stride + 2 (2 half + 1) registers.
  void (*across)(const Acc* rows, int64_t stride, int64_t width, int64_t half, Acc scale, Acc* scratch, Acc* to);
};

struct AllBoxFilterKernels {
  BoxFilterKernels<float> float32;
  BoxFilterKernels<double> float64;
};

SOD_OPS_KERNEL_TABLE(AllBoxFilterKernels, box_filter_kernels)

}  // namespace sod_ops

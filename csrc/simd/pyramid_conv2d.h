// What upsampled branches add to a convolution's output, and its adjoint, for a block of channels of one sample.
// cpu/pyramid_conv2d.cpp calls them.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

#include "../math/interpolation.h"
#include "capability.h"

namespace sod_ops {

// One branch's products with the kernel's taps: [height, width, taps, C] of one sample, `pixel_step` numbers from pixel
// to pixel and `tap_step` from tap to tap, and where each row and column of the output, unshifted, reads.
template <typename Acc>
struct TapMap {
  Acc* data;
  int64_t height;
  int64_t width;
  int64_t pixel_step;
  int64_t tap_step;
  const math::Tap<Acc>* rows;
  const math::Tap<Acc>* columns;
};

// A map [C, H, W] of one sample by its steps: either columns or channels lie side by side.
template <typename T>
struct PlaneSteps {
  T* data;
  int64_t channel;
  int64_t row;
  int64_t column;
};

struct TapShape {
  int64_t channels;  // in the block, at most kTapBlock
  int64_t height;
  int64_t width;
  int64_t kernel;  // taps along each axis, odd
};

constexpr int64_t kTapBlock = 64;
// Branches in one call, and taps along an axis.
constexpr int64_t kTapBranches = 16, kTapKernel = 3;

// Columns, and channels, that are moved at once between planes and pixels: as many as the longest vector's lanes.
constexpr int64_t kTapTile = 16;

// Numbers of scratch memory for a call of either kernel: the row buffers and one more, and behind them kTapTile planes
// of a row, which is at least what a tile that begins in the last column reads.
inline int64_t tap_scratch(const TapShape& shape, int64_t branches) {
  const int64_t rows = (branches * shape.kernel * 2 + 1) * shape.width * kTapBlock;
  return rows + kTapTile * (shape.width + kTapTile) + kTapTile * kTapBlock;
}

template <typename T>
struct TapKernels {
  using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

  // out = y + what the branches add. The branches' data points to the block's first channel.
  void (*add)(TapShape shape, const TapMap<Acc>* branches, int64_t count, PlaneSteps<const T> y, PlaneSteps<T> out,
              Acc* scratch);

  // The gradients of the branches' products, written over, from that of out.
  void (*gradients)(TapShape shape, const TapMap<Acc>* branches, int64_t count, PlaneSteps<const T> grad, Acc* scratch);
};

struct PyramidConv2dKernels {
  TapKernels<float> float32;
  TapKernels<double> float64;
  TapKernels<c10::BFloat16> bfloat16;
  TapKernels<c10::Half> float16;
};

SOD_OPS_KERNEL_TABLE(PyramidConv2dKernels, pyramid_conv2d_kernels)

}  // namespace sod_ops

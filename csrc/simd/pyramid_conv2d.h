// What upsampled branches add to a convolution's output, and its adjoint, for a block of channels of one sample.
// cpu/pyramid_conv2d.cpp calls them.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "../math/interpolation.h"
#include "capability.h"
#include "panel.h"

namespace sod_ops {

template <typename T>
using TapAccumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

// A map [C, H, W] of one sample by its steps: either columns or channels lie side by side.
template <typename T>
struct PlaneSteps {
  T* data;
  int64_t channel;
  int64_t row;
  int64_t column;
};

// Where the gradients of one sample's branch and of its weight are added up, and what those of the products are
// multiplied with for that. Channels are padded to whole panels, of which there are `panels`.
template <typename A>
struct TapSums {
  int64_t panels;
  int64_t out_channels;
  const A* pixels;  // the branch: [panels, h * w, kTapPanel]
  const A* weight;  // the weight at the block's first output channel: [panels, taps, C_out, kTapPanel]
  A* grad_branch;   // [panels, h * w, kTapPanel]
  A* grad_weight;   // at the block's first output channel: [panels, taps, C_out, kTapPanel]
};

// One branch's products with the kernel's taps: [height, width, taps, C] of one sample, `pixel_step` numbers from pixel
// to pixel and `tap_step` from tap to tap, and where each row and column of the output, unshifted, reads. Or, without
// `data`, what they are the products of: the branch and the block's part of the weight, as pack_row() and pack() leave
// them.
template <typename T>
struct TapMap {
  using Acc = TapAccumulator<T>;

  Acc* data;
  int64_t height;
  int64_t width;
  int64_t pixel_step;
  int64_t tap_step;
  const math::Tap<Acc>* rows;
  const math::Tap<Acc>* columns;
  const Acc* branch = nullptr;  // its rows, packed
  int64_t depth = 0;            // its channels
  const Acc* panels = nullptr;
  TapSums<Acc> sums = {};  // for the gradients
};

// A branch's part of the weight, [channels, depth, taps] by its steps; channels are those of the output, or of the
// branch.
template <typename T>
struct TapWeight {
  const T* data;
  int64_t channels;
  int64_t depth;
  int64_t taps;
  int64_t channel_step;
  int64_t depth_step;
  int64_t row_step;  // between taps
  int64_t column_step;
};

struct TapShape {
  int64_t channels;  // in the block, at most kTapBlock
  int64_t height;
  int64_t width;
  int64_t kernel;  // taps along each axis, odd
};

constexpr int64_t kTapBlock = 64;
// Channels that are multiplied at once (see panel_product.h), of which a block has a whole number.
template <typename T>
constexpr int64_t kTapPanel = kPanel<TapAccumulator<T>>;
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

// How far apart the channels of a packed row of a branch are: an odd number of cache lines, so that they don't meet in
// one set of the cache.
template <typename T>
int64_t row_step(int64_t width) {
  const int64_t lines = (width + kTapPanel<T> - 1) / kTapPanel<T>;
  return (lines | 1) * kTapPanel<T>;
}

// How many rows of a branch wait for their gradients' products: a product of few rows reads and writes its result for
// little.
inline int64_t waiting_rows(int64_t width) { return std::max<int64_t>(1, 96 / width); }

// Numbers of scratch memory for a branch that is multiplied: the products of a row with a row of taps, or the gradients
// of those of the rows that wait.
inline int64_t multiplied_scratch(const TapShape& shape, int64_t width) { return width * shape.kernel * kTapBlock; }
inline int64_t waiting_scratch(const TapShape& shape, int64_t width) {
  return shape.kernel * waiting_rows(width) * multiplied_scratch(shape, width);
}

template <typename T>
struct TapKernels {
  using Acc = TapAccumulator<T>;

  // Rows [first, last) of out = y + what the branches add, without y's data (which then has no steps but that of
  // channels) of out = bias + that. The branches' data points to the block's first channel. `multiplied` is scratch
  // memory for the largest branch without data.
  void (*add)(TapShape shape, const TapMap<T>* branches, int64_t count, int64_t first, int64_t last,
              PlaneSteps<const T> y, const T* bias, PlaneSteps<T> out, Acc* scratch, Acc* multiplied);

  // A row of a branch, packed: [depth, row_step].
  void (*pack_row)(PlaneSteps<const T> row, int64_t depth, int64_t width, Acc* to);

  // A panel of a weight: its channels [first, first + kTapPanel), 0 beyond the last, as [taps, depth, kTapPanel].
  void (*pack)(TapWeight<T> weight, int64_t first, Acc* panel);

  // The gradients of the branches' products, written over, from that of out. Of a branch without data those of the
  // branch and its weight, added to what is there; `waiting` is scratch memory for all such branches.
  void (*gradients)(TapShape shape, const TapMap<T>* branches, int64_t count, PlaneSteps<const T> grad, Acc* scratch,
                    Acc* waiting);

  // A panel of a branch [C, h, w]: `channels` of its channels, 0 beyond, as [h * w, kTapPanel].
  void (*pack_pixels)(PlaneSteps<const T> branch, int64_t channels, int64_t height, int64_t width, Acc* panel,
                      Acc* scratch);

  // A row of a panel of a branch's gradient: the sum of `count` rows [width, kTapPanel], `apart` from each other.
  void (*store_pixels)(TapShape shape, const Acc* rows, int64_t count, int64_t apart, PlaneSteps<T> out, Acc* scratch);

  // The gradient of a weight's output channel, [depth, taps], from `count` sums [panels, taps, C_out, kTapPanel], from
  // that channel on, `apart` from each other.
  void (*store_weight)(const Acc* sums, int64_t count, int64_t apart, int64_t out_channels, int64_t taps, int64_t depth,
                       T* out);
};

struct PyramidConv2dKernels {
  TapKernels<float> float32;
  TapKernels<double> float64;
  TapKernels<c10::BFloat16> bfloat16;
  TapKernels<c10::Half> float16;
};

SOD_OPS_KERNEL_TABLE(PyramidConv2dKernels, pyramid_conv2d_kernels)

}  // namespace sod_ops

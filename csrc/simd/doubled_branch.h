// What a branch that nearest neighbours enlarge to twice its size adds to a 3x3 convolution's output, and the adjoint,
// some rows of one sample at a time. cpu/doubled_branch.h calls them.
//
// Along one axis such an output is, with taps w0, w1, w2 and positions k of every second one of the branch b (0
// outside),
//   out[4k - 1] = S b[2k] + (w0 + w1) (b[2k - 1] - b[2k])      S = w0 + w1 + w2
//   out[4k]     = S b[2k] + w0 (b[2k - 1] - b[2k])
//   out[4k + 1] = S b[2k] + w2 (b[2k + 1] - b[2k])
//   out[4k + 2] = S b[2k] + (w1 + w2) (b[2k + 1] - b[2k])
// which is five products for two positions of the branch where its products with the taps are six; of both axes 25
// where those are 36 (the idea of Winograd's minimal filtering, Lavin and Gray, CVPR 2016, applied to the two filters
// that a doubled map is convolved with). Weights and differences are of one sign or the other and never scaled: the
// rounding error stays what it is.
#pragma once

#include "pyramid_conv2d.h"

namespace sod_ops {

// Along an axis: such weights, S and that of each of the four outputs; and what they are multiplied with, b[2k] and the
// differences before and behind it.
constexpr int64_t kDoubledWeights = 5, kDoubledOutputs = 4, kDoubledInputs = 3;
// Of both axes.
constexpr int64_t kDoubledProducts = kDoubledWeights * kDoubledWeights;
constexpr int64_t kDoubledPlanes = kDoubledInputs * kDoubledInputs;

// Of one sample: the branch [depth, height, width], out [channels, 2 * height, 2 * width].
struct DoubledShape {
  int64_t channels;
  int64_t depth;
  int64_t height;
  int64_t width;

  // How many k there are along each axis.
  int64_t rows() const { return height / 2 + 1; }
  int64_t columns() const { return width / 2 + 1; }
};

// Rows k that are worked on at once: so many that a product takes some tens of them times columns.
inline int64_t doubled_rows(const DoubledShape& shape) { return std::max<int64_t>(1, 96 / shape.columns()); }

// Numbers of scratch memory for a call of `add` and of `gradients`.
template <typename T>
int64_t doubled_add_scratch(const DoubledShape& shape) {
  const int64_t rows = doubled_rows(shape), positions = rows * shape.columns(), panel = kTapPanel<T>;
  const int64_t packed = (2 * rows + 1) * shape.depth * row_step<T>(shape.width);
  const int64_t planes = kDoubledPlanes * shape.depth * row_step<T>(positions);
  const int64_t line = shape.columns() + 2 * panel;
  const int64_t wide = kDoubledWeights * (kDoubledOutputs * shape.columns() + kTapTile) * panel;
  const int64_t sums = kTapTile * (2 * shape.width + kTapTile);
  return packed + planes + line + kDoubledProducts * positions * panel + wide + sums;
}

// How far apart the output channels whose gradients are worked on at once are from column to column.
template <typename T>
int64_t doubled_step(int64_t channels) {
  return row_step<T>(std::min(channels, kTapBlock));
}

template <typename T>
int64_t doubled_gradients_scratch(const DoubledShape& shape) {
  const int64_t rows = doubled_rows(shape), columns = shape.columns(), panel = kTapPanel<T>;
  const int64_t panels = (shape.depth + panel - 1) / panel;
  const int64_t planes = panels * kDoubledPlanes * rows * columns * panel;
  const int64_t lines = kDoubledInputs * (2 * columns + 1 + kTapTile) * panel;
  const int64_t wide =
      rows * kDoubledWeights * (kDoubledOutputs * columns + kTapTile) * doubled_step<T>(shape.channels);
  const int64_t narrow = rows * kDoubledWeights * columns * doubled_step<T>(shape.channels);
  return 2 * planes + lines + wide + narrow + kTapTile * (2 * shape.width + kTapTile);
}

// Where the gradients go. A row 2k of the branch has its gradient from k alone; a row 2k + 1 from k, which lies with
// the former, and from k + 1.
template <typename A>
struct DoubledSums {
  A* grad_branch;  // [panels, height, width, kTapPanel]
  A* grad_before;  // [panels, rows(), width, kTapPanel]: of row 2k - 1, from k
  A* grad_weight;  // [panels, kDoubledProducts, C_out, kTapPanel], added to
};

template <typename T>
struct DoubledKernels {
  using Acc = TapAccumulator<T>;

  // A panel of a weight: its channels [first, first + kTapPanel), 0 beyond the last, as [kDoubledProducts, depth,
  // kTapPanel].
  void (*pack)(TapWeight<T> weight, int64_t first, Acc* panel);

  // The output rows 4k - 1 to 4k + 2 for k in [first, last): out = y + what the branch adds, without y's data (which
  // then has no steps but that of channels) out = bias + that, or out = that. `panels` holds those of all output
  // channels.
  void (*add)(DoubledShape shape, PlaneSteps<const T> branch, const Acc* panels, int64_t first, int64_t last,
              PlaneSteps<const T> y, const T* bias, PlaneSteps<T> out, Acc* scratch);

  // What those rows' gradient adds to the gradients; `panels` holds those of the transposed weight.
  void (*gradients)(DoubledShape shape, PlaneSteps<const T> branch, const Acc* panels, int64_t first, int64_t last,
                    PlaneSteps<const T> grad, DoubledSums<Acc> sums, Acc* scratch);

  // The gradient of a weight's output channel, [depth, 9], from `count` sums [panels, kDoubledProducts, C_out,
  // kTapPanel], from that channel on, `apart` from each other.
  void (*store_weight)(const Acc* sums, int64_t count, int64_t apart, int64_t out_channels, int64_t depth, T* out);
};

struct DoubledBranchKernels {
  DoubledKernels<float> float32;
  DoubledKernels<double> float64;
  DoubledKernels<c10::BFloat16> bfloat16;
  DoubledKernels<c10::Half> float16;
};

SOD_OPS_KERNEL_TABLE(DoubledBranchKernels, doubled_branch_kernels)

}  // namespace sod_ops

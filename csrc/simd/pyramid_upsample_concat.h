// The kernels that upsampling into a concatenation is made of, on raw pointers. cpu/pyramid_upsample_concat.cpp calls
// them for planes and rows.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

#include "capability.h"

namespace sod_ops {

// A run of outputs along one axis that read the same two inputs.
struct ResizeRun {
  int64_t begin;
  int64_t end;
  int64_t first;
  int64_t second;
};

// One axis of a bilinear resize: output = first_weight * input[first] + second_weight * input[second], for every
// output. `first` and `second` never decrease. The tables are padded (see padded_columns) with weights 0.
template <typename A>
struct ResizeAxis {
  using Index = std::conditional_t<std::is_same_v<A, double>, int64_t, int32_t>;

  int64_t inputs;
  int64_t outputs;
  const Index* first;
  const Index* second;
  const A* first_weight;
  const A* second_weight;
  int64_t run_count;
  const ResizeRun* runs;  // all outputs, none longer than kLongestRun
};

template <typename A>
struct Resize {
  ResizeAxis<A> rows;
  ResizeAxis<A> columns;
};

// One sample of a branch beside x where channels lie side by side.
template <typename T>
struct InterleavedBranch {
  using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

  Resize<Acc> resize;
  const T* data;  // [inputs of rows][inputs of columns][channels]
  int64_t channels;
};

// Planes that the backward works on together, so that a vector holds one column of each.
constexpr int64_t kResizedPlanes = 16;
// The lanes of any vector.
constexpr int64_t kResizePadding = 32;
// Rows whose gradients are summed before they are added to others': the rounding error does not grow with the map.
constexpr int64_t kLongestRun = 8;
// Resized rows that upsampling holds.
constexpr int64_t kResizedLines = 4;

// What a row, and a table for columns, takes in memory, so that a whole vector may begin at every column.
inline int64_t padded_columns(int64_t columns) {
  return (columns + 2 * kResizePadding - 1) / kResizePadding * kResizePadding;
}

template <typename T>
struct PyramidUpsampleConcatKernels {
  using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

  // `count` runs of `length` elements, `step` apart, into one run.
  void (*copy)(const T* from, int64_t step, int64_t count, int64_t length, T* to, bool stream);

  // Rows [begin, end) of each of `count` upsampled planes, into one run that begins at `to`. `scratch` has room for
  // kResizedLines padded output rows and an input row.
  void (*upsample_planes)(const Resize<Acc>& resize, const T* planes, int64_t count, int64_t begin, int64_t end,
                          Acc* scratch, T* to, bool stream);

  // Row `row` of the whole concatenation, pixel by pixel: x's channels and all branches'. `scratch` has room for the
  // branches' input rows.
  void (*upsample_row)(const T* x, int64_t x_step, int64_t x_channels, bool x_first,
                       const InterleavedBranch<T>* branches, int64_t branch_count, int64_t row, Acc* scratch, T* to,
                       bool stream);

  // The gradients of up to kResizedPlanes planes from those of their upsampled planes, `step` apart. `scratch` has room
  // for kResizedPlanes times (inputs of rows * padded outputs of columns + inputs of columns).
  void (*gather_planes)(const Resize<Acc>& resize, const T* grad, int64_t step, int64_t planes, Acc* scratch, T* to);

  // What one run of rows gives to the gradients of its two input rows, `first` and `second`: [inputs of columns]
  // [channels]. `grad` is the upsampled map's first pixel, `step` the step from pixel to pixel.
  void (*gather_run)(const Resize<Acc>& resize, const ResizeRun& run, const T* grad, int64_t step, int64_t channels,
                     Acc* first, Acc* second);

  // One input row's gradient, of `length` elements: the sum over runs, of which `parts` holds [first, second][length].
  void (*add_runs)(const ResizeAxis<Acc>& rows, int64_t row, const Acc* parts, int64_t length, T* to);
};

struct PyramidUpsampleConcatTable {
  PyramidUpsampleConcatKernels<float> float32;
  PyramidUpsampleConcatKernels<double> float64;
  PyramidUpsampleConcatKernels<c10::BFloat16> bfloat16;
  PyramidUpsampleConcatKernels<c10::Half> float16;
};

SOD_OPS_KERNEL_TABLE(PyramidUpsampleConcatTable, pyramid_upsample_concat_kernels)

}  // namespace sod_ops

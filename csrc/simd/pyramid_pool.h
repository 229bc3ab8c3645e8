// The kernels that pyramid pooling is made of, on raw pointers. cpu/pyramid_pool.cpp calls them for each sample.
//
// The edges of all bins of all levels cut a map into cells, so that a bin is a sum of cells, and a pixel's gradient
// that of its cell. Cells are [row][column][channel]: for a map in planes kPlanarChannels of them side by side,
// otherwise all channels of the map.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "capability.h"

namespace sod_ops {

struct Span {
  int64_t first;
  int64_t last;  // one past the last
};

// One axis cut into cells. None is long, so that their sums are short.
struct CellAxis {
  int64_t cells;
  const int64_t* edges;  // [cells + 1]
};
constexpr int64_t kTallestCell = 8;  // pixels
constexpr int64_t kWidestCell = 32;

// One level of the pyramid, bins x bins.
struct PyramidLevel {
  int64_t bins;
  const Span* row_cells;     // [bins]: the cells that each bin is the sum of
  const Span* column_cells;  // [bins]
  const Span* row_bins;      // [rows of cells]: the bins that each cell lies in
  const Span* column_bins;   // [columns of cells]
};

// A map [C, H, W], or kPlanarChannels of one in planes.
struct CellGrid {
  CellAxis rows;
  CellAxis columns;
  int64_t channels;
  bool planar;

  int64_t width() const { return columns.edges[columns.cells]; }
};

// Planes that are worked on together, so that a vector holds one pixel of each.
constexpr int64_t kPlanarChannels = 16;
// Channels that lie side by side and are summed together; their cells stay in the second-level cache.
constexpr int64_t kChannelBlock = 512;
// Numbers that a kernel needs besides: rows of kPlanarChannels planes, or a row of cells.
constexpr int64_t kSummedRows = 16384;

inline int64_t pool_scratch(const CellGrid& grid) { return std::max(kSummedRows, grid.columns.cells * kChannelBlock); }

// A row of pixels of kPlanarChannels planes is drawn once for each row of cells, of as many rows of cells together as
// fit kSummedRows.
inline int64_t padded_line(int64_t width) { return (width + 7) / 8 * 8; }
inline int64_t lines_together(int64_t width) {
  return std::max<int64_t>(1, kSummedRows / (kPlanarChannels * padded_line(width)));
}
// Numbers behind a plane's lines that belong to the last one's last register.
constexpr int64_t kLineEnd = 32;
// Rows of cells and the lines drawn from them, where planar; otherwise two rows of cells.
inline int64_t expand_scratch(const CellGrid& grid) {
  if (!grid.planar) return 2 * grid.columns.cells * grid.channels;
  const int64_t together = lines_together(grid.width());
  return kPlanarChannels * (together * (grid.columns.cells + padded_line(grid.width())) + kLineEnd);
}

template <typename T>
struct PyramidPoolKernels {
  using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

  // The sums over rows [first, last) of cells, into their place in `cells`. `step` takes to the next plane or pixel.
  void (*cell_sums)(const CellGrid& grid, const T* x, int64_t step, Span rows, Acc* scratch, Acc* cells);

  // A level's means from all cells, of `channels` channels where cells hold `cell_step`. `out` is [channels][bins *
  // bins] where planar, otherwise [bins * bins][grid.channels].
  void (*bin_means)(const CellGrid& grid, const PyramidLevel& level, const Acc* cells, int64_t cell_step,
                    int64_t channels, Acc* scratch, T* out);

  // What each pixel of a level's bins gets from the gradient of their mean, which lies as `out` does: [bins * bins]
  // [channels], with kPlanarChannels for channels where planar.
  void (*shares)(const CellGrid& grid, const PyramidLevel& level, const T* grad, Acc* shares);

  // The gradient of x in rows [first, last) of cells, from the shares of all levels, one after the other. `to` is where
  // the first of those rows begins (in the first plane). `scratch` has room for expand_scratch numbers. Where there is
  // an `other` gradient, which begins and steps likewise, the result is the sum of both.
  void (*expand)(const CellGrid& grid, const PyramidLevel* levels, int64_t level_count, const Acc* shares, Span rows,
                 Acc* scratch, const T* other, int64_t other_step, T* to, int64_t step, bool stream);
};

struct PyramidPoolTable {
  PyramidPoolKernels<float> float32;
  PyramidPoolKernels<double> float64;
  PyramidPoolKernels<c10::BFloat16> bfloat16;
  PyramidPoolKernels<c10::Half> float16;
};

SOD_OPS_KERNEL_TABLE(PyramidPoolTable, pyramid_pool_kernels)

}  // namespace sod_ops

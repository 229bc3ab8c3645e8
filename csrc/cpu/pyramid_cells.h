// From bins to cells: the tables that the kernels of pyramid pooling work with, computed once per call.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../simd/pyramid_pool.h"

namespace sod_ops {

// Bin i of `bins` on `length` pixels, as PyTorch's adaptive pooling has it: neighbours overlap where `length` is not
// divisible.
inline Span bin_pixels(int64_t i, int64_t bins, int64_t length) {
  return {i * length / bins, ((i + 1) * length + bins - 1) / bins};
}

// The bins that a pixel lies in.
inline Span pixel_bins(int64_t pixel, int64_t bins, int64_t length) {
  return {pixel * bins / length, ((pixel + 1) * bins + length - 1) / length};
}

class AxisTables {
 public:
  AxisTables(int64_t length, int64_t longest_cell, const std::vector<int64_t>& bins) {
    std::vector<int64_t> cell_at(length + 1, 0);  // first 1 where a cell begins, then the number of that cell
    for (const int64_t count : bins) {
      for (int64_t i = 0; i < count; ++i) {
        const Span bin = bin_pixels(i, count, length);
        cell_at[bin.first] = cell_at[bin.last] = 1;
      }
    }
    edges_.push_back(0);
    for (int64_t pixel = 1; pixel <= length; ++pixel) {
      if (cell_at[pixel] == 0) continue;
      const int64_t begin = edges_.back(), pieces = (pixel - begin + longest_cell - 1) / longest_cell;
      for (int64_t i = 1; i <= pieces; ++i) edges_.push_back(begin + (pixel - begin) * i / pieces);
    }
    for (int64_t i = 0; i <= cells(); ++i) cell_at[edges_[i]] = i;
    for (const int64_t count : bins) {
      for (int64_t i = 0; i < count; ++i) {
        const Span bin = bin_pixels(i, count, length);
        bin_cells_.push_back({cell_at[bin.first], cell_at[bin.last]});
      }
      for (int64_t i = 0; i < cells(); ++i) cell_bins_.push_back(pixel_bins(edges_[i], count, length));
    }
  }

  int64_t cells() const { return static_cast<int64_t>(edges_.size()) - 1; }
  CellAxis axis() const { return {cells(), edges_.data()}; }
  // All levels' one after the other: the cells of each bin, the bins of each cell.
  const Span* bin_cells() const { return bin_cells_.data(); }
  const Span* cell_bins() const { return cell_bins_.data(); }

 private:
  std::vector<int64_t> edges_;
  std::vector<Span> bin_cells_;
  std::vector<Span> cell_bins_;
};

// Both axes of a map [C, H, W], and the levels on it.
class PyramidTables {
 public:
  PyramidTables(int64_t height, int64_t width, const std::vector<int64_t>& bins)
      : rows_(height, kTallestCell, bins), columns_(width, kWidestCell, bins) {
    int64_t offset = 0;
    for (const int64_t count : bins) {
      const int64_t level = static_cast<int64_t>(levels.size());
      levels.push_back({count, rows_.bin_cells() + offset, columns_.bin_cells() + offset,
                        rows_.cell_bins() + level * rows_.cells(), columns_.cell_bins() + level * columns_.cells()});
      offset += count;
      all_bins += count * count;
    }
  }

  CellGrid grid(int64_t channels, bool planar) const { return {rows_.axis(), columns_.axis(), channels, planar}; }

  std::vector<PyramidLevel> levels;
  int64_t all_bins = 0;

 private:
  AxisTables rows_;
  AxisTables columns_;
};

}  // namespace sod_ops

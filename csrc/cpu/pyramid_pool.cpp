// Pyramid pooling on the CPU: checks, threads and memory. The arithmetic stands in ../simd/pyramid_pool.cpp.
#include "../simd/pyramid_pool.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "../dtype.h"
#include "cache.h"
#include "dense_map.h"
#include "maps.h"
#include "other_gradient.h"
#include "parallel.h"
#include "pyramid_cells.h"
#include "scratch.h"

namespace sod_ops {
namespace {

using torch::stable::Tensor;

constexpr auto kOp = "pyramid_pool";

// Channels whose means one task takes.
constexpr int64_t kMeansBlock = 128;

template <typename T>
const PyramidPoolKernels<T>& kernels() {
  return kernels_of<T>(pyramid_pool_kernels());
}

template <typename T>
using Acc = typename PyramidPoolKernels<T>::Acc;

// A map [N, C, H, W], and what its samples are cut into: where planar, blocks of kPlanarChannels planes.
struct Geometry {
  int64_t samples, channels, height, width;
  bool planar;
  const PyramidTables& tables;

  int64_t blocks() const { return (channels + kPlanarChannels - 1) / kPlanarChannels; }
  CellGrid all() const { return tables.grid(channels, planar); }
  CellGrid block(int64_t b) const {
    return tables.grid(std::min(kPlanarChannels, channels - b * kPlanarChannels), planar);
  }
  int64_t pixels() const { return height * width; }
  // How many parts to cut each of `tasks` into so that every thread has some.
  int64_t parts(int64_t tasks) const {
    const int64_t wanted = 4 * static_cast<int64_t>(torch::stable::get_num_threads());
    return tasks == 0 ? 1 : std::min(all().rows.cells, std::max<int64_t>(1, wanted / tasks));
  }
};

template <typename T>
void means_of_block(const Geometry& g, int64_t task, const Acc<T>* cells, Acc<T>* scratch,
                    const std::vector<T*>& outputs) {
  const int64_t n = task / g.blocks(), block = task % g.blocks();
  const CellGrid grid = g.block(block);
  for (size_t k = 0; k < outputs.size(); ++k) {
    const PyramidLevel& level = g.tables.levels[k];
    T* out = outputs[k] + (n * g.channels + block * kPlanarChannels) * level.bins * level.bins;
    kernels<T>().bin_means(grid, level, cells, kPlanarChannels, grid.channels, scratch, out);
  }
}

template <typename T>
void pool_planar(const Geometry& g, Samples<const T> x, const std::vector<T*>& outputs) {
  const CellGrid grid = g.all();
  const MapShape shape{g.channels, g.pixels(), true};
  const int64_t tasks = g.samples * g.blocks(), cells_size = grid.rows.cells * grid.columns.cells * kPlanarChannels;
  const auto sum = [&](int64_t task, Span rows, Acc<T>* scratch, Acc<T>* cells) {
    const int64_t n = task / g.blocks(), block = task % g.blocks();
    kernels<T>().cell_sums(g.block(block), x.at(shape, n, block * kPlanarChannels), x.step, rows, scratch, cells);
  };
  if (g.parts(tasks) == 1) {
    return parallel_tasks(tasks, kPlanarChannels * g.pixels(), [&](int64_t begin, int64_t end) {
      auto cells = scratch<Acc<T>>(cells_size), memory = scratch<Acc<T>>(pool_scratch(grid));
      for (int64_t task = begin; task < end; ++task) {
        sum(task, {0, grid.rows.cells}, memory.get(), cells.get());
        means_of_block(g, task, cells.get(), memory.get(), outputs);
      }
    });
  }
  // Too few planes: threads share them.
  auto cells = scratch<Acc<T>>(tasks * cells_size);
  const int64_t rows = grid.rows.cells;
  parallel_tasks(tasks * rows, kPlanarChannels * g.pixels() / rows, [&](int64_t begin, int64_t end) {
    auto memory = scratch<Acc<T>>(pool_scratch(grid));
    for (int64_t i = begin; i < end; ++i) {
      sum(i / rows, {i % rows, i % rows + 1}, memory.get(), cells.get() + i / rows * cells_size);
    }
  });
  auto memory = scratch<Acc<T>>(pool_scratch(grid));
  for (int64_t task = 0; task < tasks; ++task) {
    means_of_block(g, task, cells.get() + task * cells_size, memory.get(), outputs);
  }
}

// Rows of cells are the tasks, of as many samples at a time as give every thread enough.
template <typename T>
void pool_interleaved(const Geometry& g, Samples<const T> x, const std::vector<T*>& outputs) {
  const CellGrid grid = g.all();
  const MapShape shape{g.channels, g.pixels(), false};
  const int64_t rows = grid.rows.cells, cells_size = rows * grid.columns.cells * g.channels;
  const int64_t wanted = 8 * static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t together = std::max({int64_t{1}, wanted / rows, wanted * kGrain / (g.channels * g.pixels())});
  auto cells = scratch<Acc<T>>(std::min(together, g.samples) * cells_size);
  for (int64_t first = 0; first < g.samples; first += together) {
    const int64_t count = std::min(together, g.samples - first);
    parallel_tasks(count * rows, g.channels * g.pixels() / rows, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        kernels<T>().cell_sums(grid, x.at(shape, first + i / rows), x.step, {i % rows, i % rows + 1}, nullptr,
                               cells.get() + i / rows * cells_size);
      }
    });
    const int64_t blocks = (g.channels + kMeansBlock - 1) / kMeansBlock;
    parallel_tasks(count * blocks, cells_size / blocks, [&](int64_t begin, int64_t end) {
      auto memory = scratch<Acc<T>>(pool_scratch(grid));
      for (int64_t i = begin; i < end; ++i) {
        const int64_t n = i / blocks, channel = i % blocks * kMeansBlock;
        for (size_t k = 0; k < outputs.size(); ++k) {
          const PyramidLevel& level = g.tables.levels[k];
          kernels<T>().bin_means(grid, level, cells.get() + n * cells_size + channel, g.channels,
                                 std::min(kMeansBlock, g.channels - channel), memory.get(),
                                 outputs[k] + (first + n) * level.bins * level.bins * g.channels + channel);
        }
      }
    });
  }
}

// The gradients of the levels, and that which x has from elsewhere; its data is null where there is none.
template <typename T>
struct Gradients {
  std::vector<const T*> levels;
  OtherGradient<T> other;
};

template <typename T>
void spread_planar(const Geometry& g, const Gradients<T>& grads, T* grad_x, bool stream) {
  const CellGrid grid = g.all();
  const MapShape shape{g.channels, g.pixels(), true};
  const int64_t tasks = g.samples * g.blocks(), parts = g.parts(tasks), rows = grid.rows.cells;
  parallel_tasks(tasks * parts, kPlanarChannels * g.pixels() / parts, [&](int64_t begin, int64_t end) {
    auto shares = scratch<Acc<T>>(g.tables.all_bins * kPlanarChannels);
    auto memory = scratch<Acc<T>>(expand_scratch(grid));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / parts / g.blocks(), block = i / parts % g.blocks(), part = i % parts;
      const int64_t plane = n * g.channels + block * kPlanarChannels;
      const CellGrid planes = g.block(block);
      Acc<T>* to = shares.get();
      for (size_t k = 0; k < grads.levels.size(); ++k) {
        const PyramidLevel& level = g.tables.levels[k];
        const int64_t bins = level.bins * level.bins;
        kernels<T>().shares(planes, level, grads.levels[k] + plane * bins, to);
        to += bins * kPlanarChannels;
      }
      const Span some{part * rows / parts, (part + 1) * rows / parts};
      const int64_t pixel = grid.rows.edges[some.first] * g.width;
      kernels<T>().expand(planes, g.tables.levels.data(), static_cast<int64_t>(grads.levels.size()), shares.get(), some,
                          memory.get(), grads.other.at(shape, n, block * kPlanarChannels, pixel), grads.other.step,
                          grad_x + plane * g.pixels() + pixel, g.pixels(), stream);
    }
  });
}

template <typename T>
void spread_interleaved(const Geometry& g, const Gradients<T>& grads, T* grad_x, bool stream) {
  const CellGrid grid = g.all();
  const MapShape shape{g.channels, g.pixels(), false};
  const int64_t shares_size = g.tables.all_bins * g.channels, rows = grid.rows.cells;
  auto shares = scratch<Acc<T>>(g.samples * shares_size);
  const auto level_count = static_cast<int64_t>(grads.levels.size());
  parallel_tasks(g.samples * level_count, shares_size / level_count, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / level_count, k = i % level_count;
      Acc<T>* to = shares.get() + n * shares_size;
      for (int64_t j = 0; j < k; ++j) to += g.tables.levels[j].bins * g.tables.levels[j].bins * g.channels;
      const PyramidLevel& level = g.tables.levels[k];
      kernels<T>().shares(grid, level, grads.levels[k] + n * level.bins * level.bins * g.channels, to);
    }
  });
  parallel_tasks(g.samples * rows, g.channels * g.pixels() / rows, [&](int64_t begin, int64_t end) {
    auto memory = scratch<Acc<T>>(expand_scratch(grid));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / rows, row = i % rows;
      const int64_t pixel = grid.rows.edges[row] * g.width;
      kernels<T>().expand(grid, g.tables.levels.data(), level_count, shares.get() + n * shares_size, {row, row + 1},
                          memory.get(), grads.other.at(shape, n, 0, pixel), grads.other.step,
                          grad_x + (n * g.pixels() + pixel) * g.channels, g.channels, stream);
    }
  });
}

void check_bins(const std::vector<int64_t>& bins) {
  STD_TORCH_CHECK(!bins.empty(), kOp, ": bins must name at least one size");
  for (const int64_t count : bins) STD_TORCH_CHECK(count >= 1, kOp, ": bins must be at least 1, got ", count);
}

void check_map(int64_t channels, int64_t height, int64_t width) {
  STD_TORCH_CHECK(channels >= 1 && height >= 1 && width >= 1, kOp,
                  ": x must have at least one channel, row and column, got ", channels, ", ", height, " and ", width);
}

std::vector<Tensor> pyramid_pool(const Tensor& x, std::vector<int64_t> bins) {
  STD_TORCH_CHECK(x.dim() == 4, kOp, ": x must be [N, C, H, W], got ", x.dim(), " dimensions");
  STD_TORCH_CHECK(x.is_cpu(), kOp, ": x must be on the CPU");
  check_bins(bins);
  check_map(x.size(1), x.size(2), x.size(3));
  const bool planar = lies_in_planes(x);
  STD_TORCH_CHECK(readable(x, planar), kOp, ": x must be contiguous or channels_last, or a slice of such");
  const PyramidTables tables(x.size(2), x.size(3), bins);
  const Geometry g{x.size(0), x.size(1), x.size(2), x.size(3), planar, tables};
  std::vector<Tensor> outputs;
  for (const int64_t count : bins) outputs.push_back(new_map(x, {g.samples, g.channels, count, count}, planar));
  for_floating(kOp, "x", x.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    std::vector<T*> pointers;
    for (const Tensor& output : outputs) pointers.push_back(static_cast<T*>(output.data_ptr()));
    const auto samples = samples_of<const T>(x, planar);
    planar ? pool_planar<T>(g, samples, pointers) : pool_interleaved<T>(g, samples, pointers);
  });
  return outputs;
}

Tensor pyramid_pool_backward(std::vector<Tensor> grads, std::vector<int64_t> bins, int64_t height, int64_t width,
                             bool channels_last, std::optional<Tensor> other) {
  check_bins(bins);
  STD_TORCH_CHECK(grads.size() == bins.size(), kOp, ": one gradient for each of ", bins.size(), " bins, got ",
                  grads.size());
  const Tensor& first = grads[0];
  STD_TORCH_CHECK(first.dim() == 4 && first.is_cpu(), kOp, ": gradients must be [N, C, s, s] on the CPU");
  check_map(first.size(1), height, width);
  for (size_t k = 0; k < bins.size(); ++k) {
    STD_TORCH_CHECK(is_dense_map(grads[k], {first.size(0), first.size(1), bins[k], bins[k]}, !channels_last) &&
                        grads[k].scalar_type() == first.scalar_type() && grads[k].is_cpu(),
                    kOp, ": gradient ", k, " must have the shape, dtype and memory format of that output");
  }
  const PyramidTables tables(height, width, bins);
  const Geometry g{first.size(0), first.size(1), height, width, !channels_last, tables};
  check_other_gradient(kOp, other, {g.samples, g.channels, height, width}, g.planar, first);
  Tensor grad_x = new_map(first, {g.samples, g.channels, height, width}, g.planar);
  for_floating(kOp, "x", first.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const bool stream = outgrows_caches(g.samples * g.channels * g.pixels() * static_cast<int64_t>(sizeof(T)));
    Gradients<T> from{{}, {other, g.planar}};
    for (const Tensor& grad : grads) from.levels.push_back(static_cast<const T*>(grad.data_ptr()));
    auto* to = static_cast<T*>(grad_x.data_ptr());
    g.planar ? spread_planar<T>(g, from, to, stream) : spread_interleaved<T>(g, from, to, stream);
  });
  return grad_x;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sod_ops, CPU, m) {
  m.impl("pyramid_pool", TORCH_BOX(&pyramid_pool));
  m.impl("pyramid_pool_backward", TORCH_BOX(&pyramid_pool_backward));
}

}  // namespace sod_ops

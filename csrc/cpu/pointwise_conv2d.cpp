// 1x1 convolutions of the few pixels of a pyramid's levels, all levels in one call: checks, threads and memory. The
// arithmetic stands in ../simd/pointwise_conv2d.cpp.
//
// Threads share every level's weight evenly: its rows forward, its columns backward, where both gradients of a column
// are one thread's. No sum is cut, so that the result does not change with the number of threads.
#include "../simd/pointwise_conv2d.h"

#include <algorithm>
#include <memory>
#include <tuple>
#include <vector>

#include "../dtype.h"
#include "cache.h"
#include "dense_map.h"
#include "parallel.h"
#include "scratch.h"

namespace sod_ops {
namespace {

using torch::stable::Tensor;

constexpr auto kOp = "pointwise_conv2d";

// Bytes of x and of its gradient that stay in a first-level cache of 32 KB, beside the rest, while rows pass by.
constexpr int64_t kTileBytes = 20480;

template <typename T>
const PointwiseConv2dKernels<T>& kernels() {
  return kernels_of<T>(pointwise_conv2d_kernels());
}

template <typename T>
using Acc = typename PointwiseConv2dKernels<T>::Acc;

bool is_planar_dense(const Tensor& map) {
  const bool planar = lies_in_planes(map);
  STD_TORCH_CHECK(is_dense_map(map, {map.size(0), map.size(1), map.size(2), map.size(3)}, planar), kOp,
                  ": maps must be contiguous or channels_last");
  return planar;
}

template <typename T>
PixelMatrix<T> pixels_of(const Tensor& map, bool planar) {
  return {static_cast<T*>(map.data_ptr()), map.size(0), map.size(2) * map.size(3), map.size(1), planar};
}

// One of the convolutions, by its sizes.
struct Level {
  int64_t pixels, channels, rows;
  bool planar;
};

std::vector<Level> check(const std::vector<Tensor>& maps, const std::vector<Tensor>& weights) {
  STD_TORCH_CHECK(maps.size() == weights.size(), kOp, ": one weight for each map, got ", weights.size(), " for ",
                  maps.size());
  std::vector<Level> levels;
  for (size_t k = 0; k < maps.size(); ++k) {
    const Tensor &map = maps[k], &weight = weights[k];
    STD_TORCH_CHECK(map.dim() == 4 && map.is_cpu() && weight.is_cpu(), kOp, ": maps must be [N, C, H, W] on the CPU");
    STD_TORCH_CHECK(map.scalar_type() == maps[0].scalar_type() && weight.scalar_type() == maps[0].scalar_type(), kOp,
                    ": maps and weights must have one dtype");
    STD_TORCH_CHECK(weight.dim() == 4 && weight.size(1) == map.size(1) && weight.size(2) == 1 && weight.size(3) == 1 &&
                        weight.is_contiguous(),
                    kOp, ": weight ", k, " must be contiguous, [C_out, ", map.size(1), ", 1, 1]");
    levels.push_back({map.size(0) * map.size(2) * map.size(3), map.size(1), weight.size(0), is_planar_dense(map)});
  }
  return levels;
}

int64_t up_to_multiple(int64_t n, int64_t of) { return (n + of - 1) / of * of; }

// body(level, range) for every level's [0, length(level)) cut into as many parts as give every thread some, each a
// multiple of `multiple`, by all threads. Parts of the levels follow each other in turn, so that threads have as many
// of each.
template <typename Length, typename Body>
void for_parts(const std::vector<Level>& levels, int64_t multiple, const Length& length, const Body& body) {
  const int64_t parts = 2 * static_cast<int64_t>(torch::stable::get_num_threads());
  const auto count = static_cast<int64_t>(levels.size());
  int64_t elements = 0;
  for (const Level& level : levels) elements += level.rows * level.channels;
  parallel_tasks(parts * count, elements / (parts * count), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t k = task % count, all = length(levels[k]);
      const int64_t width = up_to_multiple((all + parts - 1) / parts, multiple), first = task / count * width;
      if (first < all) body(k, ChannelRange{first, std::min(width, all - first)});
    }
  });
}

constexpr auto kRows = [](const Level& level) { return level.rows; };
constexpr auto kChannels = [](const Level& level) { return level.channels; };

std::vector<Tensor> pointwise_conv2d(std::vector<Tensor> maps, std::vector<Tensor> weights,
                                     std::vector<Tensor> biases) {
  const std::vector<Level> levels = check(maps, weights);
  STD_TORCH_CHECK(biases.empty() || biases.size() == maps.size(), kOp, ": one bias for each map, or none, got ",
                  biases.size(), " for ", maps.size());
  std::vector<Tensor> outputs;
  for (size_t k = 0; k < maps.size(); ++k) {
    outputs.push_back(
        new_map(maps[k], {maps[k].size(0), levels[k].rows, maps[k].size(2), maps[k].size(3)}, levels[k].planar));
    if (biases.empty()) continue;
    STD_TORCH_CHECK(biases[k].dim() == 1 && biases[k].size(0) == levels[k].rows && biases[k].is_contiguous() &&
                        biases[k].is_cpu() && biases[k].scalar_type() == maps[0].scalar_type(),
                    kOp, ": bias ", k, " must be contiguous, [", levels[k].rows, "], of the dtype of the maps");
  }
  for_floating(kOp, "maps", maps[0].scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    std::vector<std::unique_ptr<Acc<T>[]>> packed;
    for (const Level& level : levels) {
      packed.push_back(scratch<Acc<T>>(packed_channels(level.channels) * level.pixels));
    }
    for_parts(levels, kMostLanes, kChannels, [&](int64_t k, ChannelRange channels) {
      kernels<T>().pack(pixels_of<const T>(maps[k], levels[k].planar), channels,
                        packed[k].get() + channels.first * levels[k].pixels);
    });
    for_parts(levels, kForwardRows, kRows, [&](int64_t k, ChannelRange rows) {
      const Level& level = levels[k];
      auto memory = scratch<Acc<T>>(pointwise_forward_scratch<Acc<T>>(level.pixels));
      const T* bias = biases.empty() ? nullptr : static_cast<const T*>(biases[k].data_ptr());
      kernels<T>().forward(pixels_of<T>(outputs[k], level.planar), rows, packed[k].get(),
                           {static_cast<const T*>(weights[k].data_ptr()), level.channels}, level.channels, bias,
                           memory.get());
    });
  });
  return outputs;
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>> pointwise_conv2d_backward(
    std::vector<Tensor> grads, std::vector<Tensor> maps, std::vector<Tensor> weights, bool of_maps, bool of_weights,
    bool of_biases) {
  const std::vector<Level> levels = check(maps, weights);
  STD_TORCH_CHECK(grads.size() == maps.size(), kOp, ": one gradient for each of ", maps.size(), " maps, got ",
                  grads.size());
  std::vector<Tensor> grad_maps, grad_weights, grad_biases;
  int64_t weight_bytes = 0;
  for (size_t k = 0; k < maps.size(); ++k) {
    const MapSizes sizes{maps[k].size(0), levels[k].rows, maps[k].size(2), maps[k].size(3)};
    STD_TORCH_CHECK(is_dense_map(grads[k], sizes, levels[k].planar) && grads[k].is_cpu() &&
                        grads[k].scalar_type() == maps[0].scalar_type(),
                    kOp, ": gradient ", k, " must have the shape, dtype and memory format of that output");
    if (of_maps)
      grad_maps.push_back(new_map(maps[k], {sizes[0], levels[k].channels, sizes[2], sizes[3]}, levels[k].planar));
    if (of_weights) grad_weights.push_back(new_like(weights[k]));
    if (of_biases) grad_biases.push_back(new_empty(weights[k], {levels[k].rows}, weights[k].scalar_type()));
    weight_bytes += levels[k].rows * levels[k].channels;
  }
  for_floating(kOp, "maps", maps[0].scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    std::vector<std::unique_ptr<Acc<T>[]>> packed;
    for (const Level& level : levels) packed.push_back(scratch<Acc<T>>(level.rows * level.pixels));
    for_parts(levels, kBackwardRows, kRows, [&](int64_t k, ChannelRange rows) {
      kernels<T>().pack_rows(pixels_of<const T>(grads[k], levels[k].planar), rows,
                             packed[k].get() + rows.first * levels[k].pixels,
                             of_biases ? static_cast<T*>(grad_biases[k].data_ptr()) : nullptr);
    });
    if (!of_maps && !of_weights) return;
    const bool stream = outgrows_caches(weight_bytes * static_cast<int64_t>(sizeof(T)));
    for_parts(levels, kMostLanes, kChannels, [&](int64_t k, ChannelRange channels) {
      const Level& level = levels[k];
      const int64_t wanted =
          kTileBytes / (2 * static_cast<int64_t>(sizeof(Acc<T>)) * std::max<int64_t>(1, level.pixels));
      const int64_t tile = std::clamp(wanted / kMostLanes * kMostLanes, kMostLanes, packed_channels(channels.count));
      auto memory = scratch<Acc<T>>(pointwise_backward_scratch(level.pixels, tile));
      PixelMatrix<T> grad_map{};
      Matrix<T> grad_weight{nullptr, level.channels};
      if (of_maps) grad_map = pixels_of<T>(grad_maps[k], level.planar);
      if (of_weights) grad_weight.data = static_cast<T*>(grad_weights[k].data_ptr());
      kernels<T>().backward(pixels_of<const T>(maps[k], level.planar), grad_map, channels, tile, packed[k].get(),
                            level.rows, {static_cast<const T*>(weights[k].data_ptr()), level.channels}, grad_weight,
                            stream, memory.get());
    });
  });
  return {std::move(grad_maps), std::move(grad_weights), std::move(grad_biases)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sod_ops, CPU, m) {
  m.impl("pointwise_conv2d", TORCH_BOX(&pointwise_conv2d));
  m.impl("pointwise_conv2d_backward", TORCH_BOX(&pointwise_conv2d_backward));
}

}  // namespace sod_ops

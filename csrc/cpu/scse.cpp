// What scSE's gates are computed from, on the CPU: checks, threads and memory. The arithmetic stands in
// ../simd/scse.cpp.
//
// A sample is a matrix in tiles (matrix_tiles.h).
#include "../simd/scse.h"

#include <optional>
#include <tuple>

#include "../dtype.h"
#include "cache.h"
#include "dense_map.h"
#include "elements.h"
#include "maps.h"
#include "matrix_tiles.h"
#include "other_gradient.h"
#include "parallel.h"
#include "scratch.h"

namespace sod_ops {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr auto kOp = "scse";

template <typename T>
using Acc = typename ScseKernels<T>::Acc;

template <typename T>
const ScseKernels<T>& kernels() {
  return kernels_of<T>(scse_kernels());
}

// How x lies: planar or not.
bool check(const Tensor& x, const Tensor& spatial_weight) {
  STD_TORCH_CHECK(x.dim() == 4 && x.is_cpu() && x.size(1) >= 1 && x.size(2) >= 1 && x.size(3) >= 1, kOp,
                  ": x must be [N, C, H, W] with C, H and W at least 1, on the CPU");
  const bool planar = is_planar(x);
  STD_TORCH_CHECK(readable(x, planar), kOp, ": x must be contiguous or channels_last, or a slice of such");
  STD_TORCH_CHECK(is_dense_map(spatial_weight, {1, x.size(1), 1, 1}, true) && spatial_weight.is_cpu() &&
                      spatial_weight.scalar_type() == x.scalar_type(),
                  kOp, ": spatial_weight must be [1, C, 1, 1] of the dtype of x");
  return planar;
}

MatrixTiles tiles_of(const Tensor& x, bool planar) { return {x.size(0), {x.size(1), x.size(2) * x.size(3), planar}}; }

// A tensor's numbers in the type that is computed in.
template <typename A>
std::unique_ptr<A[]> widened(const Tensor& tensor) {
  auto values = scratch<A>(tensor.numel());
  if (tensor.numel() == 0) return values;
  converters<A>().read[static_cast<int>(tensor.scalar_type())](tensor.data_ptr(), {0, 1}, tensor.numel(), 0,
                                                               tensor.numel(), values.get());
  return values;
}

std::tuple<Tensor, Tensor> scse(const Tensor& x, const Tensor& spatial_weight) {
  const bool planar = check(x, spatial_weight);
  const MatrixTiles tiles = tiles_of(x, planar);
  const int64_t channels = tiles.map.channels, pixels = tiles.map.pixels;
  Tensor means = sod_ops::new_empty(x, {tiles.samples, channels, 1, 1}, x.scalar_type());
  Tensor projection = sod_ops::new_empty(x, {tiles.samples, 1, x.size(2), x.size(3)}, accumulator_of(x.scalar_type()));
  for_floating(kOp, "x", x.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using A = Acc<T>;
    const auto from = samples_of<const T>(x, planar);
    const auto weight = widened<A>(spatial_weight);
    const auto row_sums = scratch<A>(tiles.samples * tiles.across() * tiles.rows);
    const auto column_sums = scratch<A>(tiles.samples * tiles.down() * tiles.columns);
    tiles.for_each([&](const MatrixTiles::Tile& tile) {
      kernels<T>().squeeze(planar, tile.rows, tile.columns, tiles.matrix(from, tile),
                           weight.get() + (planar ? tile.row : tile.column), row_sums.get() + tiles.row_sum(tile),
                           column_sums.get() + tiles.column_sum(tile));
    });
    const auto write = converters<A>().write[static_cast<int>(x.scalar_type())];
    for_each_sum(planar ? row_sums.get() : column_sums.get(), tiles.samples, planar ? tiles.across() : tiles.down(),
                 channels, [&](int64_t n, A* total) {
                   for (int64_t c = 0; c < channels; ++c) total[c] /= static_cast<A>(pixels);
                   write(total, channels, means.data_ptr(), n * channels, 1, false);
                 });
    auto* to = static_cast<A*>(projection.data_ptr());
    for_each_sum(planar ? column_sums.get() : row_sums.get(), tiles.samples, planar ? tiles.down() : tiles.across(),
                 pixels, [&](int64_t n, A* total) { std::copy_n(total, pixels, to + n * pixels); });
  });
  return {means, projection};
}

std::tuple<Tensor, Tensor> scse_backward(const Tensor& grad_means, const Tensor& grad_projection, const Tensor& x,
                                         const Tensor& spatial_weight, std::optional<Tensor> other) {
  const bool planar = check(x, spatial_weight);
  const MatrixTiles tiles = tiles_of(x, planar);
  const int64_t channels = tiles.map.channels, pixels = tiles.map.pixels;
  STD_TORCH_CHECK(is_dense_map(grad_means, {tiles.samples, channels, 1, 1}, true) && grad_means.is_cpu() &&
                      grad_means.scalar_type() == x.scalar_type() &&
                      is_dense_map(grad_projection, {tiles.samples, 1, x.size(2), x.size(3)}, true) &&
                      grad_projection.is_cpu() && grad_projection.scalar_type() == accumulator_of(x.scalar_type()),
                  kOp, ": gradients must have the shapes and dtypes of the results, and be contiguous");
  const MapSizes sizes{tiles.samples, channels, x.size(2), x.size(3)};
  check_other_gradient(kOp, other, sizes, planar, x);
  Tensor grad_x = new_map(x, sizes, planar);
  Tensor grad_weight = new_like(spatial_weight);
  for_floating(kOp, "x", x.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using A = Acc<T>;
    const auto from = samples_of<const T>(x, planar);
    const auto to = samples_of<T>(grad_x, planar);
    const OtherGradient<T> beside(other, planar);
    const auto weight = widened<A>(spatial_weight), of_channels = widened<A>(grad_means);
    for (int64_t i = 0; i < grad_means.numel(); ++i) of_channels[i] /= static_cast<A>(pixels);
    const auto* of_pixels = static_cast<const A*>(grad_projection.data_ptr());
    // Of every channel: [N, parts, C].
    const int64_t parts = planar ? tiles.across() : tiles.down();
    const auto sums = scratch<A>(tiles.samples * parts * channels);
    const bool stream = outgrows_caches(x.numel() * static_cast<int64_t>(sizeof(T)));
    tiles.for_each([&](const MatrixTiles::Tile& tile) {
      const int64_t channel = planar ? tile.row : tile.column, pixel = planar ? tile.column : tile.row;
      const Matrix<const T> more{beside.at(tiles.map, tile.sample, channel, pixel), beside.step};
      kernels<T>().backward(planar, tile.rows, tile.columns, tiles.matrix(from, tile), weight.get() + channel,
                            of_channels.get() + tile.sample * channels + channel,
                            of_pixels + tile.sample * pixels + pixel, more, tiles.matrix(to, tile),
                            sums.get() + (planar ? tiles.row_sum(tile) : tiles.column_sum(tile)), stream);
    });
    const auto write = converters<A>().write[static_cast<int>(x.scalar_type())];
    for_each_sum(sums.get(), 1, tiles.samples * parts, channels,
                 [&](int64_t, A* total) { write(total, channels, grad_weight.data_ptr(), 0, 1, false); });
  });
  return {grad_x, grad_weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sod_ops, CPU, m) {
  m.impl("scse", TORCH_BOX(&scse));
  m.impl("scse_backward", TORCH_BOX(&scse_backward));
}

}  // namespace sod_ops

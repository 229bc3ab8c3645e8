// Gates on the CPU: checks, threads and memory. The arithmetic stands in ../simd/gate.cpp.
//
// A sample is a matrix in tiles (matrix_tiles.h).
#include "../simd/gate.h"

#include <optional>
#include <tuple>
#include <vector>

#include "../dtype.h"
#include "../empty.h"
#include "../stable.h"
#include "cache.h"
#include "elements.h"
#include "maps.h"
#include "matrix_tiles.h"
#include "parallel.h"
#include "scratch.h"

namespace sod_ops {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr auto kOp = "gate";

template <typename T>
using Acc = typename GateKernels<T>::Acc;

template <typename T>
const GateKernels<T>& kernels() {
  return kernels_of<T>(gate_kernels());
}

struct Call {
  MapShape map;
  MatrixTiles tiling;
  GateForm form;
};

Call check(const Tensor& x, const std::optional<Tensor>& channel, const std::optional<Tensor>& spatial,
           bool sum_of_gates) {
  STD_TORCH_CHECK(x.dim() == 4 && x.is_cpu(), kOp, ": x must be [N, C, H, W] on the CPU");
  const bool planar = is_planar(x);
  STD_TORCH_CHECK(readable(x, planar), kOp, ": x must be contiguous or channels_last, or a slice of such");
  STD_TORCH_CHECK(channel.has_value() || spatial.has_value(), kOp, ": logits are missing");
  const auto check_logits = [&](const Tensor& logits, int64_t channels, int64_t height, int64_t width) {
    STD_TORCH_CHECK(logits.dim() == 4 && logits.size(0) == x.size(0) && logits.size(1) == channels &&
                        logits.size(2) == height && logits.size(3) == width,
                    kOp, ": logits must be [N, C, 1, 1] or [N, 1, H, W] for x [N, C, H, W]");
    STD_TORCH_CHECK(logits.is_cpu() && (logits.numel() == 0 || pixel_step(logits) != 0), kOp,
                    ": logits must lie on the CPU, pixels at one step");
    STD_TORCH_CHECK((logits.scalar_type() == ScalarType::Double) == (x.scalar_type() == ScalarType::Double) &&
                        converters<float>().write[static_cast<int>(logits.scalar_type())] != nullptr,
                    kOp, ": logits must have a floating dtype, and be float64 where x is");
  };
  if (channel.has_value()) check_logits(*channel, x.size(1), 1, 1);
  if (spatial.has_value()) check_logits(*spatial, 1, x.size(2), x.size(3));
  const MapShape map{x.size(1), x.size(2) * x.size(3), planar};
  const GateForm form = channel.has_value() && spatial.has_value()
                            ? (sum_of_gates ? GateForm::sum : GateForm::logits)
                            : (channel.has_value() == planar ? GateForm::row : GateForm::column);
  return {map, MatrixTiles(x.size(0), map), form};
}

// What the kernels take of one tensor of logits, for all samples: gates, or the logits themselves where the form wants
// them. Empty without such a tensor.
template <typename A>
struct Factors {
  int64_t length = 0;  // of a sample
  std::unique_ptr<A[]> values, slopes;

  const A* at(const MatrixTiles::Tile& tile, int64_t offset) const {
    return length == 0 ? nullptr : values.get() + tile.sample * length + offset;
  }
};

template <typename T>
Factors<Acc<T>> factors(const Call& call, const std::optional<Tensor>& logits, int64_t length, bool with_slopes) {
  using A = Acc<T>;
  Factors<A> result;
  const int64_t count = call.tiling.samples * length;
  if (!logits.has_value() || count == 0) return result;
  result.length = length;
  result.values = scratch<A>(count);
  const bool separable = call.form != GateForm::logits;
  if (separable && with_slopes) result.slopes = scratch<A>(count);
  const Steps steps{logits->stride(0), logits->size(1) > 1 ? logits->stride(1) : pixel_step(*logits)};
  const auto read = converters<A>().read[static_cast<int>(logits->scalar_type())];
  parallel_tasks(call.tiling.samples, length, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * length, n = (end - begin) * length;
    A* values = result.values.get() + first;
    read(logits->data_ptr(), steps, length, first, n, values);
    if (separable) {
      kernels<T>().sigmoid(values, n, values, result.slopes == nullptr ? nullptr : result.slopes.get() + first);
    }
  });
  return result;
}

Tensor gate(const Tensor& x, const std::optional<Tensor>& channel, const std::optional<Tensor>& spatial,
            bool sum_of_gates) {
  const Call call = check(x, channel, spatial, sum_of_gates);
  const bool planar = call.map.planar;
  Tensor y = new_like(x);
  STD_TORCH_CHECK(readable(y, planar), kOp, ": the result for x has another memory format");
  for_floating(kOp, "x", x.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const auto channels = factors<T>(call, channel, call.map.channels, false);
    const auto pixels = factors<T>(call, spatial, call.map.pixels, false);
    const auto& row = planar ? channels : pixels;
    const auto& column = planar ? pixels : channels;
    const auto from = samples_of<const T>(x, planar);
    const auto to = samples_of<T>(y, planar);
    const bool stream = outgrows_caches(x.numel() * static_cast<int64_t>(sizeof(T)));
    call.tiling.for_each([&](const MatrixTiles::Tile& tile) {
      kernels<T>().apply(call.form, tile.rows, tile.columns, call.tiling.matrix(from, tile), row.at(tile, tile.row),
                         column.at(tile, tile.column), call.tiling.matrix(to, tile), stream);
    });
  });
  return y;
}

// The gradient of one tensor of logits: the sums of a sample's `parts`, [N, parts, length], in their order.
template <typename A>
Tensor gradient_of_logits(const Tensor& logits, const A* sums, int64_t samples, int64_t parts, int64_t length,
                          const A* slopes) {
  std::vector<int64_t> sizes(logits.sizes().begin(), logits.sizes().end());
  Tensor gradient = sod_ops::new_empty(logits, sizes, logits.scalar_type());
  const auto write = converters<A>().write[static_cast<int>(logits.scalar_type())];
  for_each_sum(sums, samples, parts, length, [&](int64_t n, A* total) {
    if (slopes != nullptr) {
      for (int64_t i = 0; i < length; ++i) total[i] *= slopes[n * length + i];
    }
    write(total, length, gradient.data_ptr(), n * length, 1, false);
  });
  return gradient;
}

std::tuple<Tensor, Tensor, Tensor> gate_backward(const Tensor& grad_y, const Tensor& x,
                                                 const std::optional<Tensor>& channel,
                                                 const std::optional<Tensor>& spatial, bool sum_of_gates) {
  const Call call = check(x, channel, spatial, sum_of_gates);
  const bool planar = call.map.planar;
  STD_TORCH_CHECK(grad_y.dim() == 4 && std::equal(x.sizes().begin(), x.sizes().end(), grad_y.sizes().begin()) &&
                      grad_y.scalar_type() == x.scalar_type() && grad_y.is_cpu() && readable(grad_y, planar),
                  "gate_backward: grad_output must have the shape, dtype and memory format of x");
  Tensor grad_x = new_like(x);
  Tensor grad_channel = sod_ops::new_empty(x, {0}, x.scalar_type());
  Tensor grad_spatial = sod_ops::new_empty(x, {0}, x.scalar_type());
  for_floating(kOp, "x", x.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using A = Acc<T>;
    const auto channels = factors<T>(call, channel, call.map.channels, true);
    const auto pixels = factors<T>(call, spatial, call.map.pixels, true);
    const auto& row = planar ? channels : pixels;
    const auto& column = planar ? pixels : channels;
    const auto from = samples_of<const T>(x, planar), gradients = samples_of<const T>(grad_y, planar);
    const auto to = samples_of<T>(grad_x, planar);
    const bool stream = outgrows_caches(x.numel() * static_cast<int64_t>(sizeof(T)));
    const MatrixTiles& tiling = call.tiling;
    const auto row_sums = scratch<A>(tiling.samples * tiling.across() * tiling.rows);
    const auto column_sums = scratch<A>(tiling.samples * tiling.down() * tiling.columns);
    tiling.for_each([&](const MatrixTiles::Tile& tile) {
      kernels<T>().backward(call.form, tile.rows, tile.columns, tiling.matrix(gradients, tile),
                            call.tiling.matrix(from, tile), row.at(tile, tile.row), column.at(tile, tile.column),
                            call.tiling.matrix(to, tile), row_sums.get() + tiling.row_sum(tile),
                            column_sums.get() + tiling.column_sum(tile), stream);
    });
    const A* of_channels = planar ? row_sums.get() : column_sums.get();
    const A* of_pixels = planar ? column_sums.get() : row_sums.get();
    if (channel.has_value()) {
      grad_channel = gradient_of_logits(*channel, of_channels, tiling.samples, planar ? tiling.across() : tiling.down(),
                                        call.map.channels, channels.slopes.get());
    }
    if (spatial.has_value()) {
      grad_spatial = gradient_of_logits(*spatial, of_pixels, tiling.samples, planar ? tiling.down() : tiling.across(),
                                        call.map.pixels, pixels.slopes.get());
    }
  });
  return {grad_x, grad_channel, grad_spatial};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sod_ops, CPU, m) {
  m.impl("gate", TORCH_BOX(&gate));
  m.impl("gate_backward", TORCH_BOX(&gate_backward));
}

}  // namespace sod_ops

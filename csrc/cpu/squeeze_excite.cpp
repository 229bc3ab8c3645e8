// Squeeze-and-excitation on the CPU: checks, threads and memory. The arithmetic stands in ../simd/squeeze_excite.cpp.
//
// Samples are independent but for the weights' gradients. As many as fill the threads evenly are taken whole, each by
// one thread, so that the second read of a sample (to scale it) finds it in that core's cache. The rest, which is
// everything at batch 1, are cut into tiles of channels and pixels that all threads share.
#include "../simd/squeeze_excite.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "../dtype.h"
#include "../empty.h"
#include "../squeeze_excite.h"
#include "../stable.h"
#include "cache.h"
#include "maps.h"
#include "parallel.h"
#include "scratch.h"

namespace sod_ops {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename T>
using Acc = typename MapKernels<T>::Acc;

template <typename T>
const MapKernels<T>& map_kernels() {
  return kernels_of<T>(squeeze_excite_kernels());
}

template <typename A>
const ExcitationKernels<A>& excitation_kernels() {
  if constexpr (std::is_same_v<A, float>) return squeeze_excite_kernels().excitation32;
  if constexpr (std::is_same_v<A, double>) return squeeze_excite_kernels().excitation64;
}

// The parameters in the type that they are computed in. Those of two bytes are widened once per call.
template <typename T>
class Parameters {
 public:
  Parameters(const SqueezeExciteShape& g, const std::optional<Tensor>& reduce_weight,
             const std::optional<Tensor>& reduce_bias, const Tensor& expand_weight,
             const std::optional<Tensor>& expand_bias, int64_t activation, int64_t gate) {
    excitation = {g.reduces,           g.map.channels,    g.hidden(),
                  read(reduce_weight), read(reduce_bias), read(expand_weight),
                  read(expand_bias),   activation,        gate};
  }

  Excitation<Acc<T>> excitation;

 private:
  const Acc<T>* read(const std::optional<Tensor>& parameter) {
    if (!parameter.has_value()) return nullptr;
    constexpr auto accumulator = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;
    if (parameter->scalar_type() == accumulator) return static_cast<const Acc<T>*>(parameter->data_ptr());
    widened_.push_back(scratch<Acc<T>>(parameter->numel()));
    map_kernels<T>().widen(static_cast<const T*>(parameter->data_ptr()), widened_.back().get(), parameter->numel());
    return widened_.back().get();
  }

  std::vector<std::unique_ptr<Acc<T>[]>> widened_;
};

// How many samples are taken whole: the multiple of the number of threads.
int64_t whole_samples(int64_t samples) {
  const int64_t threads = torch::stable::get_num_threads();
  return samples - samples % threads;
}

template <typename T>
void scale_tile(const Tiles::Tile& tile, Samples<const T> a, int64_t n, const Acc<T>* factor, const Acc<T>* offset,
                Samples<T> y, bool stream) {
  map_kernels<T>().scale(tile.shape, a.at(tile.shape, n, tile.channel, tile.pixel), a.step, factor + tile.channel,
                         offset == nullptr ? nullptr : offset + tile.channel,
                         y.at(tile.shape, n, tile.channel, tile.pixel), y.step, stream);
}

// For samples [first, first + count), by all threads: sums [count, C] of a, or of a * b where b.data is not null.
template <typename T>
void tiled_sums(const Tiles& tiles, Samples<const T> a, Samples<const T> b, int64_t first, int64_t count,
                Acc<T>* sums) {
  const int64_t channels = tiles.map.channels;
  auto partial = scratch<Acc<T>>(count * tiles.sums() * channels);
  parallel_tasks(
      count * tiles.count, tiles.map.channels * tiles.map.pixels / tiles.count, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t n = i / tiles.count, t = i % tiles.count;
          const auto tile = tiles[t];
          const T* from = a.at(tile.shape, first + n, tile.channel, tile.pixel);
          const T* times = b.data == nullptr ? nullptr : b.at(tile.shape, first + n, tile.channel, tile.pixel);
          const int64_t row = n * tiles.sums() + (tiles.map.planar ? 0 : t);
          map_kernels<T>().sums(tile.shape, from, a.step, times, b.step, partial.get() + row * channels + tile.channel);
        }
      });
  for (int64_t n = 0; n < count; ++n) {
    Acc<T>* total = sums + n * channels;
    std::fill(total, total + channels, Acc<T>(0));
    for (int64_t row = 0; row < tiles.sums(); ++row) {
      const Acc<T>* part = partial.get() + (n * tiles.sums() + row) * channels;
      for (int64_t c = 0; c < channels; ++c) total[c] += part[c];
    }
  }
}

// For samples [first, first + count), by all threads: y = a * factor + offset, with factor and offset [count, C]. Last
// tiles first: what the sums before this read last is still in the cache.
template <typename T>
void tiled_scale(const Tiles& tiles, Samples<const T> a, const Acc<T>* factor, const Acc<T>* offset, Samples<T> y,
                 int64_t first, int64_t count, bool stream) {
  const int64_t channels = tiles.map.channels;
  parallel_tasks(count * tiles.count, tiles.map.channels * tiles.map.pixels / tiles.count,
                 [&](int64_t begin, int64_t end) {
                   for (int64_t i = end - 1; i >= begin; --i) {
                     const int64_t n = i / tiles.count;
                     scale_tile(tiles[i % tiles.count], a, first + n, factor + n * channels,
                                offset == nullptr ? nullptr : offset + n * channels, y, stream);
                   }
                 });
}

template <typename A>
void divide(A* values, int64_t n, int64_t divisor) {
  for (int64_t i = 0; i < n; ++i) values[i] /= static_cast<A>(divisor);
}

template <typename T>
void forward(const SqueezeExciteShape& g, const Excitation<Acc<T>>& e, Samples<const T> x, Samples<T> y,
             Acc<T>* statistics) {
  const auto& maps = map_kernels<T>();
  const auto& excitation = excitation_kernels<Acc<T>>();
  const int64_t channels = g.map.channels, width = g.statistics_width();

  // From the sums in the statistics row of sample n to its gates.
  const auto excite = [&](int64_t n, Acc<T>* hidden, Acc<T>* gates) {
    Acc<T>* means = statistics + n * width;
    divide(means, channels, g.map.pixels);
    excitation.forward(e, means, means + channels, hidden, means + channels + g.reduced, gates);
  };

  const bool stream = outgrows_caches(g.samples * channels * g.map.pixels * sizeof(T));
  const Tiles tiles(g.map);
  const int64_t whole = whole_samples(g.samples);
  parallel_tasks(whole, channels * g.map.pixels, [&](int64_t begin, int64_t end) {
    auto hidden = scratch<Acc<T>>(g.reduced), gates = scratch<Acc<T>>(channels);
    for (int64_t n = begin; n < end; ++n) {
      maps.sums(g.map, x.at(g.map, n), x.step, nullptr, 0, statistics + n * width);
      excite(n, hidden.get(), gates.get());
      for (int64_t t = tiles.count - 1; t >= 0; --t) scale_tile<T>(tiles[t], x, n, gates.get(), nullptr, y, stream);
    }
  });

  const int64_t rest = g.samples - whole;
  if (rest == 0) return;
  auto sums = scratch<Acc<T>>(rest * channels), hidden = scratch<Acc<T>>(g.reduced),
       gates = scratch<Acc<T>>(rest * channels);
  tiled_sums<T>(tiles, x, {}, whole, rest, sums.get());
  for (int64_t n = 0; n < rest; ++n) {
    std::copy_n(sums.get() + n * channels, channels, statistics + (whole + n) * width);
    excite(whole + n, hidden.get(), gates.get() + n * channels);
  }
  tiled_scale<T>(tiles, x, gates.get(), nullptr, y, whole, rest, stream);
}

// What the weights' gradients are summed from: a row for each sample.
template <typename A>
struct WeightRows {
  std::unique_ptr<A[]> hidden;   // [N, R]
  std::unique_ptr<A[]> grad_z1;  // [N, R]
  std::unique_ptr<A[]> grad_z2;  // [N, C]
};

template <typename T>
WeightRows<Acc<T>> backward_map(const SqueezeExciteShape& g, const Excitation<Acc<T>>& e, Samples<const T> grad_y,
                                Samples<const T> x, const Acc<T>* statistics, Samples<T> grad_x) {
  const auto& maps = map_kernels<T>();
  const auto& excitation = excitation_kernels<Acc<T>>();
  const int64_t channels = g.map.channels, width = g.statistics_width();
  WeightRows<Acc<T>> rows{scratch<Acc<T>>(g.samples * g.reduced), scratch<Acc<T>>(g.samples * g.reduced),
                          scratch<Acc<T>>(g.samples * channels)};

  // From the gradient of sample n's gates to its gates and what each of its pixels gets through the mean.
  const auto excite = [&](int64_t n, const Acc<T>* grad_gates, Acc<T>* gates, Acc<T>* offsets) {
    const Acc<T>* z1 = statistics + n * width + channels;
    excitation.backward(e, z1, z1 + g.reduced, grad_gates, rows.hidden.get() + n * g.reduced, gates,
                        rows.grad_z2.get() + n * channels, rows.grad_z1.get() + n * g.reduced, offsets);
    divide(offsets, channels, g.map.pixels);
  };

  const bool stream = outgrows_caches(g.samples * channels * g.map.pixels * sizeof(T));
  const Tiles tiles(g.map);
  const int64_t whole = whole_samples(g.samples);
  parallel_tasks(whole, channels * g.map.pixels, [&](int64_t begin, int64_t end) {
    auto grad_gates = scratch<Acc<T>>(channels), gates = scratch<Acc<T>>(channels), offsets = scratch<Acc<T>>(channels);
    for (int64_t n = begin; n < end; ++n) {
      maps.sums(g.map, grad_y.at(g.map, n), grad_y.step, x.at(g.map, n), x.step, grad_gates.get());
      excite(n, grad_gates.get(), gates.get(), offsets.get());
      for (int64_t t = tiles.count - 1; t >= 0; --t) {
        scale_tile<T>(tiles[t], grad_y, n, gates.get(), offsets.get(), grad_x, stream);
      }
    }
  });

  const int64_t rest = g.samples - whole;
  if (rest == 0) return rows;
  auto grad_gates = scratch<Acc<T>>(rest * channels), gates = scratch<Acc<T>>(rest * channels),
       offsets = scratch<Acc<T>>(rest * channels);
  tiled_sums<T>(tiles, grad_y, x, whole, rest, grad_gates.get());
  for (int64_t n = 0; n < rest; ++n) {
    excite(whole + n, grad_gates.get() + n * channels, gates.get() + n * channels, offsets.get() + n * channels);
  }
  tiled_scale<T>(tiles, grad_y, gates.get(), offsets.get(), grad_x, whole, rest, stream);
  return rows;
}

// The gradients of a weight [rows, columns] and its bias [rows]: sums over n of a[n, row] * b[n, column] and of a[n,
// row].
template <typename T>
void weight_gradient(const Acc<T>* a, int64_t rows, const Acc<T>* b, int64_t b_step, int64_t columns, int64_t samples,
                     const Tensor& grad_weight, const Tensor& grad_bias) {
  const bool narrow = grad_weight.element_size() != sizeof(Acc<T>);
  auto weight = scratch<Acc<T>>(narrow ? rows * columns : 0), bias = scratch<Acc<T>>(narrow ? rows : 0);
  Acc<T>* to_weight = narrow ? weight.get() : static_cast<Acc<T>*>(grad_weight.data_ptr());
  Acc<T>* to_bias = narrow ? bias.get() : static_cast<Acc<T>*>(grad_bias.data_ptr());
  parallel_tasks(rows, samples * columns, [&](int64_t begin, int64_t end) {
    excitation_kernels<Acc<T>>().outer_sums(a, rows, b, b_step, samples, begin, end, columns, to_weight, to_bias);
  });
  if (!narrow) return;
  map_kernels<T>().narrow(to_weight, static_cast<T*>(grad_weight.data_ptr()), rows * columns);
  map_kernels<T>().narrow(to_bias, static_cast<T*>(grad_bias.data_ptr()), rows);
}

std::tuple<Tensor, Tensor> squeeze_excite(const Tensor& x, const std::optional<Tensor>& reduce_weight,
                                          const std::optional<Tensor>& reduce_bias, const Tensor& expand_weight,
                                          const std::optional<Tensor>& expand_bias, int64_t activation, int64_t gate) {
  const auto g = check_squeeze_excite(x, reduce_weight, reduce_bias, expand_weight, expand_bias, activation, gate);
  const SqueezeExciteResults results(g, x);
  for_floating("squeeze_excite", "x", x.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const Parameters<T> parameters(g, reduce_weight, reduce_bias, expand_weight, expand_bias, activation, gate);
    forward<T>(g, parameters.excitation, samples_of<const T>(x, g.map.planar), samples_of<T>(results.y, g.map.planar),
               static_cast<Acc<T>*>(results.statistics.data_ptr()));
  });
  return {results.y, results.statistics};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> squeeze_excite_backward(const Tensor& grad_y, const Tensor& x,
                                                                           const std::optional<Tensor>& reduce_weight,
                                                                           const Tensor& expand_weight,
                                                                           const Tensor& statistics, int64_t activation,
                                                                           int64_t gate) {
  const auto g = check_squeeze_excite_backward(grad_y, x, reduce_weight, expand_weight, statistics, activation, gate);
  const SqueezeExciteGradients grads(g, x, reduce_weight, expand_weight);
  for_floating("squeeze_excite", "x", x.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const Parameters<T> parameters(g, reduce_weight, std::nullopt, expand_weight, std::nullopt, activation, gate);
    const bool planar = g.map.planar;
    const auto* means = static_cast<const Acc<T>*>(statistics.data_ptr());
    const auto rows = backward_map<T>(g, parameters.excitation, samples_of<const T>(grad_y, planar),
                                      samples_of<const T>(x, planar), means, samples_of<T>(grads.x, planar));
    const int64_t width = g.statistics_width(), channels = g.map.channels;
    weight_gradient<T>(rows.grad_z2.get(), channels, g.reduces ? rows.hidden.get() : means,
                       g.reduces ? g.reduced : width, g.hidden(), g.samples, grads.expand_weight, grads.expand_bias);
    if (g.reduces) {
      weight_gradient<T>(rows.grad_z1.get(), g.reduced, means, width, channels, g.samples, grads.reduce_weight,
                         grads.reduce_bias);
    }
  });
  return {grads.x, grads.reduce_weight, grads.reduce_bias, grads.expand_weight, grads.expand_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sod_ops, CPU, m) {
  m.impl("squeeze_excite", TORCH_BOX(&squeeze_excite));
  m.impl("squeeze_excite_backward", TORCH_BOX(&squeeze_excite_backward));
}

}  // namespace sod_ops

// The mean and the maximum over space on the CPU: checks, threads and memory. The arithmetic stands in
// ../simd/mean_maximum.cpp.
//
// A sample is a matrix, of channels x pixels where planar, otherwise of pixels x channels. It is cut into parts, whose
// size depends on the shape alone and with it the order of summation: the result does not change with the number of
// threads.
#include <optional>
#include <tuple>
#include <vector>

#include "../dtype.h"
#include "../simd/mean_maximum.h"
#include "cache.h"
#include "dense_map.h"
#include "elements.h"
#include "maps.h"
#include "other_gradient.h"
#include "parallel.h"
#include "scratch.h"

namespace sod_ops {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr auto kOp = "global_pool";
constexpr int64_t kPart = 131072;  // elements of a map

template <typename T>
const MeanMaximumKernels<T>& kernels() {
  return kernels_of<T>(mean_maximum_kernels());
}

// A sample's map in parts of some channels (all of them, where interleaved) and some pixels.
struct Parts {
  MapShape map;
  int64_t channels, pixels;  // of a part

  explicit Parts(const MapShape& shape) : map(shape) {
    pixels = std::clamp<int64_t>(shape.planar ? kPart : kPart / std::max<int64_t>(1, shape.channels), 1,
                                 std::max<int64_t>(1, shape.pixels));
    channels = shape.planar ? std::clamp<int64_t>(kPart / pixels, 1, std::max<int64_t>(1, shape.channels))
                            : std::max<int64_t>(1, shape.channels);
  }

  int64_t across() const { return (map.channels + channels - 1) / channels; }
  int64_t along() const { return (map.pixels + pixels - 1) / pixels; }

  // body(sample, part of the pixels, its map, its first channel, its first pixel) for every part, by all threads.
  template <typename Body>
  void for_each(int64_t samples, const Body& body) const {
    parallel_tasks(samples * across() * along(), channels * pixels, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t part = i % along(), c = i / along() % across() * channels, p = part * pixels;
        const MapShape some{std::min(channels, map.channels - c), std::min(pixels, map.pixels - p), map.planar};
        body(i / along() / across(), part, some, c, p);
      }
    });
  }
};

// What is known of a channel: its sum, its maximum and where that is.
template <typename Acc>
struct Partial {
  Acc* sums;
  Acc* maxima;
  int32_t* indices;

  Partial operator+(int64_t i) const { return {sums + i, maxima + i, indices + i}; }
};

std::tuple<Tensor, Tensor, Tensor> global_pool(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4 && x.size(2) * x.size(3) >= 1, kOp, ": x must be [N, C, H, W] with H and W at least 1");
  STD_TORCH_CHECK(x.is_cpu(), kOp, ": x must be on the CPU");
  const bool planar = is_planar(x);
  STD_TORCH_CHECK(readable(x, planar), kOp, ": x must be contiguous or channels_last, or a slice of such");
  const int64_t samples = x.size(0), channels = x.size(1), pixels = x.size(2) * x.size(3);
  Tensor mean = sod_ops::new_empty(x, {samples, channels, 1, 1}, x.scalar_type());
  Tensor maximum = sod_ops::new_empty(x, {samples, channels, 1, 1}, x.scalar_type());
  Tensor indices = sod_ops::new_empty(x, {samples, channels}, ScalarType::Long);
  auto* places = static_cast<int64_t*>(indices.data_ptr());
  const Parts parts({channels, pixels, planar});
  for_floating(kOp, "x", x.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using Acc = typename MeanMaximumKernels<T>::Acc;
    const auto from = samples_of<const T>(x, planar);
    const int64_t count = samples * parts.along() * channels;
    const auto sums = scratch<Acc>(count), maxima = scratch<Acc>(count);
    const auto indices_of_parts = scratch<int32_t>(count);
    const Partial<Acc> partial{sums.get(), maxima.get(), indices_of_parts.get()};
    parts.for_each(samples, [&](int64_t n, int64_t part, const MapShape& some, int64_t c, int64_t p) {
      const T* block = from.at(parts.map, n, c, p);
      const Partial<Acc> to = partial + ((n * parts.along() + part) * channels + c);
      const auto reduce = planar ? kernels<T>().over_columns : kernels<T>().over_rows;
      reduce(block, from.step, planar ? some.channels : some.pixels, planar ? some.pixels : some.channels, to.sums,
             to.maxima, to.indices);
    });
    const auto write = converters<Acc>().write[static_cast<int>(x.scalar_type())];
    parallel_tasks(samples, parts.along() * channels, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const Partial<Acc> total = partial + n * parts.along() * channels;
        int64_t* place = places + n * channels;
        for (int64_t c = 0; c < channels; ++c) place[c] = total.indices[c];
        for (int64_t part = 1; part < parts.along(); ++part) {
          const Partial<Acc> other = total + part * channels;
          for (int64_t c = 0; c < channels; ++c) {
            total.sums[c] += other.sums[c];
            if (other.maxima[c] <= total.maxima[c] || total.maxima[c] != total.maxima[c]) continue;
            total.maxima[c] = other.maxima[c];
            place[c] = part * parts.pixels + other.indices[c];
          }
        }
        for (int64_t c = 0; c < channels; ++c) total.sums[c] /= static_cast<Acc>(pixels);
        write(total.sums, channels, mean.data_ptr(), n * channels, 1, false);
        write(total.maxima, channels, maximum.data_ptr(), n * channels, 1, false);
      }
    });
  });
  return {mean, maximum, indices};
}

Tensor global_pool_backward(const Tensor& grad_mean, const Tensor& grad_maximum, const Tensor& indices, int64_t height,
                            int64_t width, bool channels_last, std::optional<Tensor> other) {
  STD_TORCH_CHECK(grad_mean.dim() == 4 && height >= 1 && width >= 1, kOp, ": gradients must be [N, C, 1, 1]");
  const int64_t samples = grad_mean.size(0), channels = grad_mean.size(1), pixels = height * width;
  for (const Tensor* grad : {&grad_mean, &grad_maximum}) {
    STD_TORCH_CHECK(grad->is_cpu() && grad->scalar_type() == grad_mean.scalar_type() && grad->is_contiguous() &&
                        is_dense_map(*grad, {samples, channels, 1, 1}, true),
                    kOp, ": gradients must be contiguous, [N, C, 1, 1], of one dtype, on the CPU");
  }
  STD_TORCH_CHECK(indices.dim() == 2 && indices.size(0) == samples && indices.size(1) == channels && indices.is_cpu() &&
                      indices.scalar_type() == ScalarType::Long && indices.is_contiguous(),
                  kOp, ": indices must be what global_pool returned");
  const bool planar = !channels_last;
  check_other_gradient(kOp, other, {samples, channels, height, width}, planar, grad_mean);
  Tensor grad_x = new_map(grad_mean, {samples, channels, height, width}, planar);
  const auto* places = static_cast<const int64_t*>(indices.data_ptr());
  const Parts parts({channels, pixels, planar});
  for_floating(kOp, "gradients", grad_mean.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using Acc = typename MeanMaximumKernels<T>::Acc;
    const Samples<T> to{static_cast<T*>(grad_x.data_ptr()), channels * pixels, planar ? pixels : channels};
    const OtherGradient<T> beside(other, planar);
    const auto read = converters<Acc>().read[static_cast<int>(grad_mean.scalar_type())];
    const bool stream = outgrows_caches(grad_x.numel() * static_cast<int64_t>(sizeof(T)));
    parts.for_each(samples, [&](int64_t n, int64_t, const MapShape& some, int64_t c, int64_t p) {
      std::vector<Acc> all(some.channels), first(some.channels);
      std::vector<int32_t> within(some.channels);
      const int64_t at = n * channels + c;
      read(grad_mean.data_ptr(), {0, 1}, samples * channels, at, some.channels, all.data());
      read(grad_maximum.data_ptr(), {0, 1}, samples * channels, at, some.channels, first.data());
      for (int64_t i = 0; i < some.channels; ++i) {
        all[i] /= static_cast<Acc>(pixels);
        first[i] += all[i];
        const int64_t place = places[at + i] - p;
        within[i] = static_cast<int32_t>(place >= 0 && place < some.pixels ? place : -1);
      }
      const auto spread = planar ? kernels<T>().spread_over_columns : kernels<T>().spread_over_rows;
      spread(planar ? some.channels : some.pixels, planar ? some.pixels : some.channels, all.data(), first.data(),
             within.data(), beside.at(parts.map, n, c, p), beside.step, to.at(parts.map, n, c, p), to.step, stream);
    });
  });
  return grad_x;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sod_ops, CPU, m) {
  m.impl("global_pool", TORCH_BOX(&global_pool));
  m.impl("global_pool_backward", TORCH_BOX(&global_pool_backward));
}

}  // namespace sod_ops

// The mean and the maximum over channels on the CPU: checks, threads and memory. The arithmetic stands in
// ../simd/mean_maximum.cpp.
//
// A task is some pixels of one sample with all their channels, so that a result is one task's alone: neither its sums
// nor its size depend on what the threads share. A sample is a matrix, of channels x pixels where planar, otherwise of
// pixels x channels.
#include <optional>
#include <tuple>

#include "../dtype.h"
#include "../simd/mean_maximum.h"
#include "cache.h"
#include "dense_map.h"
#include "elements.h"
#include "maps.h"
#include "other_gradient.h"
#include "parallel.h"

namespace sod_ops {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr auto kOp = "channel_pool";
constexpr int64_t kMostPixels = 4096, kLeastPixels = 64;

template <typename T>
const MeanMaximumKernels<T>& kernels() {
  return kernels_of<T>(mean_maximum_kernels());
}

// The pixels of N samples in blocks that give every thread some.
struct Blocks {
  int64_t pixels, size, count;

  Blocks(int64_t samples, int64_t pixels_of_sample) : pixels(pixels_of_sample) {
    const int64_t wanted = 8 * static_cast<int64_t>(torch::stable::get_num_threads());
    const int64_t even = (samples * pixels / wanted + kLeastPixels - 1) / kLeastPixels * kLeastPixels;
    size = std::clamp(even, kLeastPixels, kMostPixels);
    count = (pixels + size - 1) / size;
  }

  // body(sample, first pixel, pixels) for every block, by all threads.
  template <typename Body>
  void for_each(int64_t samples, int64_t channels, const Body& body) const {
    parallel_tasks(samples * count, size * channels, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = i % count * size;
        body(i / count, first, std::min(size, pixels - first));
      }
    });
  }
};

// The two channels of a dense map [N, 2, H, W]: where their pixels lie.
struct Pair {
  int64_t pixels;
  bool planar;

  int64_t step() const { return planar ? 1 : 2; }
  int64_t mean(int64_t n, int64_t p) const { return 2 * n * pixels + p * step(); }
  int64_t maximum(int64_t n, int64_t p) const { return mean(n, p) + (planar ? pixels : 1); }
};

std::tuple<Tensor, Tensor> channel_pool(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4 && x.size(1) >= 1, kOp, ": x must be [N, C, H, W] with C at least 1");
  STD_TORCH_CHECK(x.size(1) <= int64_t{1} << 30, kOp, ": x must have at most 2^30 channels");
  STD_TORCH_CHECK(x.is_cpu(), kOp, ": x must be on the CPU");
  const bool planar = is_planar(x);
  STD_TORCH_CHECK(readable(x, planar), kOp, ": x must be contiguous or channels_last, or a slice of such");
  const int64_t samples = x.size(0), channels = x.size(1), pixels = x.size(2) * x.size(3);
  Tensor y = new_map(x, {samples, 2, x.size(2), x.size(3)}, lies_in_planes(x));
  Tensor indices = sod_ops::new_empty(x, {samples, 1, x.size(2), x.size(3)}, ScalarType::Int);
  auto* to_indices = static_cast<int32_t*>(indices.data_ptr());
  const MapShape shape{channels, pixels, planar};
  const Pair pair{pixels, lies_in_planes(x)};
  for_floating(kOp, "x", x.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using Acc = typename MeanMaximumKernels<T>::Acc;
    const auto from = samples_of<const T>(x, planar);
    const auto write = converters<Acc>().write[static_cast<int>(x.scalar_type())];
    Blocks(samples, pixels).for_each(samples, channels, [&](int64_t n, int64_t p, int64_t count) {
      Acc means[kMostPixels], maxima[kMostPixels];
      int32_t* places = to_indices + n * pixels + p;
      const T* block = from.at(shape, n, 0, p);
      if (planar) {
        kernels<T>().over_rows(block, from.step, channels, count, means, maxima, places);
      } else {
        kernels<T>().over_columns(block, from.step, count, channels, means, maxima, places);
      }
      for (int64_t i = 0; i < count; ++i) means[i] /= static_cast<Acc>(channels);
      write(means, count, y.data_ptr(), pair.mean(n, p), pair.step(), false);
      write(maxima, count, y.data_ptr(), pair.maximum(n, p), pair.step(), false);
    });
  });
  return {y, indices};
}

Tensor channel_pool_backward(const Tensor& grad, const Tensor& indices, int64_t channels, bool channels_last,
                             std::optional<Tensor> other) {
  STD_TORCH_CHECK(grad.dim() == 4 && grad.is_cpu(), kOp, ": grad_output must be [N, 2, H, W] on the CPU");
  const int64_t samples = grad.size(0), height = grad.size(2), width = grad.size(3), pixels = height * width;
  const bool planar = !channels_last;
  STD_TORCH_CHECK(is_dense_map(grad, {samples, 2, height, width}, planar), kOp,
                  ": grad_output must have the shape and memory format of the result");
  STD_TORCH_CHECK(channels >= 1 && indices.is_cpu() && indices.scalar_type() == ScalarType::Int &&
                      indices.is_contiguous() && is_dense_map(indices, {samples, 1, height, width}, true),
                  kOp, ": indices must be what channel_pool returned");
  check_other_gradient(kOp, other, {samples, channels, height, width}, planar, grad);
  Tensor grad_x = new_map(grad, {samples, channels, height, width}, planar);
  const auto* places = static_cast<const int32_t*>(indices.data_ptr());
  const MapShape shape{channels, pixels, planar};
  const Pair pair{pixels, planar};
  for_floating(kOp, "grad_output", grad.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using Acc = typename MeanMaximumKernels<T>::Acc;
    const Samples<T> to{static_cast<T*>(grad_x.data_ptr()), channels * pixels, planar ? pixels : channels};
    const OtherGradient<T> beside(other, planar);
    const auto read = converters<Acc>().read[static_cast<int>(grad.scalar_type())];
    const bool stream = outgrows_caches(grad_x.numel() * static_cast<int64_t>(sizeof(T)));
    Blocks(samples, pixels).for_each(samples, channels, [&](int64_t n, int64_t p, int64_t count) {
      Acc all[kMostPixels], first[kMostPixels];
      const Steps steps{0, pair.step()};
      const T* from = static_cast<const T*>(grad.data_ptr());
      read(from + pair.mean(n, p), steps, count, 0, count, all);
      read(from + pair.maximum(n, p), steps, count, 0, count, first);
      for (int64_t i = 0; i < count; ++i) {
        all[i] /= static_cast<Acc>(channels);
        first[i] += all[i];
      }
      const auto spread = planar ? kernels<T>().spread_over_rows : kernels<T>().spread_over_columns;
      spread(planar ? channels : count, planar ? count : channels, all, first, places + n * pixels + p,
             beside.at(shape, n, 0, p), beside.step, to.at(shape, n, 0, p), to.step, stream);
    });
  });
  return grad_x;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sod_ops, CPU, m) {
  m.impl("channel_pool", TORCH_BOX(&channel_pool));
  m.impl("channel_pool_backward", TORCH_BOX(&channel_pool_backward));
}

}  // namespace sod_ops

// Object attention on the CPU: checks, threads and memory. The arithmetic stands in ../simd/object_attention.cpp.
//
// A task is a run of pixels of one sample: their factors are computed once and scale all channels. Where channels lie
// in planes a task goes from plane to plane, otherwise from pixel to pixel.
#include "../simd/object_attention.h"

#include <algorithm>
#include <tuple>

#include "../dtype.h"
#include "cache.h"
#include "elements.h"
#include "empty.h"
#include "maps.h"
#include "parallel.h"
#include "scratch.h"

namespace sod_ops {
namespace {

using torch::stable::Tensor;

constexpr auto kOp = "object_attention";

template <typename T>
const ObjectAttentionKernels<T>& kernels() {
  return kernels_of<T>(object_attention_kernels());
}

template <typename T>
using Acc = typename ObjectAttentionKernels<T>::Acc;

// Each sample's pixels cut into runs of one length. Long ones walk memory in order; what a task keeps for each pixel
// must stay in its core's first caches.
class PixelRuns {
 public:
  PixelRuns(int64_t samples, const MapShape& map) : samples_(samples), map_(map) {
    constexpr int64_t kLongest = 4096, kShortest = 64;  // a multiple of any vector, so that runs start as planes do
    const int64_t wanted = 4 * static_cast<int64_t>(torch::stable::get_num_threads());
    const int64_t fair = map.pixels * samples / wanted / kShortest * kShortest;
    length_ = std::clamp(fair, kShortest, kLongest);
    count_ = (map.pixels + length_ - 1) / length_;
  }

  int64_t length() const { return length_; }

  // body(n, first, part) for every run, by all threads: `part` is the shape of sample n's pixels from `first` on.
  template <typename Scratch, typename Body>
  void for_each(const Scratch& scratch, const Body& body) const {
    parallel_tasks(samples_ * count_, map_.channels * length_, [&](int64_t begin, int64_t end) {
      auto memory = scratch();
      for (int64_t i = begin; i < end; ++i) {
        const int64_t n = i / count_, first = i % count_ * length_;
        body(n, first, MapShape{map_.channels, std::min(length_, map_.pixels - first), map_.planar}, memory);
      }
    });
  }

 private:
  int64_t samples_;
  MapShape map_;
  int64_t length_;
  int64_t count_;
};

// Where pixel `first` of sample n begins.
template <typename T>
T* at(const Samples<T>& samples, const MapShape& part, int64_t n, int64_t first) {
  return samples.data + n * samples.sample_step + first * (part.planar ? 1 : samples.step);
}

// Checks. They are complete: sod_ops.object_attention looks for the argument at fault only after a refusal from here.
MapShape check(const Tensor& logits, const Tensor& encoder) {
  STD_TORCH_CHECK(encoder.dim() == 4 && encoder.is_cpu(), kOp, ": encoder must be [N, C, H, W], on the CPU");
  STD_TORCH_CHECK(logits.dim() == 4 && logits.is_cpu() && logits.size(0) == encoder.size(0) && logits.size(1) == 1 &&
                      logits.size(2) == encoder.size(2) && logits.size(3) == encoder.size(3),
                  kOp, ": decoder_logits must be [N, 1, H, W] beside encoder [N, C, H, W], on the CPU");
  STD_TORCH_CHECK(logits.scalar_type() == encoder.scalar_type(), kOp,
                  ": decoder_logits must have the dtype of encoder");
  const bool planar = is_planar(encoder);
  STD_TORCH_CHECK(readable(encoder, planar), kOp, ": encoder must be contiguous or channels_last, or a slice of such");
  STD_TORCH_CHECK(logits.numel() == 0 || pixel_step(logits) != 0, kOp,
                  ": decoder_logits must have its pixels at one step");
  return {encoder.size(1), encoder.size(2) * encoder.size(3), planar};
}

// The logits of any pixels, by their number in the batch.
template <typename A>
Source<A> source_of(const Tensor& logits) {
  return {logits, Steps{logits.stride(0), pixel_step(logits)}, std::max<int64_t>(1, logits.size(2) * logits.size(3))};
}

Tensor object_attention(const Tensor& decoder_logits, const Tensor& encoder, double lowest) {
  const MapShape map = check(decoder_logits, encoder);
  Tensor y = new_like(encoder);
  STD_TORCH_CHECK(readable(y, map.planar), kOp, ": the result for encoder has another memory format");
  if (encoder.numel() == 0) return y;
  for_floating(kOp, "encoder", encoder.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const auto logits = source_of<Acc<T>>(decoder_logits);
    const auto from = samples_of<const T>(encoder, map.planar);
    const auto to = samples_of<T>(y, map.planar);
    const bool stream = outgrows_caches(encoder.numel() * static_cast<int64_t>(sizeof(T)));
    const PixelRuns runs(encoder.size(0), map);
    runs.for_each([&] { return scratch<Acc<T>>(runs.length()); },
                  [&](int64_t n, int64_t first, const MapShape& part, const auto& factors) {
                    const auto* values = logits.read(n * map.pixels + first, part.pixels, factors.get());
                    kernels<T>().factors(values, part.pixels, static_cast<Acc<T>>(lowest), factors.get(), nullptr);
                    kernels<T>().scale(part, at(from, part, n, first), from.step, factors.get(), at(to, part, n, first),
                                       to.step, stream);
                  });
  });
  return y;
}

std::tuple<Tensor, Tensor> object_attention_backward(const Tensor& grad_output, const Tensor& decoder_logits,
                                                     const Tensor& encoder, double lowest) {
  const MapShape map = check(decoder_logits, encoder);
  STD_TORCH_CHECK(grad_output.dim() == 4 && grad_output.is_cpu() &&
                      std::equal(encoder.sizes().begin(), encoder.sizes().end(), grad_output.sizes().begin()) &&
                      grad_output.scalar_type() == encoder.scalar_type() && readable(grad_output, map.planar),
                  kOp, ": grad_output must have the shape, dtype and memory format of encoder");
  Tensor grad_encoder = new_like(encoder);
  STD_TORCH_CHECK(readable(grad_encoder, map.planar), kOp, ": the result for encoder has another memory format");
  Tensor grad_logits =
      sod_ops::new_empty(encoder, {encoder.size(0), 1, encoder.size(2), encoder.size(3)}, encoder.scalar_type());
  for_floating(kOp, "encoder", encoder.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const auto logits = source_of<Acc<T>>(decoder_logits);
    const auto grad = samples_of<const T>(grad_output, map.planar), x = samples_of<const T>(encoder, map.planar);
    const auto to = samples_of<T>(grad_encoder, map.planar);
    const Sink<Acc<T>> to_logits(grad_logits);
    const bool stream = outgrows_caches(encoder.numel() * static_cast<int64_t>(sizeof(T)));
    const PixelRuns runs(encoder.size(0), map);
    const int64_t length = runs.length();
    runs.for_each([&] { return scratch<Acc<T>>(4 * length); },
                  [&](int64_t n, int64_t first, const MapShape& part, const auto& memory) {
                    Acc<T>* factors = memory.get();
                    Acc<T>*slopes = factors + length, *sums = slopes + length;
                    const auto* values = logits.read(n * map.pixels + first, part.pixels, factors);
                    kernels<T>().factors(values, part.pixels, static_cast<Acc<T>>(lowest), factors, slopes);
                    kernels<T>().scale_backward(part, at(grad, part, n, first), grad.step, at(x, part, n, first),
                                                x.step, factors, at(to, part, n, first), to.step, sums, sums + length,
                                                stream);
                    const int64_t begin = n * map.pixels + first;
                    Acc<T>* gradients = to_logits.at(begin, sums);
                    for (int64_t p = 0; p < part.pixels; ++p) gradients[p] = sums[p] * slopes[p];
                    to_logits.write(begin, part.pixels, gradients);
                  });
  });
  return {grad_encoder, grad_logits};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sod_ops, CPU, m) {
  m.impl("object_attention", TORCH_BOX(&object_attention));
  m.impl("object_attention_backward", TORCH_BOX(&object_attention_backward));
}

}  // namespace sod_ops

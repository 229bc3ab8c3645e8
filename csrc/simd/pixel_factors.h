// Maps scaled by a factor for each pixel, which all of its channels share, and the backward of that; for the kernels in
// csrc/simd.
#pragma once

#include "map_shape.h"
#include "reduce.h"
#include "run_writer.h"
#include "scale_run.h"

namespace sod_ops::simd {
inline namespace CPU_CAPABILITY {

// Channels whose products are summed before they are added to those of others: the rounding error grows with the number
// of such groups, and not with that of channels.
constexpr int64_t kChannelsTogether = 32;

template <typename T, bool kStream>
inline void scale_pixels_of(MapShape shape, const T* a, int64_t a_step, const Accumulator<T>* factors, T* y,
                            int64_t y_step) {
  using L = Lanes<T>;
  if (shape.planar) {
    for (int64_t c = 0; c < shape.channels; ++c) {
      const T* from = a + c * a_step;
      write_run<T, kStream>(y + c * y_step, shape.pixels, [&](int64_t i, int64_t count) {
        return L::load(from + i, count) * L::load_accumulators(factors + i, count);
      });
    }
  } else if (kStream && y_step == shape.channels) {
    RunWriter<T, kStream> writer(y);
    for (int64_t p = 0; p < shape.pixels; ++p) {
      const L factor = L::fill(factors[p]);
      writer.write(shape.channels, [&](int64_t begin, int64_t n, T* to) {
        const T* from = a + p * a_step + begin;
        for_each_piece<T>(n, [&](int64_t i, auto count) { (L::load(from + i, count) * factor).store(to + i, count); });
      });
    }
    writer.finish();
  } else {
    for (int64_t p = 0; p < shape.pixels; ++p) {
      const L factor = L::fill(factors[p]);
      const T* from = a + p * a_step;
      write_run<T, false>(y + p * y_step, shape.channels,
                          [&](int64_t i, int64_t count) { return L::load(from + i, count) * factor; });
    }
  }
  if constexpr (kStream) stream_fence();
}

// y[c, p] = a[c, p] * factors[p]. `stream` says that y is too large to be found in a cache later.
template <typename T>
void scale_pixels(MapShape shape, const T* a, int64_t a_step, const Accumulator<T>* factors, T* y, int64_t y_step,
                  bool stream) {
  stream && (!shape.planar || worth_streaming(shape.pixels, y, y_step))
      ? scale_pixels_of<T, true>(shape, a, a_step, factors, y, y_step)
      : scale_pixels_of<T, false>(shape, a, a_step, factors, y, y_step);
}

// grad_x[c, p] = grad[c, p] * factors[p] and sums[p] += grad[c, p] * x[c, p] for up to kChannelsTogether planes.
template <typename T, bool kStream>
inline void planes_backward(MapShape shape, const T* grad, int64_t grad_step, const T* x, int64_t x_step,
                            const Accumulator<T>* factors, T* grad_x, int64_t grad_x_step, Accumulator<T>* sums) {
  using L = Lanes<T>;
  for (int64_t c = 0; c < shape.channels; ++c) {
    const T* g = grad + c * grad_step;
    const T* v = x + c * x_step;
    write_run<T, kStream>(grad_x + c * grad_x_step, shape.pixels, [&](int64_t i, int64_t count) {
      const L gradient = L::load(g + i, count);
      fmadd(gradient, L::load(v + i, count), L::load_accumulators(sums + i, count)).store_accumulators(sums + i, count);
      return gradient * L::load_accumulators(factors + i, count);
    });
  }
}

template <typename T, bool kStream>
inline void scale_pixels_backward_of(MapShape shape, const T* grad, int64_t grad_step, const T* x, int64_t x_step,
                                     const Accumulator<T>* factors, T* grad_x, int64_t grad_x_step,
                                     Accumulator<T>* sums, Accumulator<T>* scratch) {
  using Acc = Accumulator<T>;
  if (shape.planar) {
    std::fill(sums, sums + shape.pixels, Acc(0));
    for (int64_t c = 0; c < shape.channels; c += kChannelsTogether) {
      const MapShape group{std::min(kChannelsTogether, shape.channels - c), shape.pixels, true};
      std::fill(scratch, scratch + shape.pixels, Acc(0));
      planes_backward<T, kStream>(group, grad + c * grad_step, grad_step, x + c * x_step, x_step, factors,
                                  grad_x + c * grad_x_step, grad_x_step, scratch);
      for_each_piece<Acc>(shape.pixels, [&](int64_t i, auto count) {
        (Lanes<Acc>::load(sums + i, count) + Lanes<Acc>::load(scratch + i, count)).store(sums + i, count);
      });
    }
    if constexpr (kStream) stream_fence();
  } else {
    for (int64_t p = 0; p < shape.pixels; ++p) {
      sums[p] = sum_run<T, true>(grad + p * grad_step, x + p * x_step, shape.channels);
    }
    scale_pixels_of<T, kStream>(shape, grad, grad_step, factors, grad_x, grad_x_step);
  }
}

// grad_x[c, p] = grad[c, p] * factors[p] and sums[p] = sum over c of grad[c, p] * x[c, p]. `scratch` has room for a
// number per pixel.
template <typename T>
void scale_pixels_backward(MapShape shape, const T* grad, int64_t grad_step, const T* x, int64_t x_step,
                           const Accumulator<T>* factors, T* grad_x, int64_t grad_x_step, Accumulator<T>* sums,
                           Accumulator<T>* scratch, bool stream) {
  stream && (!shape.planar || worth_streaming(shape.pixels, grad_x, grad_x_step))
      ? scale_pixels_backward_of<T, true>(shape, grad, grad_step, x, x_step, factors, grad_x, grad_x_step, sums,
                                          scratch)
      : scale_pixels_backward_of<T, false>(shape, grad, grad_step, x, x_step, factors, grad_x, grad_x_step, sums,
                                           scratch);
}

}  // namespace CPU_CAPABILITY
}  // namespace sod_ops::simd

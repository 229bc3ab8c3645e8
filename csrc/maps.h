// Tensors [N, C, H, W] as the kernels of all devices walk them.
#pragma once

#include <cstdint>

#include "simd/map_shape.h"
#include "stable.h"

namespace sod_ops {

// Where a tensor [N, C, H, W] keeps its samples and, within one, its planes or pixels (see MapShape).
template <typename T>
struct Samples {
  T* data;
  int64_t sample_step;
  int64_t step;

  T* at(const MapShape& shape, int64_t n, int64_t channel = 0, int64_t pixel = 0) const {
    return data + n * sample_step + (shape.planar ? channel * step + pixel : pixel * step + channel);
  }
};

// The step from pixel to pixel; 0 where H x W pixels do not lie at one step.
inline int64_t pixel_step(const torch::stable::Tensor& x) {
  const int64_t height = x.size(2), width = x.size(3);
  if (width <= 1) return height <= 1 ? 1 : x.stride(2);
  return height <= 1 || x.stride(2) == width * x.stride(3) ? x.stride(3) : 0;
}

// Steps that leave each of `count` runs of `extent` elements its own memory, or all of them the same.
inline bool apart(int64_t step, int64_t count, int64_t extent) { return count <= 1 || step == 0 || step >= extent; }

// Whether the kernels can walk x in place. Runs that overlap are refused: a result with such strides is laid out
// otherwise.
inline bool readable(const torch::stable::Tensor& x, bool planar) {
  if (x.numel() == 0) return true;
  const int64_t step = pixel_step(x), pixels = x.size(2) * x.size(3), channels = x.size(1);
  if (planar) return step == 1 && apart(x.stride(1), channels, pixels) && apart(x.stride(0), x.size(0), pixels);
  return step != 0 && (channels <= 1 || x.stride(1) == 1) && apart(step, pixels, channels) &&
         apart(x.stride(0), x.size(0), channels);
}

// A single pixel is read as such where its channels lie side by side: one run instead of C runs of length 1.
inline bool is_planar(const torch::stable::Tensor& x) {
  const bool single = x.size(2) * x.size(3) == 1 && x.stride(1) == 1;
  return pixel_step(x) == 1 && !single;
}

template <typename T>
Samples<T> samples_of(const torch::stable::Tensor& x, bool planar) {
  return {static_cast<T*>(x.data_ptr()), x.stride(0), planar ? x.stride(1) : pixel_step(x)};
}

}  // namespace sod_ops

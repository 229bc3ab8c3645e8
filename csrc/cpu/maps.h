// Tensors [N, C, H, W] as the kernels walk them, and the cutting of one sample into tiles.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../simd/map_shape.h"
#include "../stable.h"

namespace sod_ops {

// Where a tensor [N, C, H, W] keeps its samples and, within one, its planes or pixels (see MapShape).
template <typename T>
struct Samples {
  T* data;
  int64_t sample_step;
  int64_t step;

  T* at(const MapShape& shape, int64_t n, int64_t channel = 0, int64_t pixel = 0) const {
    return data + n * sample_step + (shape.planar ? channel * step : pixel * step + channel);
  }
};

// The step from pixel to pixel; 0 where H x W pixels do not lie at one step.
inline int64_t pixel_step(const torch::stable::Tensor& x) {
  const int64_t height = x.size(2), width = x.size(3);
  if (width <= 1) return height <= 1 ? 1 : x.stride(2);
  return height <= 1 || x.stride(2) == width * x.stride(3) ? x.stride(3) : 0;
}

inline bool readable(const torch::stable::Tensor& x, bool planar) {
  if (x.numel() == 0) return true;
  const int64_t step = pixel_step(x);
  return planar ? step == 1 : step != 0 && (x.size(1) <= 1 || x.stride(1) == 1);
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

// A sample cut into tiles. Their size depends on the shape alone, so that the order of summation, and with it the
// result, does not change with the number of threads. A tile of interleaved pixels is a multiple of what the kernel
// sums at once.
struct Tiles {
  MapShape map;
  int64_t channels;
  int64_t pixels;
  int64_t across;
  int64_t down;

  explicit Tiles(const MapShape& shape) : map(shape) {
    constexpr int64_t kInterleavedChannels = 128, kInterleavedPixels = 256, kPlanarElements = 32768;
    channels = shape.planar ? std::max<int64_t>(1, kPlanarElements / std::max<int64_t>(1, shape.pixels))
                            : kInterleavedChannels;
    pixels = shape.planar ? std::max<int64_t>(1, shape.pixels) : kInterleavedPixels;
    across = (shape.channels + channels - 1) / channels;
    down = std::max<int64_t>(1, (shape.pixels + pixels - 1) / pixels);
  }

  int64_t count() const { return across * down; }

  struct Tile {
    MapShape shape;
    int64_t channel;
    int64_t pixel;
    int64_t row;  // which of the partial sums of its channels this tile gives
  };

  Tile operator[](int64_t i) const {
    const int64_t channel = i % across * channels, row = i / across, pixel = row * pixels;
    return {{std::min(channels, map.channels - channel), std::min(pixels, map.pixels - pixel), map.planar},
            channel,
            pixel,
            row};
  }
};

}  // namespace sod_ops

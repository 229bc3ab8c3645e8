// The cutting of one sample of a tensor [N, C, H, W] into tiles.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../maps.h"

namespace sod_ops {

// A sample cut into tiles: some planes, or some pixels with all their channels, so that a tile is one run of memory.
// Their size depends on the shape alone, and with it the order of summation: the result does not change with the number
// of threads. A tile of pixels is a multiple of what the kernels sum at once.
struct Tiles {
  MapShape map;
  int64_t size;  // planes or pixels in a tile
  int64_t count;

  explicit Tiles(const MapShape& shape) : map(shape) {
    constexpr int64_t kElements = 32768, kPixelsAtOnce = 8;
    const int64_t across = std::max<int64_t>(1, shape.planar ? shape.pixels : shape.channels);
    size = std::max<int64_t>(1, kElements / across);
    if (!shape.planar) size = std::max(kPixelsAtOnce, size / kPixelsAtOnce * kPixelsAtOnce);
    count = std::max<int64_t>(1, (length() + size - 1) / size);
  }

  struct Tile {
    MapShape shape;
    int64_t channel;
    int64_t pixel;
  };

  Tile operator[](int64_t i) const {
    const int64_t first = i * size, part = std::min(size, length() - first);
    if (map.planar) return {{part, map.pixels, true}, first, 0};
    return {{map.channels, part, false}, 0, first};
  }

  // How many partial sums of each channel the tiles give.
  int64_t sums() const { return map.planar ? 1 : count; }

 private:
  int64_t length() const { return map.planar ? map.channels : map.pixels; }
};

}  // namespace sod_ops

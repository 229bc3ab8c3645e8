// How one sample of a tensor [N, C, H, W] lies in memory.
#pragma once

#include <cstdint>

namespace sod_ops {

// One sample's map of `channels` x `pixels`. Planar: a channel's pixels lie side by side and `step` takes to the next
// channel (contiguous tensors). Otherwise a pixel's channels lie side by side and `step` takes to the next pixel
// (channels_last). Part of a map, some of its planes or some of its pixels, is a map too.
struct MapShape {
  int64_t channels;
  int64_t pixels;
  bool planar;
};

}  // namespace sod_ops

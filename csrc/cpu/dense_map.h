// Maps [N, C, H, W] that fill their memory, in one of the two memory formats: what operators return and get back.
#pragma once

#include <array>
#include <cstdint>

#include "../empty.h"
#include "maps.h"

namespace sod_ops {

using MapSizes = std::array<int64_t, 4>;

inline MapSizes map_strides(const MapSizes& sizes, bool planar) {
  const auto [samples, channels, height, width] = sizes;
  if (planar) return {channels * height * width, height * width, width, 1};
  return {channels * height * width, 1, width * channels, channels};
}

// An uninitialised map of the dtype of `like`: contiguous where planar, otherwise channels_last.
inline torch::stable::Tensor new_map(const torch::stable::Tensor& like, const MapSizes& sizes, bool planar) {
  const MapSizes strides = map_strides(sizes, planar);
  return empty_strided_like(like, 4, sizes.data(), strides.data(), like.scalar_type());
}

// Whether x has these sizes and fills its memory in this format. Strides of dimensions of size 1 say nothing.
inline bool is_dense_map(const torch::stable::Tensor& x, const MapSizes& sizes, bool planar) {
  if (x.dim() != 4) return false;
  const MapSizes strides = map_strides(sizes, planar);
  for (int64_t i = 0; i < 4; ++i) {
    if (x.size(i) != sizes[i]) return false;
    if (x.numel() > 0 && sizes[i] > 1 && x.stride(i) != strides[i]) return false;
  }
  return true;
}

// Whether the results for x are contiguous; otherwise they are channels_last.
inline bool lies_in_planes(const torch::stable::Tensor& x) { return pixel_step(x) == 1; }

}  // namespace sod_ops

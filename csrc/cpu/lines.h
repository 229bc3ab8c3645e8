// How a batch of images lies in lines of memory.
#pragma once

#include "../simd/lines.h"
#include "dense_map.h"
#include "maps.h"

namespace sod_ops {

// In units of elements, times `unit`.
inline Lines lines_of(const char* op, const char* name, const torch::stable::Tensor& images, bool planar,
                      int64_t unit) {
  const int64_t channels = images.size(1), height = images.size(2), width = images.size(3);
  const bool dense_pixels = planar || pixel_step(images) == channels || height * width == 1;
  STD_TORCH_CHECK(readable(images, planar) && dense_pixels, op, ": ", name,
                  " must be contiguous, a slice of such, or channels_last");
  if (planar) return {images.stride(0) * unit, images.stride(1) * unit, channels, height, width * unit, unit};
  return {images.stride(0) * unit, 0, 1, height, width * channels * unit, channels * unit};
}

// An uninitialised tensor of the sizes and the dtype of `images`, in their memory format.
inline torch::stable::Tensor new_images(const torch::stable::Tensor& images, bool planar) {
  return new_map(images, {images.size(0), images.size(1), images.size(2), images.size(3)}, planar);
}

// Refuses `samples` unless they are [count] numbers of samples.
inline void check_samples(const char* op, const char* name, const torch::stable::Tensor& samples, int64_t count) {
  STD_TORCH_CHECK(samples.dim() == 1 && samples.size(0) == count && samples.is_cpu() && samples.is_contiguous() &&
                      samples.scalar_type() == torch::headeronly::ScalarType::Long,
                  op, ": ", name, " must be [B], int64 and contiguous");
  const auto* sample = static_cast<const int64_t*>(samples.data_ptr());
  for (int64_t n = 0; n < count; ++n) {
    STD_TORCH_CHECK(0 <= sample[n] && sample[n] < count, op, ": ", name, " must be samples of the batch, got ",
                    sample[n]);
  }
}

}  // namespace sod_ops

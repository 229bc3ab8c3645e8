// Groups of threads within a warp: 1, 2, 4, 8, 16 or 32 lanes that work on one number together.
#pragma once

#include <cuda_runtime.h>

namespace sod_ops::cuda {

// The fewest lanes that take `items` at once, or 32.
__host__ __device__ inline unsigned lanes_for(unsigned items) {
  unsigned lanes = 1;
  while (lanes < items && lanes < 32) lanes *= 2;
  return lanes;
}

// The sum of the values of this group's `lanes` threads, for all of them, always in the same order. All threads of the
// warp must come here.
template <typename Acc>
__device__ __forceinline__ Acc group_sum(Acc value, unsigned lanes) {
  for (unsigned step = lanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}

}  // namespace sod_ops::cuda

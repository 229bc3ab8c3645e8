// A sum over the threads of a block, always in the same order.
#pragma once

#include <cuda_runtime.h>

namespace sod_ops::cuda {

// The sum of every thread's value, for thread 0; by blocks of whole warps.
template <typename Acc>
__device__ Acc block_sum(Acc value) {
  __shared__ Acc of_warps[32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(~0u, value, step);
  if (lane == 0) of_warps[warp] = value;
  __syncthreads();
  if (warp != 0) return value;
  value = lane < blockDim.x / 32 ? of_warps[lane] : Acc(0);
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(~0u, value, step);
  return value;
}

}  // namespace sod_ops::cuda

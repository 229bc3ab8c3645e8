// Sums over the threads of a warp or a block, always in the same order.
#pragma once

#include <cuda_runtime.h>

namespace sod_ops::cuda {

// The sum of every thread's value, for lane 0.
template <typename Acc>
__device__ __forceinline__ Acc warp_sum(Acc value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(~0u, value, step);
  return value;
}

// The sums of every thread's values, for thread 0; by blocks of whole warps, once in a kernel for each type.
template <typename Acc, int kCount>
__device__ void block_sums(Acc (&values)[kCount]) {
  __shared__ Acc of_warps[kCount][32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    values[i] = warp_sum(values[i]);
    if (lane == 0) of_warps[i][warp] = values[i];
  }
  __syncthreads();
  if (warp != 0) return;
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = warp_sum(lane < blockDim.x / 32 ? of_warps[i][lane] : Acc(0));
}

// The same of one value.
template <typename Acc>
__device__ Acc block_sum(Acc value) {
  Acc values[1] = {value};
  block_sums(values);
  return values[0];
}

}  // namespace sod_ops::cuda

// Sums over a whole tensor in two launches, always in the same order: each block leaves its sum, and one block adds them up.
#pragma once

#include "elements.h"
#include "launch.h"

namespace sod_ops::cuda {

// The sum of every thread's value, for thread 0.
template <int kThreads, typename Acc>
__device__ Acc block_sum(Acc value) {
  __shared__ Acc of_warps[kThreads / 32];
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(~0u, value, step);
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = value;
  __syncthreads();
  value = threadIdx.x < kThreads / 32 ? of_warps[threadIdx.x] : Acc(0);
  if (threadIdx.x < 32) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(~0u, value, step);
  }
  return value;
}

constexpr int kSumThreads = 512;

// total = sum of partial [count], by one block.
template <typename Acc>
__global__ void __launch_bounds__(kSumThreads) sum_kernel(const Acc* partial, int64_t count, Output total) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kSumThreads) sum += partial[i];
  const Acc value[1] = {static_cast<Acc>(block_sum<kSumThreads>(sum))};
  if (threadIdx.x == 0) write(total, 0, 1, value);
}

}  // namespace sod_ops::cuda

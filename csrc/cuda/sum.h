// Sums over a whole tensor in two launches, always in the same order: each block leaves its sum, and one block adds
// them up.
#pragma once

#include "block_sum.h"
#include "elements.h"
#include "launch.h"

namespace sod_ops::cuda {

constexpr int kSumThreads = 512;

// total = sum of partial [count], by one block.
template <typename Acc>
__global__ void __launch_bounds__(kSumThreads) sum_kernel(const Acc* partial, int64_t count, Output total) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kSumThreads) sum += partial[i];
  const Acc value[1] = {static_cast<Acc>(block_sum(sum))};
  if (threadIdx.x == 0) write(total, 0, 1, value);
}

}  // namespace sod_ops::cuda

// Products of a small matrix and a vector in shared memory, by a block of kThreads threads. A weight is read once by
// the block, lanes side by side; sums are in Acc and in an order that the sizes alone decide.
#pragma once

#include "groups.h"

namespace sod_ops::cuda {

// finish(o, sum_i matrix[o * pitch + i] vector[i]) for all outputs: as many lanes as there are inputs, up to a warp,
// take an output. `finish` is called by one thread for each.
template <unsigned kThreads, typename W, typename Acc, typename Finish>
__device__ __forceinline__ void rows_product(const W* matrix, int64_t pitch, unsigned outputs, unsigned inputs,
                                             const Acc* vector, const Finish& finish) {
  const unsigned lanes = lanes_for(inputs), lane = threadIdx.x % lanes, first = threadIdx.x / lanes;
  // The same number of turns for all threads of a warp.
  for (unsigned start = 0; start < outputs; start += kThreads / lanes) {
    const unsigned output = start + first;
    Acc sum = 0;
    if (output < outputs) {
      const W* row = matrix + output * pitch;
#pragma unroll 4
      for (unsigned i = lane; i < inputs; i += lanes) sum += static_cast<Acc>(row[i]) * vector[i];
    }
    sum = group_sum(sum, lanes);
    if (lane == 0 && output < outputs) finish(output, sum);
  }
}

// finish(o, sum_i matrix[i * pitch + o] vector[i]): a thread takes an output, or part of its inputs where outputs are
// few; `scratch` has kThreads numbers.
template <unsigned kThreads, typename W, typename Acc, typename Finish>
__device__ __forceinline__ void columns_product(const W* matrix, int64_t pitch, unsigned outputs, unsigned inputs,
                                                const Acc* vector, Acc* scratch, const Finish& finish) {
  constexpr unsigned kMostGroups = 64;  // whose sums one thread adds up
  const unsigned width = max(1u, min(outputs, kThreads)), groups = min(kThreads / width, kMostGroups);
  const unsigned group = threadIdx.x / width, column = threadIdx.x % width;
  for (unsigned start = 0; start < outputs; start += width) {
    const unsigned output = start + column;
    if (group < groups && output < outputs) {
      Acc sum = 0;
#pragma unroll 4
      for (unsigned i = group; i < inputs; i += groups) sum += static_cast<Acc>(matrix[i * pitch + output]) * vector[i];
      scratch[group * width + column] = sum;
    }
    __syncthreads();
    if (group == 0 && output < outputs) {
      Acc sum = 0;
#pragma unroll 4
      for (unsigned g = 0; g < groups; ++g) sum += scratch[g * width + column];
      finish(output, sum);
    }
    __syncthreads();
  }
}

}  // namespace sod_ops::cuda

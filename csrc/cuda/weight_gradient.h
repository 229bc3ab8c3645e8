// The gradients of a layer's weight and bias from those of its outputs, summed over the samples:
//
//     weight [O, I] = sum_n gradient[n, o] activation(source[n, i])        bias [O] = sum_n gradient[n, o]
//
// A block computes a tile of kTile x kTile weights, one sample after the other, in Acc.
#pragma once

#include "../math/activation.h"
#include "elements.h"

namespace sod_ops::cuda {

constexpr unsigned kTile = 32;
constexpr unsigned kWeightThreads = 256;
constexpr unsigned kSamplesTogether = 16;

template <typename Acc>
struct WeightGradient {
  const Acc* gradient;  // [N, O], rows gradient_step apart
  int64_t gradient_step;
  const Acc* source;  // [N, I]
  int64_t source_step;
  int64_t outputs, inputs;
  Output weight, bias;

  __host__ __device__ int64_t across() const { return inputs > kTile ? (inputs + kTile - 1) / kTile : 1; }
  __host__ __device__ int64_t tiles() const { return (outputs + kTile - 1) / kTile * across(); }

  // Tile number `tile`.
  __device__ __forceinline__ void compute(int64_t tile, int64_t samples, math::Activation activation) const {
    __shared__ Acc gradients[kSamplesTogether][kTile], sources[kSamplesTogether][kTile];
    constexpr unsigned kRows = kWeightThreads / kTile;  // that the block has threads for
    const int64_t top = tile / across() * kTile, left = tile % across() * kTile;
    const unsigned row = threadIdx.x / kTile, column = threadIdx.x % kTile;
    Acc totals[kTile / kRows] = {}, bias_total = 0;
    for (int64_t start = 0; start < samples; start += kSamplesTogether) {
      const unsigned here = static_cast<unsigned>(min(samples - start, static_cast<int64_t>(kSamplesTogether)));
      for (unsigned n = row; n < here; n += kRows) {
        gradients[n][column] = top + column < outputs ? gradient[(start + n) * gradient_step + top + column] : Acc(0);
        sources[n][column] = left + column < inputs
                                 ? math::activation(activation, source[(start + n) * source_step + left + column])
                                 : Acc(0);
      }
      __syncthreads();
      for (unsigned n = 0; n < here; ++n) {
#pragma unroll
        for (unsigned k = 0; k < kTile / kRows; ++k) totals[k] += gradients[n][row + k * kRows] * sources[n][column];
        bias_total += gradients[n][column];
      }
      __syncthreads();
    }
#pragma unroll
    for (unsigned k = 0; k < kTile / kRows; ++k) {
      const int64_t output = top + row + k * kRows;
      const Acc value[1] = {totals[k]};
      if (output < outputs && left + column < inputs) write(weight, output * inputs + left + column, 1, value);
    }
    const Acc value[1] = {bias_total};
    if (left == 0 && row == 0 && top + column < outputs) write(bias, top + column, 1, value);
  }
};

}  // namespace sod_ops::cuda

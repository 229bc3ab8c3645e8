// Averages over windows around every pixel, along rows and then along columns: csrc/simd/box_filter.h has the idea, the
// same here. Along an axis, blocks of k elements follow each other, k the window's length. A window that starts at
// element t of a block is the block's sum from t on and the next block's sum up to t: nothing is subtracted.
#pragma once

#include <algorithm>

#include "block_sum.h"
#include "launch.h"
#include "map.h"

namespace sod_ops::cuda {

constexpr int kBoxThreads = 128;
// Rows whose elements a thread has under way at a time.
constexpr int kRowsAhead = 8;

// A window of kernel_size x kernel_size pixels on planes of this size.
struct Windows {
  int64_t height, width;
  // What a window holds beyond the image is zero on both sides: the part that counts is no longer than 2 half + 1.
  int64_t half_down, half_across;
  int64_t blocks_down, blocks_across;  // of a column's and a row's elements
  double scale;                        // from a sum to the average

  Windows(int64_t rows, int64_t columns, int64_t kernel_size)
      : height(rows),
        width(columns),
        half_down(std::min(kernel_size / 2, rows - 1)),
        half_across(std::min(kernel_size / 2, columns - 1)),
        blocks_down((rows + 2 * half_down) / (2 * half_down + 1)),
        blocks_across((columns + 2 * half_across) / (2 * half_across + 1)),
        scale(1.0 / (static_cast<double>(kernel_size) * static_cast<double>(kernel_size))) {}
};

// sums [samples, height, width] of windows along the rows of a map. A group of `lanes` threads, a power of 2, takes a
// row's block, so many elements at a time.
template <typename Acc>
__global__ void __launch_bounds__(kBoxThreads, 8)
    sum_across_kernel(const Map map, int64_t samples, const Windows windows, int lanes, Acc* sums) {
  const int64_t item = (static_cast<int64_t>(blockIdx.x) * kBoxThreads + threadIdx.x) / lanes;
  const int lane = threadIdx.x % lanes;
  const int64_t row = quotient(item, windows.blocks_across), sample = quotient(row, windows.height);
  const bool there = sample < samples;
  const int64_t length = 2 * windows.half_across + 1, start = (item - row * windows.blocks_across) * length;
  const auto element = [&](int64_t x) {
    Acc value[1] = {0};
    if (there && x >= 0 && x < windows.width) read(map, sample, row - sample * windows.height, x, 1, value);
    return value[0];
  };
  Acc* const to = sums + row * windows.width + start;
  const int64_t count = there ? min(length, windows.width - start) : 0;

  // From each element to the end of the block; the first `lanes` of these sums stay in a register.
  Acc behind = 0, carried = 0;
  for (int64_t first = (length - 1) / lanes * lanes; first >= 0; first -= lanes) {
    const int64_t t = first + lane;
    behind = t < length ? element(start + t - windows.half_across) : Acc(0);
    for (int step = 1; step < lanes; step *= 2) {
      const Acc later = __shfl_down_sync(~0u, behind, step, lanes);
      if (lane + step < lanes) behind += later;
    }
    behind += carried;
    carried = __shfl_sync(~0u, behind, 0, lanes);
    if (first > 0 && t < count) to[t] = behind;
  }
  // From the next block's first element up to each, which is one place behind where its window starts.
  carried = 0;
  for (int64_t first = 0; first < length; first += lanes) {
    const int64_t t = first + lane;
    Acc ahead = t > 0 && t < length ? element(start + length + t - 1 - windows.half_across) : Acc(0);
    for (int step = 1; step < lanes; step *= 2) {
      const Acc earlier = __shfl_up_sync(~0u, ahead, step, lanes);
      if (lane >= step) ahead += earlier;
    }
    ahead += carried;
    carried = __shfl_sync(~0u, ahead, lanes - 1, lanes);
    if (t < count) to[t] = (first > 0 ? to[t] : behind) + ahead;
  }
}

template <typename Acc>
void sum_across(const Launcher& launcher, const Map& map, int64_t samples, const Windows& windows, Acc* sums) {
  int lanes = 1;
  while (lanes < 32 && lanes < 2 * windows.half_across + 1) lanes *= 2;
  const int64_t threads = samples * windows.height * windows.blocks_across * lanes;
  launcher(sum_across_kernel<Acc>, (threads + kBoxThreads - 1) / kBoxThreads, kBoxThreads, map, samples, windows, lanes,
           sums);
}

// Takes the averages at a block of a column: results [height, width] = use(average, y) from the plane's sums along
// rows and its elements y. `item` counts blocks and, in each, columns.
template <typename Acc, typename Use>
__device__ __forceinline__ void average_down(const Windows& windows, const Acc* __restrict__ sums, const Map& map,
                                             int64_t sample, int64_t item, Acc* __restrict__ results, const Use& use) {
  const int64_t width = windows.width, block = quotient(item, width), x = item - block * width;
  const int64_t length = 2 * windows.half_down + 1, start = block * length;
  const int64_t count = min(length, windows.height - start);
  sums += x;
  results += start * width + x;
  Acc value[kRowsAhead], behind[kRowsAhead], y[kRowsAhead];

  Acc sum = 0;
  for (int64_t last = min(length, windows.height - start + windows.half_down) - 1; last >= 0; last -= kRowsAhead) {
#pragma unroll
    for (int i = 0; i < kRowsAhead; ++i) {
      const int64_t row = start + last - i - windows.half_down;
      value[i] = last >= i && row >= 0 ? sums[row * width] : Acc(0);
    }
#pragma unroll
    for (int i = 0; i < kRowsAhead; ++i) {
      sum += value[i];
      if (last >= i && last - i < count) results[(last - i) * width] = sum;
    }
  }
  const Acc scale = static_cast<Acc>(windows.scale);
  sum = 0;
  for (int64_t first = 0; first < count; first += kRowsAhead) {
    const int here = static_cast<int>(min(static_cast<int64_t>(kRowsAhead), count - first));
    read_down(map, sample, start + first, x, 0, here, y);
#pragma unroll
    for (int i = 0; i < kRowsAhead; ++i) {
      const int64_t t = first + i, row = start + t + windows.half_down;
      value[i] = t > 0 && t < count && row < windows.height ? sums[row * width] : Acc(0);
      behind[i] = i < here ? results[t * width] : Acc(0);
    }
#pragma unroll
    for (int i = 0; i < kRowsAhead; ++i) {
      sum += value[i];
      if (i < here) results[(first + i) * width] = use((behind[i] + sum) * scale, y[i]);
    }
  }
}

}  // namespace sod_ops::cuda

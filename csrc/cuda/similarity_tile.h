// A tile of a head and its mask, from pixels to their similarities and back to derivatives: similarity.h has the idea.
#pragma once

#include <algorithm>

#include "../math/ssim.h"
#include "map.h"

namespace sod_ops::cuda {

constexpr int kSimilarityThreads = 192;
// From a window's middle to its end: of those with tiles in shared memory.
constexpr int kMostHalf = 5;

// An axis of the tile from `begin` on. With n halves of a window on both sides of it, it is length(n) rows or columns
// from first(n) on, and never longer than most(n). This one is of a fixed length, whatever lies outside of the map, and
// windows are taken for the longest that there are: with weights of 0 where they are shorter.
template <int kLength>
struct SharedAxis {
  using Index = int;
  static constexpr bool kShared = true;
  static constexpr int kEach = 5;  // averages next to each other that a thread takes
  static_assert(kLength % kEach == 0 && 2 * kMostHalf % kEach == 0);

  int64_t size = 0, begin = 0;

  SharedAxis() = default;
  SharedAxis(int64_t of_map, int64_t) : size(of_map) {}

  static __host__ __device__ constexpr int64_t tile() { return kLength; }
  __device__ int64_t first(int n) const { return begin - n * kMostHalf; }
  static __host__ __device__ constexpr int most(int n) { return kLength + 2 * n * kMostHalf; }
  static __host__ __device__ constexpr int length(int n) { return most(n); }
};

// This one ends where the map does.
struct LargeAxis {
  using Index = int64_t;
  static constexpr bool kShared = false;
  static constexpr int kEach = 1;

  int64_t size, begin = 0, half;

  LargeAxis(int64_t of_map, int64_t window_size)
      : size(of_map), half(std::max<int64_t>(0, std::min(window_size / 2, of_map - 1))) {}

  __host__ __device__ int64_t tile() const { return 4 * half > 32 ? 4 * half : 32; }
  __device__ int64_t first(int n) const { return max(int64_t{0}, begin - n * half); }
  __host__ __device__ int64_t most(int n) const {
    const int64_t whole = tile() + 2 * n * half;
    return whole < size ? whole : size;
  }
  __device__ int64_t length(int n) const { return min(size, begin + tile() + n * half) - first(n); }
};

// The window's weights by the distance from its middle.
template <typename Acc>
struct GaussianWeights {
  Acc near[kMostHalf + 1];
  const Acc* all;
};

template <typename Acc>
__global__ void __launch_bounds__(kSimilarityThreads)
    gaussian_weights_kernel(Acc* weights, int64_t count, double sigma, double scale) {
  for (int64_t t = threadIdx.x; t < count; t += kSimilarityThreads) {
    const double deviations = static_cast<double>(t) / sigma;
    weights[t] = static_cast<Acc>(::exp(-0.5 * deviations * deviations) * scale);
  }
}

// results[k] = the average around value number at + k, of those that value(i) gives for n halves of a window more
// on both sides. From both ends of a window to its middle, where the weight is largest: the other way round, most
// additions would round a sum that is large already.
template <typename Axis, typename Acc, typename Value>
__device__ __forceinline__ void average(const Axis& axis, const GaussianWeights<Acc>& weights, int n,
                                        typename Axis::Index at, const Value& value, Acc (&results)[Axis::kEach]) {
  if constexpr (Axis::kShared) {
    Acc values[Axis::kEach + 2 * kMostHalf];
#pragma unroll
    for (int i = 0; i < Axis::kEach + 2 * kMostHalf; ++i) values[i] = value(at + i);
#pragma unroll
    for (int k = 0; k < Axis::kEach; ++k) {
      results[k] = 0;
#pragma unroll
      for (int t = kMostHalf; t > 0; --t) {
        results[k] += weights.near[t] * (values[k + kMostHalf - t] + values[k + kMostHalf + t]);
      }
      results[k] += weights.near[0] * values[k + kMostHalf];
    }
  } else {
    const int64_t middle = at + axis.first(n) - axis.first(n + 1), count = axis.length(n + 1);
    results[0] = 0;
    for (int64_t t = axis.half; t > 0; --t) {
      const Acc before = middle >= t ? value(middle - t) : Acc(0);
      results[0] += weights.all[t] * (before + (middle + t < count ? value(middle + t) : Acc(0)));
    }
    results[0] += weights.all[0] * value(middle);
  }
}

// What a block works on, and where it keeps what it works with. kDerives: the derivatives by a tile's pixels are
// wanted, which depend on the averages around it; otherwise the indices alone.
template <typename Acc, typename Axis, typename Columns, bool kDerives>
struct SimilarityTile {
  using Index = typename Axis::Index;
  static constexpr int kAverages = kDerives ? 1 : 0;  // halves of a window that averages are wanted beyond the tile
  static constexpr int kPixels = kAverages + 1;       // and pixels

  Axis rows;
  Columns columns;
  GaussianWeights<Acc> weights;
  Acc* memory;

  // An odd step from row to row: rows below each other then lie in different banks of shared memory.
  static __host__ __device__ constexpr Index pitch_of(const Columns& columns, int n) { return columns.most(n) | 1; }
  static __host__ __device__ constexpr Index plane(const Axis& rows, const Columns& columns, int down, int across) {
    return rows.most(down) * pitch_of(columns, across);
  }
  // Of `memory`.
  static __host__ __device__ constexpr Index numbers(const Axis& rows, const Columns& columns) {
    const Index averages = plane(rows, columns, kAverages, kAverages);
    const Index pixels = plane(rows, columns, kPixels, kPixels), derivatives = kDerives ? 3 * averages : 0;
    return pixels + averages + 3 * plane(rows, columns, kPixels, kAverages) +
           (pixels > derivatives ? pixels : derivatives);
  }

  __device__ Index pitch(int n) const { return pitch_of(columns, n); }
  __device__ Acc* mask() const { return memory; }
  __device__ Acc* mean_mask() const { return mask() + plane(rows, columns, kPixels, kPixels); }
  // Averages along rows.
  __device__ Acc* across(int map) const {
    return mean_mask() + plane(rows, columns, kAverages, kAverages) + map * plane(rows, columns, kPixels, kAverages);
  }
  // The head's pixels, and when these have been averaged, the index's derivatives by the averages.
  __device__ Acc* head() const { return across(3); }
  __device__ Acc* by_averages(int map) const { return head() + map * plane(rows, columns, kAverages, kAverages); }

  __device__ Index pixel(Index row, Index column, int n) const {
    return (row + static_cast<Index>(rows.first(n) - rows.first(kPixels))) * pitch(kPixels) + column +
           static_cast<Index>(columns.first(n) - columns.first(kPixels));
  }

  __device__ bool inside(Index row, Index column, int n) const {
    const int64_t y = rows.first(n) + row, x = columns.first(n) + column;
    return y >= 0 && y < rows.size && x >= 0 && x < columns.size;
  }

  __device__ void load(const Map& map, int64_t sample, Acc* to) const {
    read_tile<kSimilarityThreads>(map, sample, rows.size, columns.size, rows.first(kPixels), columns.first(kPixels),
                                  static_cast<Index>(rows.length(kPixels)), static_cast<Index>(columns.length(kPixels)),
                                  pitch(kPixels), to);
  }

  // Calls body(fast, slow) for this thread's share of all pairs; `fast` of neighbours are next to each other.
  template <typename Body>
  static __device__ __forceinline__ void for_each(Index fast, Index slow, const Body& body) {
    for (Index i = threadIdx.x; i < fast * slow; i += kSimilarityThreads) {
      const Index outer = Axis::kShared ? i / fast : static_cast<Index>(quotient(i, fast));
      body(i - outer * fast, outer);
    }
  }

  // Writes the averages along rows of kMaps maps: value(map, row, column).
  template <int kMaps, typename Value>
  __device__ __forceinline__ void average_across(int n, Index height, const Value& value) const {
    constexpr int kEach = Columns::kEach;
    const auto take = [&](Index row, Index group) {
      Acc results[kMaps][kEach];
#pragma unroll
      for (int m = 0; m < kMaps; ++m) {
        average(columns, weights, n, group * kEach, [&](Index column) { return value(m, row, column); }, results[m]);
      }
      const Index at = row * pitch(n) + group * kEach;
#pragma unroll
      for (int m = 0; m < kMaps; ++m) {
#pragma unroll
        for (int k = 0; k < kEach; ++k) across(m)[at + k] = results[m][k];
      }
    };
    const Index groups = static_cast<Index>(columns.length(n)) / kEach;
    if constexpr (Columns::kShared) {
      for_each(height, groups, take);
    } else {
      for_each(groups, height, [&](Index group, Index row) { take(row, group); });
    }
  }

  // Takes the averages over windows from those along rows: use(row, column, averages).
  template <int kMaps, typename Use>
  __device__ __forceinline__ void average_down(int n, const Use& use) const {
    constexpr int kEach = Axis::kEach;
    for_each(static_cast<Index>(columns.length(n)), static_cast<Index>(rows.length(n)) / kEach,
             [&](Index column, Index group) {
               Acc results[kMaps][kEach];
#pragma unroll
               for (int m = 0; m < kMaps; ++m) {
                 const Acc* from = across(m) + column;
                 average(rows, weights, n, group * kEach, [&](Index row) { return from[row * pitch(n)]; }, results[m]);
               }
#pragma unroll
               for (int k = 0; k < kEach; ++k) {
                 Acc averages[kMaps];
#pragma unroll
                 for (int m = 0; m < kMaps; ++m) averages[m] = results[m][k];
                 use(group * kEach + k, column, averages);
               }
             });
  }

  // The mask and its averages.
  __device__ void start(const Map& map, int64_t sample) const {
    load(map, sample, mask());
    __syncthreads();
    average_across<1>(kAverages, static_cast<Index>(rows.length(kPixels)),
                      [&](int, Index row, Index column) { return mask()[row * pitch(kPixels) + column]; });
    __syncthreads();
    average_down<1>(kAverages, [&](Index row, Index column, const Acc(&averages)[1]) {
      mean_mask()[row * pitch(kAverages) + column] = averages[0];
    });
  }

  // Takes a head's similarities: use(row, column, similarity).
  template <typename Use>
  __device__ __forceinline__ void similarities(const Map& map, int64_t sample, const Use& use) const {
    load(map, sample, head());
    __syncthreads();
    average_across<3>(kAverages, static_cast<Index>(rows.length(kPixels)), [&](int m, Index row, Index column) {
      const Acc x = head()[row * pitch(kPixels) + column], y = mask()[row * pitch(kPixels) + column];
      return m == 0 ? x : m == 1 ? x * x + y * y : x * y;
    });
    __syncthreads();
    average_down<3>(kAverages, [&](Index row, Index column, const Acc(&averages)[3]) {
      const Acc mean = mean_mask()[row * pitch(kAverages) + column];
      use(row, column, math::similarity(averages[0], mean, averages[1], averages[2]));
    });
  }
};

}  // namespace sod_ops::cuda

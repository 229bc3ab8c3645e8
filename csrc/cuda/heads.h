// How the losses of several heads against one mask go over a batch on the GPU: a launch for the sums of all heads, one
// by a single block for the loss and what the derivatives need of the sums, and one for all gradients.
//
// A loss is described by a type Loss, which kernels take by value:
//
//     kSums                                       how many sums over a sample it is a function of
//     kWeighted                                   whether pixels have weights
//     Coefficients<T>                             what a pixel's derivative needs of them
//     add(x, y, w, T (&sums)[kSums])              adds one pixel: head, mask, weight (0 where there are none)
//     loss(HeadSums, sample)                      of one head, a double
//     coefficients<T>(HeadSums, sample, factor)   where `factor` is the gradient of the sample's loss
//     derivative(Coefficients<T>, x, y, w)        of one pixel
//
// Where a pixel's part depends on the pixels around it, other kernels take the place of those for the sums and the
// gradients: similarity.h has them.
#pragma once

#include <algorithm>

#include "../heads.h"

#include "block_sum.h"
#include "elements.h"
#include "launch.h"
#include "map.h"
#include "workspace.h"

namespace sod_ops::cuda {

constexpr int kHeadThreads = 256;
// To a multiprocessor at least, which leaves a thread 64 registers, or 128 where its numbers take two each.
template <typename Acc>
constexpr int kHeadBlocks = sizeof(Acc) == 4 ? 4 : 2;
constexpr int kFinishThreads = 512;
// Pixels to a thread at a time: 16 bytes of float.
constexpr int kPixels = 4;
// To a head: enough to fill the largest GPUs; threads of a larger batch take several packs of pixels.
constexpr int64_t kMostTiles = 2048;
// To a launch, whose arguments are at most 4 KiB.
constexpr int kMostHeads = 16;

// Sums of the pixels' weights by parts of a sample, and the weights themselves; a default-constructed one for none.
template <typename Acc>
struct PixelWeights {
  const Acc* map = nullptr;    // [samples, height, width]
  const Acc* parts = nullptr;  // [samples, count]
  int64_t count = 0;
};

// A run over the pixels of all samples for some heads. Samples are of rows and columns, which may be all its pixels as
// one row.
template <typename Acc>
struct HeadsPass {
  int64_t rows, columns;
  unsigned samples, tiles, heads;  // `tiles` blocks to a sample of a head
  Map mask;
  const Acc* weights;
  Map inputs[kMostHeads];
  Map gradients[kMostHeads];
  Acc* parts;                // [heads, samples, tiles, kSums]
  const void* coefficients;  // [heads, samples]
};

// What a block works on. The heads of a tile follow each other, so that its mask stays in the caches.
struct Tile {
  unsigned head, number, sample;
  int64_t pair;  // of a head and a sample

  template <typename Acc>
  __device__ explicit Tile(const HeadsPass<Acc>& pass)
      : head(blockIdx.x % pass.heads),
        number(blockIdx.x / pass.heads % pass.tiles),
        sample(blockIdx.x / pass.heads / pass.tiles),
        pair(static_cast<int64_t>(head) * pass.samples + sample) {}
};

// Calls body(row, column, count) for each of this thread's packs of pixels.
template <int kCount, typename Acc, typename Body>
__device__ __forceinline__ void for_each_pack(const HeadsPass<Acc>& pass, const Tile& tile, const Body& body) {
  const int64_t across = (pass.columns + kCount - 1) / kCount, packs = pass.rows * across;
  const unsigned step = pass.tiles * kHeadThreads;
  for (int64_t i = tile.number * kHeadThreads + threadIdx.x; i < packs; i += step) {
    const int64_t row = pass.rows == 1 ? 0 : quotient(i, across);
    const int64_t column = (i - row * across) * kCount;
    body(row, column, static_cast<int>(min(static_cast<int64_t>(kCount), pass.columns - column)));
  }
}

// A tile's pixels of a head, their mask and their weights.
template <typename Acc, int kCount>
struct Pixels {
  Acc x[kCount], y[kCount], w[kCount];

  template <bool kWeighted>
  __device__ __forceinline__ void load(const HeadsPass<Acc>& pass, const Tile& tile, int64_t row, int64_t column,
                                       int count) {
    read(pass.inputs[tile.head], tile.sample, row, column, count, x);
    read(pass.mask, tile.sample, row, column, count, y);
    if constexpr (kWeighted) {
      const View weights{pass.weights, {}, {pass.columns, 1}};
      read_as<Acc>(weights, tile.sample * pass.rows + row, column, count, w);
    } else {
#pragma unroll
      for (int k = 0; k < kCount; ++k) w[k] = 0;
    }
  }
};

template <typename Loss, typename Acc, int kCount>
__global__ void __launch_bounds__(kHeadThreads, kHeadBlocks<Acc>)
    heads_sums_kernel(const __grid_constant__ HeadsPass<Acc> pass, const Loss loss) {
  const Tile tile(pass);
  Acc sums[Loss::kSums] = {};
  for_each_pack<kCount>(pass, tile, [&](int64_t row, int64_t column, int count) {
    Pixels<Acc, kCount> pixels;
    pixels.template load<Loss::kWeighted>(pass, tile, row, column, count);
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      if (k < count) loss.add(pixels.x[k], pixels.y[k], pixels.w[k], sums);
    }
  });
  block_sums(sums);
  if (threadIdx.x != 0) return;
  Acc* parts = pass.parts + (tile.pair * pass.tiles + tile.number) * Loss::kSums;
#pragma unroll
  for (int i = 0; i < Loss::kSums; ++i) parts[i] = sums[i];
}

template <typename Loss, typename Acc, int kCount>
__global__ void __launch_bounds__(kHeadThreads, kHeadBlocks<Acc>)
    heads_gradients_kernel(const __grid_constant__ HeadsPass<Acc> pass, const Loss loss) {
  const Tile tile(pass);
  using Coefficients = typename Loss::template Coefficients<Acc>;
  const auto coefficients = static_cast<const Coefficients*>(pass.coefficients)[tile.pair];
  for_each_pack<kCount>(pass, tile, [&](int64_t row, int64_t column, int count) {
    Pixels<Acc, kCount> pixels;
    pixels.template load<Loss::kWeighted>(pass, tile, row, column, count);
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      pixels.x[k] = loss.derivative(coefficients, pixels.x[k], pixels.y[k], pixels.w[k]);
    }
    write(pass.gradients[tile.head], tile.sample, row, column, count, pixels.x);
  });
}

// A head's sums over every sample.
struct HeadSums {
  const double* sums;     // [samples, kSums]
  const double* weights;  // [samples]: of the pixels
  int64_t samples;
  double pixels;     // of a sample
  View grad_output;  // none: ones
  double factor;     // of a mean

  // The gradient of a sample's loss.
  __device__ double gradient(int64_t sample) const {
    if (grad_output.data == nullptr) return factor;
    double value[1];
    read(grad_output, sample, 0, 1, value);
    return factor * value[0];
  }
};

// What the single block of a launch adds up and writes for some heads.
template <typename Acc>
struct FinishPass {
  const Acc* parts;  // [heads, samples, tiles, kSums]
  int64_t tiles;
  PixelWeights<Acc> weights;
  int heads;
  double head_weights[kMostHeads];
  HeadSums all;
  double* sums;         // [heads, samples, kSums]
  double* weight_sums;  // [samples]
  double* losses;       // [samples]: of the heads so far
  bool first, last;     // of the launches for the heads
  bool reduces;
  Output loss;         // or none
  void* coefficients;  // [heads, samples], or null
};

// sums = the sums of `count` parts of kCount numbers, by one warp; for lane 0.
template <int kCount, typename Acc>
__device__ __forceinline__ void sum_parts(const Acc* parts, int64_t count, double (&sums)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) sums[i] = 0;
  for (int64_t part = threadIdx.x % 32; part < count; part += 32) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) sums[i] += parts[part * kCount + i];
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) sums[i] = warp_sum(sums[i]);
}

template <typename Loss, typename Acc>
__global__ void __launch_bounds__(kFinishThreads)
    heads_finish_kernel(const __grid_constant__ FinishPass<Acc> pass, const Loss loss) {
  const int64_t samples = pass.all.samples, pairs = pass.heads * samples;
  for (int64_t i = threadIdx.x / 32; i < pairs; i += kFinishThreads / 32) {
    double sums[Loss::kSums];
    sum_parts(pass.parts + i * pass.tiles * Loss::kSums, pass.tiles, sums);
    if (threadIdx.x % 32 != 0) continue;
#pragma unroll
    for (int k = 0; k < Loss::kSums; ++k) pass.sums[i * Loss::kSums + k] = sums[k];
  }
  for (int64_t b = threadIdx.x / 32; Loss::kWeighted && b < samples; b += kFinishThreads / 32) {
    double sums[1];
    sum_parts(pass.weights.parts + b * pass.weights.count, pass.weights.count, sums);
    if (threadIdx.x % 32 == 0) pass.weight_sums[b] = sums[0];
  }
  __syncthreads();

  const auto head_sums = [&](int64_t head) {
    HeadSums of_head = pass.all;
    of_head.sums = pass.sums + head * samples * Loss::kSums;
    of_head.weights = pass.weight_sums;
    return of_head;
  };
  if (pass.coefficients != nullptr) {
    using Coefficients = typename Loss::template Coefficients<Acc>;
    for (int64_t i = threadIdx.x; i < pairs; i += kFinishThreads) {
      const int64_t head = i / samples;
      static_cast<Coefficients*>(pass.coefficients)[i] =
          loss.template coefficients<Acc>(head_sums(head), i - head * samples, pass.head_weights[head]);
    }
  }
  if (pass.loss.data == nullptr) return;
  double total = 0;
  for (int64_t b = threadIdx.x; b < samples; b += kFinishThreads) {
    double value = pass.first ? 0 : pass.losses[b];
    for (int head = 0; head < pass.heads; ++head) value += pass.head_weights[head] * loss.loss(head_sums(head), b);
    total += value;
    if (!pass.last) {
      pass.losses[b] = value;
    } else if (!pass.reduces) {
      const double values[1] = {value};
      write(pass.loss, b, 1, values);
    }
  }
  if (!pass.last || !pass.reduces) return;
  // The mean of nothing is infinity times 0: NaN.
  const double values[1] = {block_sum(total) * pass.all.factor};
  if (threadIdx.x == 0) write(pass.loss, 0, 1, values);
}

// How the maps of a call are walked.
struct HeadsPlan {
  int64_t rows, columns, tiles;
  bool packed;

  HeadsPlan(const HeadsCall& call, const std::vector<torch::stable::Tensor>& gradients)
      : rows(call.height), columns(call.width) {
    const auto all_of = [&](const auto& holds) {
      const auto each = [&](const auto& tensors) { return std::all_of(tensors.begin(), tensors.end(), holds); };
      return holds(call.mask) && each(call.heads) && each(gradients);
    };
    if (all_of([](const auto& tensor) { return Map(tensor).merges(tensor); })) {
      columns *= rows;
      rows = 1;
    }
    packed = (columns % kPixels == 0 || call.samples * rows == 1) &&
             all_of([&](const auto& tensor) { return Map(tensor).template packs<kPixels>(tensor, rows); });
    const int64_t count = packed ? kPixels : 1, packs = rows * ((columns + count - 1) / count);
    const int64_t most = std::max<int64_t>(1, kMostTiles / std::max<int64_t>(1, call.samples));
    tiles = std::min(most, (packs + kHeadThreads - 1) / kHeadThreads);
  }
};

// Writes the loss, if it is wanted, and the gradients of the heads, if there are any. For some heads at a time,
// launch_sums(pass) writes the sums over pass.tiles parts of every sample, and launch_gradients(pass) the gradients.
template <typename Acc, typename Loss, typename Sums, typename Gradients>
void run_heads(const Launcher& launcher, const HeadsCall& call, const Loss& loss, HeadsPass<Acc> pass,
               const PixelWeights<Acc>& weights, const torch::stable::Tensor* grad_output,
               const torch::stable::Tensor* result, const std::vector<torch::stable::Tensor>& gradients,
               const Sums& launch_sums, const Gradients& launch_gradients) {
  using Coefficients = typename Loss::template Coefficients<Acc>;
  const int64_t heads = static_cast<int64_t>(call.heads.size()), most = std::min<int64_t>(heads, kMostHeads);
  Workspace workspace;
  const auto parts = workspace.reserve<Acc>(most * call.samples * pass.tiles * Loss::kSums);
  const auto sums = workspace.reserve<double>(most * call.samples * Loss::kSums);
  const auto weight_sums = workspace.reserve<double>(call.samples);
  const auto losses = workspace.reserve<double>(call.samples);
  const auto coefficients = workspace.reserve<Coefficients>(most * call.samples);
  workspace.allocate(call.mask);

  pass.samples = static_cast<unsigned>(call.samples);
  pass.mask = Map(call.mask);
  pass.weights = weights.map;
  pass.parts = workspace.at(parts);
  pass.coefficients = workspace.at(coefficients);

  FinishPass<Acc> finish{};
  finish.parts = pass.parts;
  finish.tiles = pass.tiles;
  finish.weights = weights;
  finish.all = {nullptr, nullptr, call.samples, call.pixels(), {}, call.factor()};
  if (grad_output != nullptr) {
    finish.all.grad_output = view_of(*grad_output, {call.reduces() ? 0 : grad_output->stride(0), 0});
  }
  finish.sums = workspace.at(sums);
  finish.weight_sums = workspace.at(weight_sums);
  finish.losses = workspace.at(losses);
  finish.reduces = call.reduces();
  if (result != nullptr) finish.loss = output_of(*result);
  if (!gradients.empty()) finish.coefficients = workspace.at(coefficients);

  for (int64_t begin = 0; begin < heads; begin += most) {
    const int64_t count = std::min(most, heads - begin);
    pass.heads = static_cast<unsigned>(count);
    finish.heads = static_cast<int>(count);
    for (int64_t h = 0; h < count; ++h) {
      pass.inputs[h] = Map(call.heads[static_cast<size_t>(begin + h)]);
      if (!gradients.empty()) pass.gradients[h] = Map(gradients[static_cast<size_t>(begin + h)]);
      finish.head_weights[h] = call.weights[static_cast<size_t>(begin + h)];
    }
    finish.first = begin == 0;
    finish.last = begin + count == heads;
    launch_sums(pass);
    launcher(heads_finish_kernel<Loss, Acc>, 1, kFinishThreads, finish, loss);
    if (!gradients.empty()) launch_gradients(pass);
  }
}

// The same for a loss to which every pixel adds on its own.
template <typename Acc, typename Loss>
void run_heads(const Launcher& launcher, const HeadsCall& call, const Loss& loss, const PixelWeights<Acc>& weights,
               const torch::stable::Tensor* grad_output, const torch::stable::Tensor* result,
               const std::vector<torch::stable::Tensor>& gradients) {
  const HeadsPlan plan(call, gradients);
  HeadsPass<Acc> of_all{};
  of_all.rows = plan.rows;
  of_all.columns = plan.columns;
  of_all.tiles = static_cast<unsigned>(plan.tiles);
  const auto launch = [&](auto packed, auto single) {
    return [&, packed, single](const HeadsPass<Acc>& pass) {
      const int64_t blocks = static_cast<int64_t>(pass.samples) * pass.tiles * pass.heads;
      launcher(plan.packed ? packed : single, blocks, kHeadThreads, pass, loss);
    };
  };
  run_heads<Acc>(launcher, call, loss, of_all, weights, grad_output, result, gradients,
                 launch(heads_sums_kernel<Loss, Acc, kPixels>, heads_sums_kernel<Loss, Acc, 1>),
                 launch(heads_gradients_kernel<Loss, Acc, kPixels>, heads_gradients_kernel<Loss, Acc, 1>));
}

}  // namespace sod_ops::cuda

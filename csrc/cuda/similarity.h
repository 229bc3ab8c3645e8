// The structural similarity of heads and their mask on the GPU, for losses of heads.h to which a pixel adds its index:
// that is `w` in Loss::add(), and in Loss::derivative() the derivative of the sum of all indices by the pixel. The
// arithmetic stands in ../math/ssim.h.
//
// A window's averages are taken along rows and then along columns, and so are the derivatives on their way back: the
// filter is its own adjoint. A block takes a tile, with the pixels around it that it depends on, through all four
// steps, one head after another, so that no map goes through memory and the averages of the mask are taken once. What
// lies around tiles is computed more than once for that: at 11 x 11 pixels, half as much again for the index, and 1.6
// times as much for the derivatives.
//
// For windows of up to 11 x 11 pixels tiles lie in shared memory, and a thread takes several averages next to each
// other, which have most of what they read in common. Tiles of larger windows are larger, and lie in a workspace.
#pragma once

#include "../ssim.h"
#include "heads.h"
#include "similarity_tile.h"

namespace sod_ops::cuda {

// Enough to fill the largest GPUs; where tiles are fewer, each head has blocks of its own.
constexpr int64_t kWantedBlocks = 1024;

// How the tiles of a call are walked; a work of a block is a tile for some heads.
template <typename Acc, typename Axis, typename Columns>
struct SimilarityPlan {
  Axis rows;
  Columns columns;
  GaussianWeights<Acc> weights;
  unsigned across, tiles;  // of a plane
  unsigned heads, splits;  // of a work; that a tile's heads are split into
  Acc* memory;             // of each block, so many numbers; unless it is shared memory
  int64_t numbers;

  // This block's tile, of work number `work`.
  template <bool kDerives>
  __device__ SimilarityTile<Acc, Axis, Columns, kDerives> tile(int64_t work) const {
    using Tile = SimilarityTile<Acc, Axis, Columns, kDerives>;
    Tile tile{rows, columns, weights, nullptr};
    const unsigned number = static_cast<unsigned>(work / splits % tiles);
    tile.rows.begin = number / across * tile.rows.tile();
    tile.columns.begin = number % across * tile.columns.tile();
    if constexpr (Axis::kShared) {
      __shared__ Acc shared[Tile::numbers(Axis(), Columns())];
      tile.memory = shared;
    } else {
      tile.memory = memory + blockIdx.x * numbers;
    }
    return tile;
  }
};

// To a multiprocessor at least: three have all the shared memory that there is on most GPUs.
template <typename Acc, typename Axis>
constexpr int kSimilarityBlocks = !Axis::kShared     ? 1
                                  : sizeof(Acc) == 4 ? 3
                                                     : 2;

// Calls body(tile, sample, head, part) for all works of this block; `part` counts tiles of samples of heads.
template <bool kDerives, typename Acc, typename Plan, typename Body>
__device__ __forceinline__ void for_each_work(const HeadsPass<Acc>& pass, const Plan& plan, const Body& body) {
  const int64_t works = static_cast<int64_t>(pass.samples) * plan.tiles * plan.splits;
  for (int64_t work = blockIdx.x; work < works; work += gridDim.x) {
    const auto tile = plan.template tile<kDerives>(work);
    const int64_t of_all = work / plan.splits, sample = of_all / plan.tiles;
    tile.start(pass.mask, sample);
    const unsigned first = static_cast<unsigned>(work % plan.splits) * plan.heads;
    for (unsigned head = first; head < min(pass.heads, first + plan.heads); ++head) {
      body(tile, sample, head, static_cast<int64_t>(head) * pass.samples * plan.tiles + of_all);
    }
    __syncthreads();
  }
}

template <typename Loss, typename Acc, typename Axis, typename Columns>
__global__ void __launch_bounds__(kSimilarityThreads, kSimilarityBlocks<Acc, Axis>)
    similarity_sums_kernel(const __grid_constant__ HeadsPass<Acc> pass, const Loss loss,
                           const __grid_constant__ SimilarityPlan<Acc, Axis, Columns> plan) {
  for_each_work<false>(pass, plan, [&](const auto& tile, int64_t sample, unsigned head, int64_t part) {
    using Index = typename Axis::Index;
    Acc sums[Loss::kSums] = {};
    tile.similarities(pass.inputs[head], sample, [&](Index row, Index column, const math::Similarity<Acc>& found) {
      const Index at = tile.pixel(row, column, 0);
      if (tile.inside(row, column, 0)) loss.add(tile.head()[at], tile.mask()[at], found.index, sums);
    });
    // The head's pixels are overwritten when all threads have come here.
    block_sums(sums);
    if (threadIdx.x != 0) return;
#pragma unroll
    for (int i = 0; i < Loss::kSums; ++i) pass.parts[part * Loss::kSums + i] = sums[i];
  });
}

template <typename Loss, typename Acc, typename Axis, typename Columns>
__global__ void __launch_bounds__(kSimilarityThreads, kSimilarityBlocks<Acc, Axis>)
    similarity_gradients_kernel(const __grid_constant__ HeadsPass<Acc> pass, const Loss loss,
                                const __grid_constant__ SimilarityPlan<Acc, Axis, Columns> plan) {
  using Coefficients = typename Loss::template Coefficients<Acc>;
  for_each_work<true>(pass, plan, [&](const auto& tile, int64_t sample, unsigned head, int64_t) {
    using Index = typename Axis::Index;
    const Map &input = pass.inputs[head], &gradient = pass.gradients[head];
    const Index pitch = tile.pitch(1);
    tile.similarities(input, sample, [&](Index row, Index column, const math::Similarity<Acc>& found) {
      const bool inside = tile.inside(row, column, 1);
      const Index at = row * pitch + column;
      tile.by_averages(0)[at] = inside ? found.by_mean_x : Acc(0);
      tile.by_averages(1)[at] = inside ? found.by_squares : Acc(0);
      tile.by_averages(2)[at] = inside ? found.by_product : Acc(0);
    });
    __syncthreads();
    tile.template average_across<3>(0, static_cast<Index>(tile.rows.length(1)), [&](int m, Index row, Index column) {
      return tile.by_averages(m)[row * pitch + column];
    });
    __syncthreads();
    const auto coefficients =
        static_cast<const Coefficients*>(pass.coefficients)[static_cast<int64_t>(head) * pass.samples + sample];
    tile.template average_down<3>(0, [&](Index row, Index column, const Acc(&by)[3]) {
      if (!tile.inside(row, column, 0)) return;
      const int64_t y = tile.rows.begin + row, x = tile.columns.begin + column;
      const Acc other = tile.mask()[tile.pixel(row, column, 0)];
      Acc own[1];
      read(input, sample, y, x, 1, own);
      const Acc similarity = by[0] + (2 * own[0] * by[1] + other * by[2]);
      own[0] = loss.derivative(coefficients, own[0], other, similarity);
      write(gradient, sample, y, x, 1, own);
    });
  });
}

template <typename Acc, typename Axis, typename Columns, typename Loss>
void run_similarity_tiles(const Launcher& launcher, const HeadsCall& call, int64_t window_size, double sigma,
                          const Loss& loss, const torch::stable::Tensor* grad_output,
                          const torch::stable::Tensor* result, const std::vector<torch::stable::Tensor>& gradients) {
  SimilarityPlan<Acc, Axis, Columns> plan{
      Axis(call.height, window_size), Columns(call.width, window_size), {}, 0, 0, 0, 0, nullptr, 0};
  const auto tiles = [](const auto& axis) { return (axis.size + axis.tile() - 1) / axis.tile(); };
  plan.across = static_cast<unsigned>(tiles(plan.columns));
  plan.tiles = plan.across * static_cast<unsigned>(tiles(plan.rows));
  const GaussianWindow window(window_size, sigma);
  for (int64_t t = 0; t <= std::min<int64_t>(kMostHalf, window_size / 2); ++t) {
    plan.weights.near[t] = static_cast<Acc>(window.weight(t));
  }
  int64_t most = call.samples * plan.tiles * static_cast<int64_t>(call.heads.size());
  Workspace workspace;
  if constexpr (!Axis::kShared) {
    const auto numbers = [&](auto derives) {
      return SimilarityTile<Acc, Axis, Columns, derives>::numbers(plan.rows, plan.columns);
    };
    plan.numbers = gradients.empty() ? numbers(std::false_type{}) : numbers(std::true_type{});
    const int64_t two_maps = 2 * call.samples * call.height * call.width;
    most = std::min(most, std::max<int64_t>(1, std::min(kWantedBlocks, two_maps / plan.numbers)));
    const int64_t count = std::max(plan.rows.half, plan.columns.half) + 1;
    const auto weights = workspace.reserve<Acc>(count);
    const auto memory = workspace.reserve<Acc>(most * plan.numbers);
    workspace.allocate(call.mask);
    launcher(gaussian_weights_kernel<Acc>, 1, kSimilarityThreads, workspace.at(weights), count, sigma, window.scale());
    plan.weights.all = workspace.at(weights);
    plan.memory = workspace.at(memory);
  }

  HeadsPass<Acc> of_all{};
  of_all.tiles = plan.tiles;
  const auto launch = [&](auto kernel) {
    return [&, kernel](const HeadsPass<Acc>& pass) {
      const int64_t works = call.samples * plan.tiles;
      if (works == 0) return;
      auto of_pass = plan;
      const unsigned splits = static_cast<unsigned>(std::min<int64_t>(pass.heads, (kWantedBlocks + works - 1) / works));
      of_pass.heads = (pass.heads + splits - 1) / splits;
      of_pass.splits = (pass.heads + of_pass.heads - 1) / of_pass.heads;
      launcher(kernel, std::min(most, works * of_pass.splits), kSimilarityThreads, pass, loss, of_pass);
    };
  };
  run_heads<Acc>(launcher, call, loss, of_all, {}, grad_output, result, gradients,
                 launch(similarity_sums_kernel<Loss, Acc, Axis, Columns>),
                 launch(similarity_gradients_kernel<Loss, Acc, Axis, Columns>));
}

// run_heads() for a loss with a similarity.
template <typename Acc, typename Loss>
void run_similarity_heads(const Launcher& launcher, const HeadsCall& call, int64_t window_size, double sigma,
                          const Loss& loss, const torch::stable::Tensor* grad_output,
                          const torch::stable::Tensor* result, const std::vector<torch::stable::Tensor>& gradients) {
  // A window reaches no further than the image.
  const int64_t half = std::min(window_size / 2, std::max(call.height, call.width) - 1);
  // The largest for which the derivatives' tile takes less than 48 KiB.
  using Rows = SharedAxis<sizeof(Acc) == 4 ? 20 : 10>;
  using Columns = SharedAxis<sizeof(Acc) == 4 ? 30 : 15>;
  const auto run = half <= kMostHalf ? run_similarity_tiles<Acc, Rows, Columns, Loss>
                                     : run_similarity_tiles<Acc, LargeAxis, LargeAxis, Loss>;
  run(launcher, call, window_size, sigma, loss, grad_output, result, gradients);
}

}  // namespace sod_ops::cuda

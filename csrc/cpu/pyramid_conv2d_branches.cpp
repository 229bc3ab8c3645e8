// Branches that are multiplied where they are added to a convolution's output, on the CPU: checks, threads and memory.
// The arithmetic stands in ../simd/pyramid_conv2d.cpp.
#include "../simd/pyramid_conv2d.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "../dtype.h"
#include "../empty.h"
#include "../stable.h"
#include "doubled_branch.h"
#include "parallel.h"
#include "scratch.h"
#include "tap_maps.h"
#include "tap_panels.h"

namespace sod_ops {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A branch's rows, packed (see TapKernels::pack_row): [N, h, C, row_step].
template <typename T>
std::unique_ptr<TapAccumulator<T>[]> packed_rows(const Tensor& branch) {
  const int64_t depth = branch.size(1), height = branch.size(2), width = branch.size(3);
  const int64_t size = depth * row_step<T>(width);
  auto rows = scratch<TapAccumulator<T>>(branch.size(0) * height * size);
  parallel_tasks(branch.size(0) * height, size, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      PlaneSteps<const T> row = plane<const T>(branch, i / height, 0);
      row.data += i % height * row.row;
      tap_kernels<T>().pack_row(row, depth, width, rows.get() + i * size);
    }
  });
  return rows;
}

// Whether a kernel can walk a branch: channels or columns side by side.
bool readable_branch(const Tensor& branch) {
  return branch.stride(3) == 1 || branch.size(3) == 1 || branch.stride(1) == 1;
}

// The branches [N, C_i, h_i, w_i] that are multiplied here, and their weights [C_out, C_i, K, K].
void check_branches(const std::vector<Tensor>& branches, const std::vector<Tensor>& weights) {
  STD_TORCH_CHECK(!branches.empty() && branches.size() == weights.size() && weights[0].dim() == 4,
                  "pyramid_conv2d: branches and weights must be as many, and at least one");
  const Tensor &first = branches[0], &like = weights[0];
  for (size_t b = 0; b < branches.size(); ++b) {
    const Tensor &branch = branches[b], &weight = weights[b];
    STD_TORCH_CHECK(
        branch.dim() == 4 && branch.is_cpu() && branch.size(0) == first.size(0) && readable_branch(branch) &&
            branch.scalar_type() == first.scalar_type(),
        "pyramid_conv2d: branches must be [N, C, h, w], contiguous or channels_last, of one dtype, on the CPU");
    STD_TORCH_CHECK(weight.dim() == 4 && weight.is_cpu() && weight.size(0) == like.size(0) &&
                        weight.size(1) == branch.size(1) && weight.size(2) == like.size(2) &&
                        weight.size(3) == like.size(2) && weight.scalar_type() == first.scalar_type(),
                    "pyramid_conv2d: weights must be [C_out, C, K, K] of the branches' dtype, on the CPU");
  }
}

Tensor pyramid_conv2d_branches(const std::optional<Tensor>& y, const std::optional<Tensor>& bias,
                               const std::vector<Tensor>& branches, const std::vector<Tensor>& weights, int64_t height,
                               int64_t width, bool align_corners, bool nearest) {
  check_branches(branches, weights);
  const ScalarType dtype = branches[0].scalar_type();
  const int64_t samples = branches[0].size(0), channels = weights[0].size(0);
  STD_TORCH_CHECK(height >= 0 && width >= 0, "pyramid_conv2d: height and width must not be negative");
  if (y) {
    check_map("y", *y);
    STD_TORCH_CHECK(
        !bias && y->size(0) == samples && y->size(1) == channels && y->size(2) == height && y->size(3) == width &&
            y->scalar_type() == dtype,
        "pyramid_conv2d: y must be [N, C_out, height, width] of the branches' dtype, without a bias beside it");
  }
  if (bias) {
    STD_TORCH_CHECK(bias->is_cpu() && bias->dim() == 1 && bias->size(0) == channels && bias->is_contiguous() &&
                        bias->scalar_type() == dtype,
                    "pyramid_conv2d: bias must be [C_out] of the branches' dtype");
  }
  Tensor out = y ? new_like(*y) : sod_ops::new_empty(branches[0], {samples, channels, height, width}, dtype);
  check_map("out", out);
  std::vector<int64_t> heights, widths;
  for (const Tensor& branch : branches) {
    heights.push_back(branch.size(2));
    widths.push_back(branch.size(3));
  }
  const int64_t kernel = weights[0].size(2);
  check_interpolation(kernel, heights, widths);
  for_floating("pyramid_conv2d_branches", "branches", dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (is_doubled(branches, kernel, height, width, nearest)) {
      return add_doubled<T>({y, bias}, branches[0], weights[0], out);
    }
    const Panels<T> panels(weights, false, kernel * kernel, tap_kernels<T>().pack);
    std::vector<std::unique_ptr<TapAccumulator<T>[]>> rows;
    for (const Tensor& branch : branches) rows.push_back(packed_rows<T>(branch));
    int64_t multiplied = 0;
    for (int64_t of_branch : widths) {
      multiplied = std::max(multiplied, multiplied_scratch({kTapBlock, height, width, kernel}, of_branch));
    }
    const auto map = [&](int64_t b, int64_t n, int64_t channel) {
      const int64_t depth = panels.weight(b).depth;
      TapMap<T> block{nullptr, heights[b], widths[b]};
      block.branch = rows[b].get() + n * heights[b] * depth * row_step<T>(widths[b]);
      block.depth = depth;
      block.panels = panels.at(b, channel);
      return block;
    };
    add_taps<T>({y, bias}, heights, widths, kernel, align_corners, nearest, multiplied, map, out);
  });
  return out;
}

// How the gradients of branches and weights are shared out: blocks of output channels in groups, and samples in groups.
// A group of blocks has its own sums for the gradients of the branches, a group of samples for those of the weights. By
// the shape alone, as the order of summation is.
struct Groups {
  int64_t width = kTapBlock;  // channels in a block
  int64_t blocks;
  int64_t of_blocks;
  int64_t of_samples;

  Groups(const std::vector<Tensor>& branches, int64_t channels) {
    constexpr int64_t kMost = 4;
    const int64_t samples = branches[0].size(0);
    while (width > 16 && samples * ((channels + width - 1) / width) < kMost) width /= 2;
    blocks = (channels + width - 1) / width;
    of_blocks = std::min(blocks, kMost);
    of_samples = samples;
    for (const Tensor& branch : branches) {
      // The sums for a weight are to take no more memory than the gradients of the products would.
      const int64_t pixels = samples * branch.size(2) * branch.size(3);
      of_samples = std::min(of_samples, std::max<int64_t>(1, pixels / (2 * std::max<int64_t>(1, branch.size(1)))));
    }
  }
};

// One branch in the backward: in panels, and the sums of its gradients.
template <typename T>
struct BranchGradients {
  using A = TapAccumulator<T>;

  int64_t channels, height, width, panels;
  std::unique_ptr<A[]> pixels;       // [N, panels, h * w, kTapPanel]
  std::unique_ptr<A[]> grad_branch;  // [groups of blocks, N, panels, h * w, kTapPanel], and a tile's rows
  std::unique_ptr<A[]> grad_weight;  // [groups of samples, panels, taps, C_out, kTapPanel]

  int64_t area() const { return height * width; }
  int64_t step() const { return panels * kTapPanel<T>; }
};

template <typename T>
std::vector<BranchGradients<T>> branch_gradients(const std::vector<Tensor>& branches, const Groups& groups,
                                                 int64_t weight_rows) {
  std::vector<BranchGradients<T>> all;
  for (const Tensor& branch : branches) {
    BranchGradients<T> one{branch.size(1), branch.size(2), branch.size(3),
                           (branch.size(1) + kTapPanel<T> - 1) / kTapPanel<T>};
    const int64_t samples = branch.size(0);
    one.pixels = scratch<typename BranchGradients<T>::A>(samples * one.area() * one.step());
    one.grad_branch =
        scratch<typename BranchGradients<T>::A>((groups.of_blocks * samples * one.area() + kTapTile) * one.step());
    one.grad_weight = scratch<typename BranchGradients<T>::A>(groups.of_samples * weight_rows * one.step());
    parallel_tasks(samples * one.panels, one.area() * kTapPanel<T>, [&](int64_t begin, int64_t end) {
      auto memory = scratch<TapAccumulator<T>>(kTapTile * (one.width + kTapTile));
      for (int64_t i = begin; i < end; ++i) {
        const int64_t channel = i % one.panels * kTapPanel<T>;
        tap_kernels<T>().pack_pixels(plane<const T>(branch, i / one.panels, channel),
                                     std::min(kTapPanel<T>, one.channels - channel), one.height, one.width,
                                     one.pixels.get() + i * one.area() * kTapPanel<T>, memory.get());
      }
    });
    all.push_back(std::move(one));
  }
  return all;
}

// The gradients of all branches, then of their weights.
std::vector<Tensor> pyramid_conv2d_branches_backward(const Tensor& grad_output, const std::vector<Tensor>& branches,
                                                     const std::vector<Tensor>& weights, bool align_corners,
                                                     bool nearest) {
  check_branches(branches, weights);
  check_map("grad_output", grad_output);
  const int64_t samples = branches[0].size(0), channels = weights[0].size(0), kernel = weights[0].size(2);
  STD_TORCH_CHECK(grad_output.size(0) == samples && grad_output.size(1) == channels &&
                      grad_output.scalar_type() == branches[0].scalar_type(),
                  "pyramid_conv2d: grad_output must be [N, C_out, H, W] of the branches' dtype");
  std::vector<int64_t> heights, widths;
  std::vector<Tensor> results;
  for (const Tensor& branch : branches) {
    heights.push_back(branch.size(2));
    widths.push_back(branch.size(3));
    results.push_back(new_like(branch));
    check_map("a branch's gradient", results.back());
  }
  for (const Tensor& weight : weights) {
    results.push_back(
        sod_ops::new_empty(weight, {channels, weight.size(1), weight.size(2), weight.size(3)}, weight.scalar_type()));
  }
  check_interpolation(kernel, heights, widths);
  const int64_t count = static_cast<int64_t>(branches.size()), taps = kernel * kernel;
  for_floating("pyramid_conv2d_branches_backward", "grad_output", grad_output.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using A = TapAccumulator<T>;
    if (is_doubled(branches, kernel, grad_output.size(2), grad_output.size(3), nearest)) {
      return gradients_of_doubled<T>(grad_output, branches[0], weights[0], results[0], results[1]);
    }
    const TapKernels<T>& kernels = tap_kernels<T>();
    const Interpolation<A> axes(heights, widths, grad_output.size(2), grad_output.size(3), align_corners, nearest);
    const Groups groups(branches, channels);
    const Panels<T> panels(weights, true, taps, tap_kernels<T>().pack);
    const std::vector<BranchGradients<T>> sums = branch_gradients<T>(branches, groups, taps * channels);
    const TapShape whole{std::min(channels, kTapBlock), grad_output.size(2), grad_output.size(3), kernel};
    int64_t waiting_size = 0;
    for (int64_t width : widths) waiting_size += waiting_scratch(whole, width);

    const int64_t tasks = groups.of_blocks * groups.of_samples;
    parallel_tasks(tasks, kGrain, [&](int64_t begin, int64_t end) {
      auto memory = scratch<A>(tap_scratch(whole, std::min(count, kTapBranches)));
      auto waiting = scratch<A>(waiting_size);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t group = task % groups.of_blocks, of_samples = task / groups.of_blocks;
        const int64_t first_sample = samples * of_samples / groups.of_samples;
        const int64_t last_sample = samples * (of_samples + 1) / groups.of_samples;
        const int64_t first_block = groups.blocks * group / groups.of_blocks;
        const int64_t last_block = groups.blocks * (group + 1) / groups.of_blocks;
        for (const BranchGradients<T>& one : sums) {
          std::fill_n(one.grad_branch.get() + (group * samples + first_sample) * one.area() * one.step(),
                      (last_sample - first_sample) * one.area() * one.step(), A(0));
        }
        for (int64_t block = first_block; block < last_block; ++block) {
          const int64_t channel = block * groups.width, in_block = std::min(groups.width, channels - channel);
          for (const BranchGradients<T>& one : sums) {
            for (int64_t i = 0; i < one.panels * taps; ++i) {
              std::fill_n(
                  one.grad_weight.get() + ((of_samples * one.panels * taps + i) * channels + channel) * kTapPanel<T>,
                  in_block * kTapPanel<T>, A(0));
            }
          }
          for (int64_t n = first_sample; n < last_sample; ++n) {
            const TapShape shape{in_block, whole.height, whole.width, kernel};
            const auto map = [&](int64_t b) -> TapMap<T> {
              const BranchGradients<T>& one = sums[b];
              TapMap<T> map{nullptr, one.height, one.width};
              map.sums = {one.panels,
                          channels,
                          one.pixels.get() + n * one.area() * one.step(),
                          panels.at(b, 0) + channel * kTapPanel<T>,
                          one.grad_branch.get() + (group * samples + n) * one.area() * one.step(),
                          one.grad_weight.get() + of_samples * taps * channels * one.step() + channel * kTapPanel<T>};
              return map;
            };
            for_branches<T>(count, axes, map, [&](const TapMap<T>* maps, int64_t part, int64_t) {
              kernels.gradients(shape, maps, part, plane<const T>(grad_output, n, channel), memory.get(),
                                waiting.get());
            });
          }
        }
      }
    });

    for (int64_t b = 0; b < count; ++b) {
      const BranchGradients<T>& one = sums[b];
      const Tensor &grad_branch = results[b], &grad_weight = results[count + b];
      parallel_tasks(samples * one.panels, one.area() * kTapPanel<T>, [&](int64_t begin, int64_t end) {
        auto memory = scratch<A>(kTapTile * (one.width + kTapTile));
        for (int64_t i = begin; i < end; ++i) {
          const int64_t channel = i % one.panels * kTapPanel<T>;
          const TapShape shape{std::min(kTapPanel<T>, one.channels - channel), 1, one.width, 1};
          PlaneSteps<T> out = plane<T>(grad_branch, i / one.panels, channel);
          const A* from = one.grad_branch.get() + i * one.area() * kTapPanel<T>;
          for (int64_t y = 0; y < one.height; ++y, out.data += out.row, from += one.width * kTapPanel<T>) {
            kernels.store_pixels(shape, from, groups.of_blocks, samples * one.area() * one.step(), out, memory.get());
          }
        }
      });
      parallel_tasks(channels, one.channels * taps, [&](int64_t begin, int64_t end) {
        for (int64_t o = begin; o < end; ++o) {
          kernels.store_weight(one.grad_weight.get() + o * kTapPanel<T>, groups.of_samples,
                               taps * channels * one.step(), channels, taps, one.channels,
                               static_cast<T*>(grad_weight.data_ptr()) + o * one.channels * taps);
        }
      });
    }
  });
  return results;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sod_ops, CPU, m) {
  m.impl("pyramid_conv2d_branches", TORCH_BOX(&pyramid_conv2d_branches));
  m.impl("pyramid_conv2d_branches_backward", TORCH_BOX(&pyramid_conv2d_branches_backward));
}

}  // namespace sod_ops

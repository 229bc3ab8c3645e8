// Upsampling into a concatenation on the CPU: checks, threads and memory. The arithmetic stands in
// ../simd/pyramid_upsample_concat.cpp.
#include "../simd/pyramid_upsample_concat.h"

#include <algorithm>
#include <vector>

#include "../dtype.h"
#include "cache.h"
#include "dense_map.h"
#include "interpolation_axis.h"
#include "parallel.h"
#include "scratch.h"

namespace sod_ops {
namespace {

using torch::stable::Tensor;

constexpr auto kOp = "pyramid_upsample_concat";

template <typename T>
const PyramidUpsampleConcatKernels<T>& kernels() {
  return kernels_of<T>(pyramid_upsample_concat_kernels());
}

template <typename T>
using Acc = typename PyramidUpsampleConcatKernels<T>::Acc;

struct BranchShape {
  int64_t channels, height, width;
  int64_t size() const { return channels * height * width; }
};

// The concatenation [N, C, H, W], dense in one of the memory formats, and the parts of it.
struct Geometry {
  int64_t samples, channels, height, width, x_channels;
  bool planar, align_corners, x_first;
  std::vector<BranchShape> branches;

  int64_t pixels() const { return height * width; }
  int64_t x_offset() const { return x_first ? 0 : channels - x_channels; }
  int64_t branch_offset() const { return x_first ? x_channels : 0; }

  void check() const {
    STD_TORCH_CHECK(!branches.empty(), kOp, ": branches must hold at least one tensor");
    STD_TORCH_CHECK(x_channels >= 1 && height >= 1 && width >= 1, kOp,
                    ": x must have at least one channel, row and column");
    for (const BranchShape& b : branches) {
      STD_TORCH_CHECK(b.channels >= 1 && b.height >= 1 && b.width >= 1, kOp,
                      ": branches must have at least one channel, row and column");
    }
  }
};

// What a ResizeAxis points to.
template <typename A>
class AxisTables {
 public:
  AxisTables(int64_t inputs, int64_t outputs, bool align_corners) : inputs_(inputs), outputs_(outputs) {
    for (const math::Tap<A>& tap : interpolation_axis<A>(inputs, outputs, align_corners, false)) {
      first_.push_back(static_cast<Index>(tap.index0));
      second_.push_back(static_cast<Index>(tap.index1));
      first_weight_.push_back(tap.weight0);
      second_weight_.push_back(tap.weight1);
    }
    for (int64_t i = 0; i < outputs; ++i) {
      if (runs_.empty() || runs_.back().first != first_[i] || runs_.back().end - runs_.back().begin == kLongestRun) {
        runs_.push_back({i, i, first_[i], second_[i]});
      }
      runs_.back().end = i + 1;
    }
    const int64_t padded = padded_columns(outputs);
    first_.resize(padded);
    second_.resize(padded);
    first_weight_.resize(padded);
    second_weight_.resize(padded);
  }

  ResizeAxis<A> axis() const {
    return {inputs_,
            outputs_,
            first_.data(),
            second_.data(),
            first_weight_.data(),
            second_weight_.data(),
            static_cast<int64_t>(runs_.size()),
            runs_.data()};
  }

 private:
  using Index = typename ResizeAxis<A>::Index;

  int64_t inputs_;
  int64_t outputs_;
  std::vector<Index> first_;
  std::vector<Index> second_;
  std::vector<A> first_weight_;
  std::vector<A> second_weight_;
  std::vector<ResizeRun> runs_;
};

// A branch's resize with its tables.
template <typename A>
struct ResizeTables {
  ResizeTables(const Geometry& g, const BranchShape& branch)
      : rows(branch.height, g.height, g.align_corners), columns(branch.width, g.width, g.align_corners) {}

  Resize<A> resize() const { return {rows.axis(), columns.axis()}; }

  AxisTables<A> rows;
  AxisTables<A> columns;
};

template <typename A>
std::vector<ResizeTables<A>> tables_of(const Geometry& g) {
  std::vector<ResizeTables<A>> tables;
  for (const BranchShape& branch : g.branches) tables.emplace_back(g, branch);
  return tables;
}

template <typename T>
bool streams(int64_t elements) {
  return outgrows_caches(elements * static_cast<int64_t>(sizeof(T)));
}

// Into how many parts to cut each of `tasks`, of `most` rows or planes, so that every thread has some.
int64_t parts_of(int64_t tasks, int64_t most) {
  const int64_t wanted = 4 * static_cast<int64_t>(torch::stable::get_num_threads());
  return std::min(most, std::max<int64_t>(1, wanted / std::max<int64_t>(1, tasks)));
}

template <typename T>
void forward_planar(const Geometry& g, Samples<const T> x, const std::vector<const T*>& branches, T* y) {
  const auto tables = tables_of<Acc<T>>(g);
  const MapShape shape{g.x_channels, g.pixels(), true};
  const bool stream = streams<T>(g.samples * g.channels * g.pixels());
  int64_t widest = 0;
  for (const BranchShape& branch : g.branches) widest = std::max(widest, branch.width);
  const int64_t planes = g.samples * g.channels, parts = parts_of(planes, g.height);
  parallel_tasks(planes * parts, g.pixels() / parts, [&](int64_t first, int64_t last) {
    auto memory = scratch<Acc<T>>(kResizedLines * padded_columns(g.width) + widest);
    for (int64_t task = first, count; task < last; task += count) {
      const int64_t plane = task / parts, part = task % parts, n = plane / g.channels;
      const int64_t begin = part * g.height / parts, end = (part + 1) * g.height / parts;
      T* to = y + plane * g.pixels() + begin * g.width;
      // Planes of x, or of one branch, are one run of memory.
      const auto together = [&](int64_t left) { return parts == 1 ? std::min(last - task, left) : 1; };
      int64_t channel = plane % g.channels - g.x_offset();
      if (channel >= 0 && channel < g.x_channels) {
        count = together(g.x_channels - channel);
        kernels<T>().copy(x.at(shape, n, channel) + begin * g.width, x.step, count, (end - begin) * g.width, to,
                          stream);
        continue;
      }
      channel = plane % g.channels - g.branch_offset();
      size_t k = 0;
      for (; channel >= g.branches[k].channels; ++k) channel -= g.branches[k].channels;
      const BranchShape& branch = g.branches[k];
      count = together(branch.channels - channel);
      const T* from = branches[k] + (n * branch.channels + channel) * branch.height * branch.width;
      kernels<T>().upsample_planes(tables[k].resize(), from, count, begin, end, memory.get(), to, stream);
    }
  });
}

template <typename T>
void forward_interleaved(const Geometry& g, Samples<const T> x, const std::vector<const T*>& branches, T* y) {
  const auto tables = tables_of<Acc<T>>(g);
  const MapShape shape{g.x_channels, g.pixels(), false};
  const bool stream = streams<T>(g.samples * g.channels * g.pixels());
  int64_t line = 0;
  for (const BranchShape& branch : g.branches) line += branch.channels * branch.width;
  parallel_tasks(g.samples * g.height, g.channels * g.width, [&](int64_t first, int64_t last) {
    auto memory = scratch<Acc<T>>(line);
    std::vector<InterleavedBranch<T>> of_sample(branches.size());
    for (int64_t task = first; task < last; ++task) {
      const int64_t n = task / g.height, row = task % g.height;
      for (size_t k = 0; k < branches.size(); ++k) {
        of_sample[k] = {tables[k].resize(), branches[k] + n * g.branches[k].size(), g.branches[k].channels};
      }
      kernels<T>().upsample_row(x.at(shape, n, 0, row * g.width), x.step, g.x_channels, g.x_first, of_sample.data(),
                                static_cast<int64_t>(of_sample.size()), row, memory.get(),
                                y + task * g.width * g.channels, stream);
    }
  });
}

template <typename T>
void backward_planar(const Geometry& g, const T* grad, const std::vector<T*>& grad_branches) {
  const auto tables = tables_of<Acc<T>>(g);
  const int64_t padded = padded_columns(g.width);
  struct Block {
    size_t branch;
    int64_t channel;  // of the branch
    int64_t offset;   // of the branch in the concatenation
  };
  std::vector<Block> blocks;
  int64_t offset = g.branch_offset(), memory_size = 0;
  for (size_t k = 0; k < g.branches.size(); ++k) {
    const BranchShape& branch = g.branches[k];
    for (int64_t c = 0; c < branch.channels; c += kResizedPlanes) blocks.push_back({k, c, offset});
    offset += branch.channels;
    memory_size = std::max(memory_size, kResizedPlanes * (branch.height * padded + branch.width));
  }
  const auto count = static_cast<int64_t>(blocks.size());
  const int64_t planes = (g.channels - g.x_channels) / count;  // of a block, on average
  parallel_tasks(g.samples * count, planes * g.pixels(), [&](int64_t first, int64_t last) {
    auto memory = scratch<Acc<T>>(memory_size);
    for (int64_t task = first; task < last; ++task) {
      const int64_t n = task / count;
      const Block& block = blocks[task % count];
      const BranchShape& branch = g.branches[block.branch];
      kernels<T>().gather_planes(
          tables[block.branch].resize(), grad + (n * g.channels + block.offset + block.channel) * g.pixels(),
          g.pixels(), std::min(kResizedPlanes, branch.channels - block.channel), memory.get(),
          grad_branches[block.branch] + n * branch.size() + block.channel * branch.height * branch.width);
    }
  });
}

// One branch: first what each run of rows gives, then the sum for each input row.
template <typename T>
void backward_interleaved(const Geometry& g, const BranchShape& branch, int64_t offset, const T* grad, T* grad_branch) {
  const ResizeTables<Acc<T>> tables(g, branch);
  const ResizeAxis<Acc<T>> rows = tables.rows.axis();
  const int64_t run_count = rows.run_count;
  const int64_t row = branch.width * branch.channels;
  const int64_t wanted = 8 * static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t together = std::clamp<int64_t>(wanted / run_count, 1, std::max<int64_t>(1, g.samples));
  auto parts = scratch<Acc<T>>(together * run_count * 2 * row);
  for (int64_t begin = 0; begin < g.samples; begin += together) {
    const int64_t count = std::min(together, g.samples - begin);
    parallel_tasks(count * run_count, branch.channels * g.pixels() / run_count, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        Acc<T>* part = parts.get() + i * 2 * row;
        kernels<T>().gather_run(tables.resize(), rows.runs[i % run_count],
                                grad + (begin + i / run_count) * g.channels * g.pixels() + offset, g.channels,
                                branch.channels, part, part + row);
      }
    });
    parallel_tasks(count * branch.height, 4 * row, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t n = i / branch.height;
        kernels<T>().add_runs(rows, i % branch.height, parts.get() + n * run_count * 2 * row, row,
                              grad_branch + begin * branch.size() + i * row);
      }
    });
  }
}

Tensor pyramid_upsample_concat(const Tensor& x, std::vector<Tensor> branches, bool align_corners, bool x_first) {
  STD_TORCH_CHECK(x.dim() == 4, kOp, ": x must be [N, C, H, W], got ", x.dim(), " dimensions");
  STD_TORCH_CHECK(x.is_cpu(), kOp, ": x must be on the CPU");
  const bool planar = lies_in_planes(x);
  Geometry g{x.size(0), x.size(1), x.size(2), x.size(3), x.size(1), planar, align_corners, x_first, {}};
  for (const Tensor& branch : branches) {
    STD_TORCH_CHECK(branch.dim() == 4 && branch.is_cpu() && branch.scalar_type() == x.scalar_type() &&
                        is_dense_map(branch, {g.samples, branch.size(1), branch.size(2), branch.size(3)}, planar),
                    kOp, ": branches must be [N, C_i, h_i, w_i], of the dtype, memory format and samples of x");
    g.branches.push_back({branch.size(1), branch.size(2), branch.size(3)});
    g.channels += branch.size(1);
  }
  g.check();
  STD_TORCH_CHECK(readable(x, planar), kOp, ": x must be contiguous or channels_last, or a slice of such");
  Tensor y = new_map(x, {g.samples, g.channels, g.height, g.width}, planar);
  for_floating(kOp, "x", x.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    std::vector<const T*> pointers;
    for (const Tensor& branch : branches) pointers.push_back(static_cast<const T*>(branch.data_ptr()));
    const auto samples = samples_of<const T>(x, planar);
    auto* to = static_cast<T*>(y.data_ptr());
    planar ? forward_planar<T>(g, samples, pointers, to) : forward_interleaved<T>(g, samples, pointers, to);
  });
  return y;
}

std::vector<Tensor> pyramid_upsample_concat_backward(const Tensor& grad_output, std::vector<int64_t> branch_shapes,
                                                     bool align_corners, bool x_first, bool channels_last) {
  STD_TORCH_CHECK(grad_output.dim() == 4 && grad_output.is_cpu(), kOp,
                  ": grad_output must be [N, C, H, W], on the CPU");
  STD_TORCH_CHECK(branch_shapes.size() % 3 == 0, kOp, ": branch_shapes must hold three numbers for each branch");
  const int64_t channels = grad_output.size(1);
  Geometry g{grad_output.size(0), channels, grad_output.size(2),
             grad_output.size(3), channels, !channels_last,
             align_corners,       x_first,  {}};
  for (size_t i = 0; i < branch_shapes.size(); i += 3) {
    g.branches.push_back({branch_shapes[i], branch_shapes[i + 1], branch_shapes[i + 2]});
    g.x_channels -= branch_shapes[i];
  }
  g.check();
  STD_TORCH_CHECK(is_dense_map(grad_output, {g.samples, g.channels, g.height, g.width}, g.planar), kOp,
                  ": grad_output must have the memory format of the result");
  std::vector<Tensor> gradients;
  for (const BranchShape& branch : g.branches) {
    gradients.push_back(new_map(grad_output, {g.samples, branch.channels, branch.height, branch.width}, g.planar));
  }
  for_floating(kOp, "x", grad_output.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const auto* grad = static_cast<const T*>(grad_output.data_ptr());
    std::vector<T*> pointers;
    for (const Tensor& gradient : gradients) pointers.push_back(static_cast<T*>(gradient.data_ptr()));
    if (g.planar) return backward_planar<T>(g, grad, pointers);
    int64_t offset = g.branch_offset();
    for (size_t k = 0; k < g.branches.size(); ++k) {
      backward_interleaved<T>(g, g.branches[k], offset, grad, pointers[k]);
      offset += g.branches[k].channels;
    }
  });
  return gradients;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sod_ops, CPU, m) {
  m.impl("pyramid_upsample_concat", TORCH_BOX(&pyramid_upsample_concat));
  m.impl("pyramid_upsample_concat_backward", TORCH_BOX(&pyramid_upsample_concat_backward));
}

}  // namespace sod_ops

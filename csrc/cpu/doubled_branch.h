// A branch that nearest neighbours enlarge to twice its size in pyramid_conv2d: threads and memory. The arithmetic
// stands in ../simd/doubled_branch.cpp.
#pragma once

#include <algorithm>
#include <vector>

#include "../simd/doubled_branch.h"
#include "../stable.h"
#include "parallel.h"
#include "scratch.h"
#include "tap_maps.h"
#include "tap_panels.h"

namespace sod_ops {

template <typename T>
const DoubledKernels<T>& doubled_kernels() {
  return kernels_of<T>(doubled_branch_kernels());
}

// Whether the kernels for such branches are to take these. Along a short side the products that lie half outside of the
// map take what the others save; and with few pixels to each channel, what the weight's 25 products take to be made.
inline bool is_doubled(const std::vector<torch::stable::Tensor>& branches, int64_t kernel, int64_t height,
                       int64_t width, bool nearest) {
  constexpr int64_t kShortest = 24, kPixels = 16;
  const int64_t rows = branches[0].size(2), columns = branches[0].size(3);
  return nearest && branches.size() == 1 && kernel == kTapKernel && height == 2 * rows && width == 2 * columns &&
         std::min(rows, columns) >= kShortest && branches[0].size(0) * rows * columns >= kPixels * branches[0].size(1);
}

// What the kernels are called for, one after the other: some rows k of a sample.
struct DoubledCalls {
  DoubledShape shape;
  int64_t samples;

  int64_t rows() const { return doubled_rows(shape); }
  int64_t per_sample() const { return (shape.rows() + rows() - 1) / rows(); }
  int64_t count() const { return samples * per_sample(); }
  int64_t elements() const { return 4 * rows() * shape.width * shape.channels; }

  // body(sample, first, last) for the calls [begin, end).
  template <typename Body>
  void for_each(int64_t begin, int64_t end, const Body& body) const {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % per_sample() * rows();
      body(i / per_sample(), first, std::min(first + rows(), shape.rows()));
    }
  }
};

inline DoubledCalls doubled_calls(const torch::stable::Tensor& branch, int64_t channels) {
  return {{channels, branch.size(1), branch.size(2), branch.size(3)}, branch.size(0)};
}

template <typename T>
void add_doubled(const Start& start, const torch::stable::Tensor& branch, const torch::stable::Tensor& weight,
                 torch::stable::Tensor& out) {
  const DoubledCalls calls = doubled_calls(branch, out.size(1));
  const Panels<T> panels({weight}, false, kDoubledProducts, doubled_kernels<T>().pack);
  parallel_tasks(calls.count(), calls.elements(), [&](int64_t begin, int64_t end) {
    auto memory = scratch<TapAccumulator<T>>(doubled_add_scratch<T>(calls.shape));
    calls.for_each(begin, end, [&](int64_t n, int64_t first, int64_t last) {
      PlaneSteps<const T> before{};
      if (start.y) before = plane<const T>(*start.y, n, 0);
      const T* bias = start.bias ? static_cast<const T*>(start.bias->data_ptr()) : nullptr;
      doubled_kernels<T>().add(calls.shape, plane<const T>(branch, n, 0), panels.at(0, 0), first, last, before, bias,
                               plane<T>(out, n, 0), memory.get());
    });
  });
}

// Calls are shared out in parts, each with sums of its own for the weight's gradient: by the shape alone, as the order
// of summation is, and so few that the sums take no more memory than the gradients of the products with the taps would.
inline int64_t doubled_parts(const DoubledCalls& calls) {
  constexpr int64_t kMost = 8;
  const int64_t pixels = calls.samples * calls.shape.height * calls.shape.width;
  int64_t parts = 1;
  while (parts < kMost && 2 * parts <= calls.count() && 8 * parts * calls.shape.depth < pixels) parts *= 2;
  return parts;
}

template <typename T>
void gradients_of_doubled(const torch::stable::Tensor& grad_output, const torch::stable::Tensor& branch,
                          const torch::stable::Tensor& weight, torch::stable::Tensor& grad_branch,
                          torch::stable::Tensor& grad_weight) {
  using A = TapAccumulator<T>;
  constexpr int64_t panel = kTapPanel<T>;
  const DoubledCalls calls = doubled_calls(branch, grad_output.size(1));
  const DoubledShape& shape = calls.shape;
  const Panels<T> transposed({weight}, true, kDoubledProducts, doubled_kernels<T>().pack);
  const int64_t panels = (shape.depth + panel - 1) / panel, line = shape.width * panel;
  const int64_t weights = panels * kDoubledProducts * shape.channels * panel, parts = doubled_parts(calls);
  const int64_t pixels = panels * shape.height * line, before = panels * shape.rows() * line;
  auto of_branch = scratch<A>(calls.samples * (pixels + before) + kTapTile * panel);
  auto of_weight = scratch<A>(parts * weights);
  parallel_tasks(parts, kGrain, [&](int64_t begin, int64_t end) {
    auto memory = scratch<A>(doubled_gradients_scratch<T>(shape));
    for (int64_t part = begin; part < end; ++part) {
      A* sums = of_weight.get() + part * weights;
      std::fill_n(sums, weights, A(0));
      const int64_t first_call = calls.count() * part / parts, last_call = calls.count() * (part + 1) / parts;
      calls.for_each(first_call, last_call, [&](int64_t n, int64_t first, int64_t last) {
        A* of_sample = of_branch.get() + n * (pixels + before);
        doubled_kernels<T>().gradients(shape, plane<const T>(branch, n, 0), transposed.at(0, 0), first, last,
                                       plane<const T>(grad_output, n, 0), {of_sample, of_sample + pixels, sums},
                                       memory.get());
      });
    }
  });
  parallel_tasks(calls.samples * panels, shape.height * line, [&](int64_t begin, int64_t end) {
    auto memory = scratch<A>(kTapTile * (shape.width + kTapTile));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / panels, p = i % panels;
      const A* of_sample = of_branch.get() + n * (pixels + before);
      PlaneSteps<T> out = plane<T>(grad_branch, n, p * panel);
      const TapShape row{std::min(panel, shape.depth - p * panel), 1, shape.width, 1};
      for (int64_t y = 0; y < shape.height; ++y, out.data += out.row) {
        const A* own = of_sample + (p * shape.height + y) * line;
        const A* other = of_sample + pixels + (p * shape.rows() + (y + 1) / 2) * line;
        tap_kernels<T>().store_pixels(row, own, y % 2 ? 2 : 1, other - own, out, memory.get());
      }
    }
  });
  parallel_tasks(shape.channels, shape.depth * kDoubledProducts, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      doubled_kernels<T>().store_weight(
          of_weight.get() + o * panel, parts, weights, shape.channels, shape.depth,
          static_cast<T*>(grad_weight.data_ptr()) + o * shape.depth * kTapKernel * kTapKernel);
    }
  });
}

}  // namespace sod_ops

// What the CPU's operators of pyramid_conv2d share: how they walk branches, and how the work is shared out.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "../simd/pyramid_conv2d.h"
#include "../stable.h"
#include "interpolation_axis.h"
#include "parallel.h"
#include "scratch.h"

namespace sod_ops {

template <typename T>
const TapKernels<T>& tap_kernels() {
  return kernels_of<T>(pyramid_conv2d_kernels());
}

// Where each row and column of the output reads in every branch.
template <typename A>
class Interpolation {
 public:
  Interpolation(const std::vector<int64_t>& heights, const std::vector<int64_t>& widths, int64_t height, int64_t width,
                bool align_corners, bool nearest) {
    for (size_t b = 0; b < heights.size(); ++b) {
      rows.push_back(interpolation_axis<A>(heights[b], height, align_corners, nearest));
      columns.push_back(interpolation_axis<A>(widths[b], width, align_corners, nearest));
    }
  }

  std::vector<std::vector<math::Tap<A>>> rows;
  std::vector<std::vector<math::Tap<A>>> columns;
};

// The call's pieces: blocks of channels of a sample, as wide as leaves every thread some.
struct Blocks {
  int64_t samples;
  int64_t channels;
  int64_t width = kTapBlock;

  Blocks(int64_t samples, int64_t channels) : samples(samples), channels(channels) {
    const int64_t wanted = 2 * static_cast<int64_t>(torch::stable::get_num_threads());
    while (width > 16 && samples * per_sample() < wanted) width /= 2;
  }

  int64_t per_sample() const { return (channels + width - 1) / width; }
  int64_t count() const { return samples * per_sample(); }

  // body(sample, first channel, channels, part) for every block, in `parts` parts, by all threads.
  template <typename Body>
  void for_each(int64_t elements, int64_t parts, const Body& body) const {
    const int64_t pieces = count() * parts;
    parallel_tasks(pieces, elements / std::max<int64_t>(1, pieces), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t block = i / parts, first = block % per_sample() * width;
        body(block / per_sample(), first, std::min(width, channels - first), i % parts);
      }
    });
  }
};

// Into how many parts the rows of an output of few blocks are cut, so that no thread is left without work. Each part
// computes what the next one's first rows share with it once more: a part of few rows would do little else.
inline int64_t row_parts(const Blocks& blocks, int64_t height) {
  constexpr int64_t kRows = 16;
  const int64_t threads = torch::stable::get_num_threads(), count = std::max<int64_t>(1, blocks.count());
  return std::clamp<int64_t>((threads + count - 1) / count, 1, std::max<int64_t>(1, height / kRows));
}

// One block of a map [N, C, H, W].
template <typename T>
PlaneSteps<T> plane(const torch::stable::Tensor& map, int64_t sample, int64_t channel) {
  return {static_cast<T*>(map.data_ptr()) + sample * map.stride(0) + channel * map.stride(1), map.stride(1),
          map.stride(2), map.stride(3)};
}

// body(branches, count, first) for the blocks map(b) of `count` branches in turn, as many at once as a kernel takes, of
// which the first is branch number `first`. Without branches it is called once, with none.
template <typename T, typename Map, typename Body>
void for_branches(int64_t count, const Interpolation<TapAccumulator<T>>& taps, const Map& map, const Body& body) {
  int64_t first = 0;
  do {
    TapMap<T> maps[kTapBranches];
    const int64_t part = std::min(kTapBranches, count - first);
    for (int64_t i = 0; i < part; ++i) {
      const int64_t b = first + i;
      maps[i] = map(b);
      maps[i].rows = taps.rows[b].data();
      maps[i].columns = taps.columns[b].data();
    }
    body(maps, part, first);
    first += part;
  } while (first < count);
}

inline void check_map(const char* name, const torch::stable::Tensor& map) {
  STD_TORCH_CHECK(map.dim() == 4 && map.is_cpu(), "pyramid_conv2d: ", name, " must be [N, C, H, W] on the CPU");
  STD_TORCH_CHECK(map.stride(3) == 1 || map.stride(1) == 1 || map.numel() == 0, "pyramid_conv2d: ", name,
                  " must be contiguous or channels_last");
}

inline void check_interpolation(int64_t kernel_size, const std::vector<int64_t>& heights,
                                const std::vector<int64_t>& widths) {
  STD_TORCH_CHECK(kernel_size == 1 || kernel_size == kTapKernel, "pyramid_conv2d: kernel_size must be 1 or 3, got ",
                  kernel_size);
  STD_TORCH_CHECK(heights.size() == widths.size(), "pyramid_conv2d: heights and widths must be as many");
  for (size_t b = 0; b < heights.size(); ++b) {
    STD_TORCH_CHECK(heights[b] > 0 && widths[b] > 0, "pyramid_conv2d: a branch must have at least one row and column");
  }
}

// What is added to: y, or a bias for each channel, or nothing.
struct Start {
  std::optional<torch::stable::Tensor> y;
  std::optional<torch::stable::Tensor> bias;
};

// out = what is added to + what the branches add: block (sample, first channel) of branch b is map(b, sample, channel).
// `multiplied` is how much scratch memory the largest of those needs that come without products.
template <typename T, typename Map>
void add_taps(const Start& start, const std::vector<int64_t>& heights, const std::vector<int64_t>& widths,
              int64_t kernel, bool align_corners, bool nearest, int64_t multiplied, const Map& map,
              torch::stable::Tensor& out) {
  using A = TapAccumulator<T>;
  const int64_t height = out.size(2), width = out.size(3), count = static_cast<int64_t>(heights.size());
  const Interpolation<A> taps(heights, widths, height, width, align_corners, nearest);
  const Blocks blocks(out.size(0), out.size(1));
  const int64_t parts = row_parts(blocks, height);
  blocks.for_each(out.numel(), parts, [&](int64_t n, int64_t channel, int64_t channels, int64_t part) {
    const TapShape shape{channels, height, width, kernel};
    auto memory = scratch<A>(tap_scratch(shape, std::min(count, kTapBranches)));
    auto products = scratch<A>(multiplied);
    const auto block = [&](int64_t b) { return map(b, n, channel); };
    for_branches<T>(count, taps, block, [&](const TapMap<T>* maps, int64_t some, int64_t first) {
      PlaneSteps<const T> before{};
      const T* bias = nullptr;
      if (first > 0) {
        before = plane<const T>(out, n, channel);
      } else if (start.y) {
        before = plane<const T>(*start.y, n, channel);
      } else if (start.bias) {
        bias = static_cast<const T*>(start.bias->data_ptr()) + channel;
      }
      tap_kernels<T>().add(shape, maps, some, height * part / parts, height * (part + 1) / parts, before, bias,
                           plane<T>(out, n, channel), memory.get(), products.get());
    });
  });
}

}  // namespace sod_ops

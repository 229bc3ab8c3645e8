// Upsampled branches in a convolution's output on the CPU: checks, threads and memory. The arithmetic stands in
// ../simd/pyramid_conv2d.cpp.
#include "../simd/pyramid_conv2d.h"

#include <algorithm>
#include <vector>

#include "../dtype.h"
#include "../empty.h"
#include "../stable.h"
#include "interpolation_axis.h"
#include "maps.h"
#include "parallel.h"
#include "scratch.h"

namespace sod_ops {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

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

  // body(sample, first channel, channels) for every block, by all threads.
  template <typename Body>
  void for_each(int64_t elements, const Body& body) const {
    const int64_t blocks = samples * per_sample();
    parallel_tasks(blocks, elements / std::max<int64_t>(1, blocks), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = i % per_sample() * width;
        body(i / per_sample(), first, std::min(width, channels - first));
      }
    });
  }
};

// One block of a branch's products [N, h, w, taps, C].
template <typename A>
TapMap<A> tap_map(const Tensor& products, int64_t sample, int64_t channel, const std::vector<math::Tap<A>>& rows,
                  const std::vector<math::Tap<A>>& columns) {
  return {static_cast<A*>(products.data_ptr()) + sample * products.stride(0) + channel,
          products.size(1),
          products.size(2),
          products.stride(2),
          products.stride(3),
          rows.data(),
          columns.data()};
}

// One block of a map [N, C, H, W].
template <typename T>
PlaneSteps<T> plane(const Tensor& map, int64_t sample, int64_t channel) {
  return {static_cast<T*>(map.data_ptr()) + sample * map.stride(0) + channel * map.stride(1), map.stride(1),
          map.stride(2), map.stride(3)};
}

// body(branches, count, first) for the branches' blocks in turn, as many at once as a kernel takes, of which the first
// is branch number `first`. Without branches it is called once, with none.
template <typename A, typename Body>
void for_branches(const std::vector<Tensor>& products, int64_t sample, int64_t channel, const Interpolation<A>& taps,
                  const Body& body) {
  const int64_t count = static_cast<int64_t>(products.size());
  int64_t first = 0;
  do {
    TapMap<A> maps[kTapBranches];
    const int64_t part = std::min(kTapBranches, count - first);
    for (int64_t i = 0; i < part; ++i) {
      const int64_t b = first + i;
      maps[i] = tap_map<A>(products[b], sample, channel, taps.rows[b], taps.columns[b]);
    }
    body(maps, part, first);
    first += part;
  } while (first < count);
}

void check_map(const char* name, const Tensor& map) {
  STD_TORCH_CHECK(map.dim() == 4 && map.is_cpu(), "pyramid_conv2d: ", name, " must be [N, C, H, W] on the CPU");
  STD_TORCH_CHECK(map.stride(3) == 1 || map.stride(1) == 1 || map.numel() == 0, "pyramid_conv2d: ", name,
                  " must be contiguous or channels_last");
}

void check_interpolation(int64_t kernel_size, const std::vector<int64_t>& heights, const std::vector<int64_t>& widths) {
  STD_TORCH_CHECK(kernel_size == 1 || kernel_size == kTapKernel, "pyramid_conv2d: kernel_size must be 1 or 3, got ",
                  kernel_size);
  STD_TORCH_CHECK(heights.size() == widths.size(), "pyramid_conv2d: heights and widths must be as many");
  for (size_t b = 0; b < heights.size(); ++b) {
    STD_TORCH_CHECK(heights[b] > 0 && widths[b] > 0, "pyramid_conv2d: a branch must have at least one row and column");
  }
}

int64_t kernel_of(const std::vector<Tensor>& products) {
  return !products.empty() && products[0].dim() == 5 && products[0].size(3) == 1 ? 1 : kTapKernel;
}

Tensor pyramid_conv2d(const Tensor& y, const std::vector<Tensor>& products, bool align_corners, bool nearest) {
  check_map("y", y);
  const ScalarType accumulator = accumulator_of(y.scalar_type());
  const int64_t kernel = kernel_of(products);
  std::vector<int64_t> heights, widths;
  for (const Tensor& map : products) {
    STD_TORCH_CHECK(map.dim() == 5 && map.size(0) == y.size(0) && map.size(3) == kernel * kernel &&
                        map.size(4) == y.size(1) && map.is_contiguous() && map.is_cpu() &&
                        map.scalar_type() == accumulator,
                    "pyramid_conv2d: products must be contiguous [N, h, w, taps, C] of y's accumulation type");
    heights.push_back(map.size(1));
    widths.push_back(map.size(2));
  }
  check_interpolation(kernel, heights, widths);
  Tensor out = new_like(y);
  check_map("out", out);
  for_floating("pyramid_conv2d", "y", y.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using A = typename TapKernels<T>::Acc;
    const Interpolation<A> taps(heights, widths, y.size(2), y.size(3), align_corners, nearest);
    Blocks(y.size(0), y.size(1)).for_each(y.numel(), [&](int64_t n, int64_t channel, int64_t channels) {
      const TapShape shape{channels, y.size(2), y.size(3), kernel};
      const int64_t count = static_cast<int64_t>(products.size());
      auto memory = scratch<A>(tap_scratch(shape, std::min(count, kTapBranches)));
      for_branches<A>(products, n, channel, taps, [&](const TapMap<A>* maps, int64_t part, int64_t first) {
        const Tensor& before = first == 0 ? y : out;
        tap_kernels<T>().add(shape, maps, part, plane<const T>(before, n, channel), plane<T>(out, n, channel),
                             memory.get());
      });
    });
  });
  return out;
}

std::vector<Tensor> pyramid_conv2d_backward(const Tensor& grad_output, const std::vector<int64_t>& heights,
                                            const std::vector<int64_t>& widths, int64_t kernel_size, bool align_corners,
                                            bool nearest) {
  check_map("grad_output", grad_output);
  check_interpolation(kernel_size, heights, widths);
  std::vector<Tensor> gradients;
  for (size_t b = 0; b < heights.size(); ++b) {
    gradients.push_back(sod_ops::new_empty(
        grad_output, {grad_output.size(0), heights[b], widths[b], kernel_size * kernel_size, grad_output.size(1)},
        accumulator_of(grad_output.scalar_type())));
  }
  for_floating("pyramid_conv2d_backward", "grad_output", grad_output.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using A = typename TapKernels<T>::Acc;
    const Interpolation<A> taps(heights, widths, grad_output.size(2), grad_output.size(3), align_corners, nearest);
    Blocks(grad_output.size(0), grad_output.size(1))
        .for_each(grad_output.numel(), [&](int64_t n, int64_t channel, int64_t channels) {
          const TapShape shape{channels, grad_output.size(2), grad_output.size(3), kernel_size};
          const int64_t count = static_cast<int64_t>(gradients.size());
          auto memory = scratch<A>(tap_scratch(shape, std::min(count, kTapBranches)));
          for_branches<A>(gradients, n, channel, taps, [&](const TapMap<A>* maps, int64_t part, int64_t) {
            tap_kernels<T>().gradients(shape, maps, part, plane<const T>(grad_output, n, channel), memory.get());
          });
        });
  });
  return gradients;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sod_ops, CPU, m) {
  m.impl("pyramid_conv2d", TORCH_BOX(&pyramid_conv2d));
  m.impl("pyramid_conv2d_backward", TORCH_BOX(&pyramid_conv2d_backward));
}

}  // namespace sod_ops

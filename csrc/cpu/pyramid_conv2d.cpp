// Branches' products with a kernel in a convolution's output on the CPU: checks and memory. The arithmetic stands in
// ../simd/pyramid_conv2d.cpp.
#include "../simd/pyramid_conv2d.h"

#include <algorithm>
#include <vector>

#include "../dtype.h"
#include "../empty.h"
#include "../stable.h"
#include "scratch.h"
#include "tap_maps.h"

namespace sod_ops {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// One block of a branch's products [N, h, w, taps, C].
template <typename T>
TapMap<T> tap_map(const Tensor& products, int64_t sample, int64_t channel) {
  using A = TapAccumulator<T>;
  return {static_cast<A*>(products.data_ptr()) + sample * products.stride(0) + channel,
          products.size(1),
          products.size(2),
          products.stride(2),
          products.stride(3),
          nullptr,
          nullptr};
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
    const auto map = [&](int64_t b, int64_t n, int64_t channel) { return tap_map<T>(products[b], n, channel); };
    add_taps<T>({y, std::nullopt}, heights, widths, kernel, align_corners, nearest, 0, map, out);
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
    using A = TapAccumulator<T>;
    const Interpolation<A> taps(heights, widths, grad_output.size(2), grad_output.size(3), align_corners, nearest);
    Blocks(grad_output.size(0), grad_output.size(1))
        .for_each(grad_output.numel(), 1, [&](int64_t n, int64_t channel, int64_t channels, int64_t) {
          const TapShape shape{channels, grad_output.size(2), grad_output.size(3), kernel_size};
          const int64_t count = static_cast<int64_t>(gradients.size());
          auto memory = scratch<A>(tap_scratch(shape, std::min(count, kTapBranches)));
          const auto map = [&](int64_t b) { return tap_map<T>(gradients[b], n, channel); };
          for_branches<T>(count, taps, map, [&](const TapMap<T>* maps, int64_t part, int64_t) {
            tap_kernels<T>().gradients(shape, maps, part, plane<const T>(grad_output, n, channel), memory.get(),
                                       nullptr);
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

// The weights of pyramid_conv2d's branches, packed for the products with them.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "../simd/pyramid_conv2d.h"
#include "../stable.h"
#include "parallel.h"
#include "scratch.h"

namespace sod_ops {

// A branch's part of the weight [C_out, C, K, K] as the kernels walk it; with its channels for those of the output, as
// the gradient of the branch needs it.
template <typename T>
TapWeight<T> tap_weight(const torch::stable::Tensor& weight, bool transposed) {
  const int64_t out = transposed ? 1 : 0, in = 1 - out;
  return {static_cast<const T*>(weight.data_ptr()),
          weight.size(out),
          weight.size(in),
          weight.size(2) * weight.size(3),
          weight.stride(out),
          weight.stride(in),
          weight.stride(2),
          weight.stride(3)};
}

// The weights of several branches in panels of `products` matrices [depth, kTapPanel], which `pack` makes (see
// TapKernels::pack and DoubledKernels::pack).
template <typename T>
class Panels {
 public:
  using A = TapAccumulator<T>;

  using Pack = void (*)(TapWeight<T> weight, int64_t first, A* panel);

  Panels(const std::vector<torch::stable::Tensor>& weights, bool transposed, int64_t products, Pack pack)
      : products_(products) {
    int64_t size = 0, count = 0;
    for (const torch::stable::Tensor& weight : weights) {
      weights_.push_back(tap_weight<T>(weight, transposed));
      starts_.push_back(size);
      size += count_of(weights_.size() - 1) * panel_size(weights_.size() - 1);
      count += count_of(weights_.size() - 1);
    }
    memory_ = scratch<A>(size);
    parallel_tasks(count, size / std::max<int64_t>(1, count), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        int64_t branch = 0, panel = i;
        for (; panel >= count_of(branch); ++branch) panel -= count_of(branch);
        pack(weights_[branch], panel * kTapPanel<T>, at(branch, panel * kTapPanel<T>));
      }
    });
  }

  const TapWeight<T>& weight(int64_t branch) const { return weights_[branch]; }

  // How many panels a branch has.
  int64_t count_of(int64_t branch) const { return (weights_[branch].channels + kTapPanel<T> - 1) / kTapPanel<T>; }

  // The panel that begins with a channel.
  A* at(int64_t branch, int64_t channel) const {
    return memory_.get() + starts_[branch] + channel / kTapPanel<T> * panel_size(branch);
  }

 private:
  int64_t panel_size(int64_t branch) const { return products_ * weights_[branch].depth * kTapPanel<T>; }

  int64_t products_;
  std::vector<TapWeight<T>> weights_;
  std::vector<int64_t> starts_;
  std::unique_ptr<A[]> memory_;
};

}  // namespace sod_ops

// Which two input positions an output position of a bilinear resize mixes along one axis, and how: PyTorch's rule
// (torch.nn.functional.interpolate without a scale factor), to the rounding.
#pragma once

#include <cstdint>

#include "scalar.h"

namespace sod_ops::math {

// output = first_weight * input[first] + second_weight * input[second]. At the end of the axis both are the last.
template <typename A>
struct BilinearTap {
  int64_t first;
  int64_t second;
  A first_weight;
  A second_weight;
};

// Input positions per output position.
template <typename A>
SOD_OPS_HD A bilinear_scale(int64_t inputs, int64_t outputs, bool align_corners) {
  if (align_corners) return outputs > 1 ? static_cast<A>(inputs - 1) / static_cast<A>(outputs - 1) : A(0);
  return static_cast<A>(inputs) / static_cast<A>(outputs);
}

// The tap of output position `output`, of `outputs`; `scale` is that of above.
template <typename A>
SOD_OPS_HD BilinearTap<A> bilinear_tap(int64_t output, int64_t inputs, int64_t outputs, A scale, bool align_corners) {
  if (inputs == outputs) return {output, output, A(1), A(0)};
  const A position =
      align_corners ? product(scale, static_cast<A>(output)) : product(scale, static_cast<A>(output) + A(0.5)) - A(0.5);
  const A clamped = position < A(0) ? A(0) : position;
  const int64_t floor = static_cast<int64_t>(clamped);
  const int64_t first = floor < inputs - 1 ? floor : inputs - 1;
  const A fraction = clamped - static_cast<A>(first);
  const A second_weight = fraction > A(1) ? A(1) : fraction;
  return {first, first < inputs - 1 ? first + 1 : first, A(1) - second_weight, second_weight};
}

}  // namespace sod_ops::math

// The gate of an attention map, sigmoid(z), and its derivative, for T = float, double or a SIMD vector of them.
#pragma once

#include "scalar.h"

namespace sod_ops::math {

template <typename T>
struct Sigmoid {
  T value;
  T slope;
};

// From one exponential, without an overflow; the slope s (1 - s) without a cancellation. NaN stays.
template <typename T>
SOD_OPS_HD Sigmoid<T> sigmoid_and_slope(T z) {
  const T e = exp_of_nonpositive(-math::abs(z));
  const T r = reciprocal(T(1) + e);
  const T er = e * r;
  return {where(greater(z, T(0)), r, er), er * r};
}

}  // namespace sod_ops::math

// The factor of object attention and its derivative, for T = float, double or a SIMD vector of them.
// sod_ops/reference/object_attention.py has the formula.
#pragma once

#include "scalar.h"

namespace sod_ops::math {

template <typename T>
struct ObjectFactor {
  T factor;  // 1 where the logit is kept, elsewhere its sigmoid s
  T slope;   // derivative of the factor by the logit: 0, elsewhere s (1 - s)
};

// Logits below `lowest` are background. A NaN, which compares with nothing, makes NaN.
template <typename T>
SOD_OPS_HD ObjectFactor<T> object_factor(T logit, T lowest) {
  const T e = exp_of_nonpositive(-math::abs(logit));
  const T r = reciprocal(T(1) + e);
  const T er = e * r;
  const T probability = where(greater(logit, T(0)), r, er);
  const T nothing = probability * T(0);
  const auto background = greater(lowest, logit);
  return {where(background, probability, nothing + T(1)), where(background, er * r, nothing)};
}

}  // namespace sod_ops::math

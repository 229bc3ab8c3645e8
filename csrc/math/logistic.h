// The logistic function of a logit and the cross entropy of its target, for T = float, double or a SIMD vector of them.
#pragma once

#include "focal_loss.h"

namespace sod_ops::math {

template <typename T>
struct Logistic {
  T probability;
  T slope;          // derivative of the probability by the logit, p (1 - p)
  T error;          // p - y: derivative of the cross entropy by the logit
  T cross_entropy;  // -y log p - (1 - y) log(1 - p)
};

// From one exponential, without a cancellation or an overflow: focal_loss.h has the derivation.
template <typename T>
SOD_OPS_HD Logistic<T> logistic(T x, T y) {
  const T one(1);
  const T other = one - y;
  const auto leans_positive = greater(x, T(0));
  const T a = where(leans_positive, other, y), b = where(leans_positive, y, other);
  const T magnitude = math::abs(x);
  const T e = exp_of_nonpositive(-magnitude);
  const T r = reciprocal(one + e);
  const T er = e * r;
  const T error = r * (a - b * e);
  return {where(leans_positive, r, er), er * r, where(leans_positive, error, -error),
          multiply_add(a, magnitude, log1p_of_unit(e))};
}

}  // namespace sod_ops::math

// The cross entropy of a probability and its target, for T = float, double or a SIMD vector of them.
#pragma once

#include "scalar.h"

namespace sod_ops::math {

// log(p) and log(1 - p); simd/logarithm.h has a shorter way.
template <typename T>
SOD_OPS_HD T log_of_probability(T p) {
  return math::log(p);
}
template <typename T>
SOD_OPS_HD T log_of_complement(T p) {
  return math::log1p(-p);
}

// -y log p - (1 - y) log(1 - p). Logarithms end at -100, as PyTorch's do, so that a wrong 0 or 1 costs 100.
template <typename T>
SOD_OPS_HD T cross_entropy(T p, T y) {
  const T one(1), least(-100);
  return -(y * math::max(log_of_probability(p), least) + (one - y) * math::max(log_of_complement(p), least));
}

// Its derivative by p. As PyTorch has it, p (1 - p) is at least 1e-12, a float in double too.
template <typename T>
SOD_OPS_HD T cross_entropy_derivative(T p, T y) {
  return (p - y) / math::max((T(1) - p) * p, T(1e-12f));
}

}  // namespace sod_ops::math

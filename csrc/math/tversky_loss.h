// The Tversky loss: a pixel's part in its sums, the loss from the sums, and a pixel's derivative; for T = float, double
// or a SIMD vector of them. The definition stands in sod_ops/reference/tversky_loss.py.
#pragma once

#include "logistic.h"

namespace sod_ops::math {

template <typename T>
struct TverskySums {
  T intersection;  // of p y
  T predicted;     // of p
  T target;        // of y
};

template <typename T>
void add_to(const TverskySums<T>& from, TverskySums<double>& to) {
  to.intersection += from.intersection;
  to.predicted += from.predicted;
  to.target += from.target;
}

// What one pixel adds.
template <typename T>
SOD_OPS_HD TverskySums<T> tversky_sums(T x, T y) {
  const T p = logistic(x, y).probability;
  return {p * y, p, y};
}

struct TverskyOptions {
  double alpha;
  double beta;
  double smooth;
};

struct TverskyRatio {
  double above;
  double below;
};

// The loss is 1 minus this ratio.
SOD_OPS_HD TverskyRatio tversky_ratio(const TverskySums<double>& sums, const TverskyOptions& options) {
  const double above = sums.intersection + options.smooth;
  return {above, above + options.alpha * (sums.predicted - sums.intersection) +
                     options.beta * (sums.target - sums.intersection)};
}

// A pixel's derivative is p (1 - p) (inside y + outside (1 - y)).
template <typename T>
struct TverskyCoefficients {
  T inside;
  T outside;
};

// `factor` is the gradient of the sample's loss.
template <typename T>
SOD_OPS_HD TverskyCoefficients<T> tversky_coefficients(const TverskySums<double>& sums, const TverskyOptions& options,
                                                       double factor) {
  const TverskyRatio ratio = tversky_ratio(sums, options);
  const double scale = factor / (ratio.below * ratio.below);
  return {static_cast<T>(scale * (ratio.above * (1 - options.beta) - ratio.below)),
          static_cast<T>(scale * ratio.above * options.alpha)};
}

template <typename T>
SOD_OPS_HD T tversky_derivative(const TverskyCoefficients<T>& c, T x, T y) {
  return logistic(x, y).slope * multiply_add(c.inside, y, c.outside * (T(1) - y));
}

}  // namespace sod_ops::math

// The structure loss: a pixel's part in its sums, the losses from the sums, and a pixel's derivative; for T = float,
// double or a SIMD vector of them. The definition stands in sod_ops/reference/structure_loss.py.
#pragma once

#include <cstdint>

#include "logistic.h"

namespace sod_ops::math {

// The weight of a pixel y of the mask in whose surroundings the average is `average`.
template <typename T>
SOD_OPS_HD T structure_weight(T average, T y) {
  return multiply_add(T(5), math::abs(average - y), T(1));
}

template <typename T>
struct StructureSums {
  T cross_entropy;  // weighted; as published, without weights
  T intersection;   // of w p y
  T total;          // of w (p + y)
};

template <typename T>
void add_to(const StructureSums<T>& from, StructureSums<double>& to) {
  to.cross_entropy += from.cross_entropy;
  to.intersection += from.intersection;
  to.total += from.total;
}

// What one pixel adds.
template <bool kPublished, typename T>
SOD_OPS_HD StructureSums<T> structure_sums(T x, T y, T weight) {
  const auto l = logistic(x, y);
  const T wp = weight * l.probability;
  return {kPublished ? l.cross_entropy : weight * l.cross_entropy, wp * y, multiply_add(weight, y, wp)};
}

// One sample's two terms; `pixels` is how many it has.
struct StructureTerms {
  double cross_entropy;
  double overlap;
};

SOD_OPS_HD StructureTerms structure_terms(const StructureSums<double>& sums, double weights, double pixels,
                                          bool published) {
  const double intersection = sums.intersection + 1, rest = sums.total - sums.intersection + 1;
  return {sums.cross_entropy / (published ? pixels : weights), 1 - intersection / rest};
}

// A pixel's derivative is
//
//     (weighted w + plain) (p - y) + w p (1 - p) (slope y + offset)
//
// with the derivatives of wiou = 1 - (I + 1) / (U - I + 1) by I and U in the last two.
template <typename T>
struct StructureCoefficients {
  T weighted;
  T plain;
  T slope;
  T offset;
};

// `factor` is the gradient of the sample's loss, `batch` the sum of all samples' over their number of pixels: as
// published, every sample's cross entropy is the mean over all.
template <typename T>
SOD_OPS_HD StructureCoefficients<T> structure_coefficients(const StructureSums<double>& sums, double weights,
                                                           double factor, double batch, bool published) {
  const double intersection = sums.intersection + 1, rest = sums.total - sums.intersection + 1;
  return {static_cast<T>(published ? 0 : factor / weights), static_cast<T>(published ? batch : 0),
          static_cast<T>(-factor * (rest + intersection) / (rest * rest)),
          static_cast<T>(factor * intersection / (rest * rest))};
}

template <typename T>
SOD_OPS_HD T structure_derivative(const StructureCoefficients<T>& c, T x, T y, T weight) {
  const auto l = logistic(x, y);
  const T overlap = weight * l.slope * multiply_add(c.slope, y, c.offset);
  return multiply_add(multiply_add(c.weighted, weight, c.plain), l.error, overlap);
}

}  // namespace sod_ops::math

// BASNet's hybrid loss without its structural similarity, which is ssim.h's: a pixel's part in its sums, the losses
// from the sums, and a pixel's derivative; for T = float, double or a SIMD vector of them. The definition stands in
// sod_ops/reference/bce_ssim_iou_loss.py.
#pragma once

#include "cross_entropy.h"

namespace sod_ops::math {

template <typename T>
struct HybridSums {
  T cross_entropy;
  T intersection;  // of p y
  T total;         // of p + y
};

template <typename T>
void add_to(const HybridSums<T>& from, HybridSums<double>& to) {
  to.cross_entropy += from.cross_entropy;
  to.intersection += from.intersection;
  to.total += from.total;
}

template <typename T>
SOD_OPS_HD HybridSums<T> hybrid_sums(T p, T y) {
  return {cross_entropy(p, y), p * y, p + y};
}

struct HybridWeights {
  double cross_entropy, similarity, overlap;
  double smooth;
};

// A sample's loss from its sums and that of its pixels' similarity indices. Where nothing is in either map, and nothing
// is added, their IoU is 1.
SOD_OPS_HD double hybrid_loss(const HybridWeights& w, const HybridSums<double>& sums, double indices, double pixels) {
  const double both = sums.intersection + w.smooth, either = sums.total - sums.intersection + w.smooth;
  const double overlap = either > 0 ? 1 - both / either : (either == 0 ? 0.0 : either);
  return w.cross_entropy * sums.cross_entropy / pixels + w.similarity * (1 - indices / pixels) + w.overlap * overlap;
}

// A pixel's derivative, without that of its similarity, is
//
//     cross_entropy (p - y) / (p (1 - p)) + slope y + offset
//
// with the derivative of 1 - (I + s) / (T - I + s) in the last two.
template <typename T>
struct HybridCoefficients {
  T cross_entropy;
  T slope;
  T offset;
};

// `factor` is the gradient of the sample's loss.
template <typename T>
SOD_OPS_HD HybridCoefficients<T> hybrid_coefficients(const HybridWeights& w, const HybridSums<double>& sums,
                                                     double pixels, double factor) {
  const double both = sums.intersection + w.smooth, either = sums.total - sums.intersection + w.smooth;
  const double scale = either == 0 ? 0.0 : factor * w.overlap / (either * either);
  return {static_cast<T>(factor * w.cross_entropy / pixels), static_cast<T>(-scale * (either + both)),
          static_cast<T>(scale * both)};
}

template <typename T>
SOD_OPS_HD T hybrid_derivative(const HybridCoefficients<T>& c, T p, T y) {
  return multiply_add(c.cross_entropy, cross_entropy_derivative(p, y), multiply_add(c.slope, y, c.offset));
}

}  // namespace sod_ops::math

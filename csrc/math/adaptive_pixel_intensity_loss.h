// The adaptive pixel intensity loss: a pixel's part in its sums, the losses from the sums, and a pixel's derivative;
// for T = float, double or a SIMD vector of them. The definition stands in
// sod_ops/reference/adaptive_pixel_intensity_loss.py.
#pragma once

#include "cross_entropy.h"

namespace sod_ops::math {

// The weight of a pixel y of the mask in whose three surroundings the averages are these.
template <typename T>
SOD_OPS_HD T intensity_weight(T small, T medium, T large, T y) {
  const T distance = math::abs(small - y) + math::abs(medium - y) + math::abs(large - y);
  return multiply_add(T(0.5) * distance, y, T(1));
}

template <typename T>
struct IntensitySums {
  T cross_entropy;   // weighted; as published, without weights
  T absolute_error;  // likewise
  T intersection;    // of w p y
  T total;           // of w (p + y)
};

template <typename T>
void add_to(const IntensitySums<T>& from, IntensitySums<double>& to) {
  to.cross_entropy += from.cross_entropy;
  to.absolute_error += from.absolute_error;
  to.intersection += from.intersection;
  to.total += from.total;
}

// What one pixel adds.
template <bool kPublished, typename T>
SOD_OPS_HD IntensitySums<T> intensity_sums(T p, T y, T weight) {
  const T cross_entropy = math::cross_entropy(p, y);
  const T error = math::abs(p - y), wp = weight * p;
  return {kPublished ? cross_entropy : weight * cross_entropy, kPublished ? error : weight * error, wp * y,
          multiply_add(weight, y, wp)};
}

// What a sample's cross entropy and absolute error are divided by. Where nothing but the background is there, no pixel
// has a weight above 1, and the mean takes the place of a division by 0.
struct IntensityNorms {
  double cross_entropy;
  double absolute_error;
};

SOD_OPS_HD IntensityNorms intensity_norms(double weights, double pixels) {
  const double above_one = weights - pixels;
  return {weights + 0.5 * pixels, above_one > 0 ? above_one : pixels};
}

// A sample's loss from its sums; as published, `cross_entropy` and `absolute_error` in them are the means over all
// pixels of all samples times the sample's weights.
SOD_OPS_HD double intensity_loss(const IntensitySums<double>& sums, double weights, double pixels) {
  const IntensityNorms norms = intensity_norms(weights, pixels);
  const double overlap = 1 - (sums.intersection + 1) / (sums.total - sums.intersection + 1);
  return 0.7 * (sums.cross_entropy / norms.cross_entropy + overlap + sums.absolute_error / norms.absolute_error);
}

// A pixel's derivative is
//
//     (cross_entropy_w w + cross_entropy) (p - y) / (p (1 - p)) + (error_w w + error) sign(p - y) + w (slope y +
//     offset)
template <typename T>
struct IntensityCoefficients {
  T cross_entropy_w, cross_entropy, error_w, error, slope, offset;
};

// `factor` is the gradient of the sample's loss; as published, `cross_entropy` and `error` are what all samples' losses
// together have of a pixel's.
template <typename T>
SOD_OPS_HD IntensityCoefficients<T> intensity_coefficients(const IntensitySums<double>& sums, double weights,
                                                           double pixels, double factor, double cross_entropy,
                                                           double error, bool published) {
  const IntensityNorms norms = intensity_norms(weights, pixels);
  const double scale = 0.7 * factor;
  const double intersection = sums.intersection + 1, rest = sums.total - sums.intersection + 1;
  return {static_cast<T>(published ? 0 : scale / norms.cross_entropy),
          static_cast<T>(published ? cross_entropy : 0),
          static_cast<T>(published ? 0 : scale / norms.absolute_error),
          static_cast<T>(published ? error : 0),
          static_cast<T>(-scale * (rest + intersection) / (rest * rest)),
          static_cast<T>(scale * intersection / (rest * rest))};
}

// As PyTorch has it, the sign of 0 is 0.
template <typename T>
SOD_OPS_HD T intensity_derivative(const IntensityCoefficients<T>& c, T p, T y, T weight) {
  const T one(1), zero(0), difference = p - y;
  const T sign = where(greater(difference, zero), one, where(greater(zero, difference), -one, zero));
  const T cross_entropy = cross_entropy_derivative(p, y);
  const T overlap = weight * multiply_add(c.slope, y, c.offset);
  return multiply_add(multiply_add(c.cross_entropy_w, weight, c.cross_entropy), cross_entropy,
                      multiply_add(multiply_add(c.error_w, weight, c.error), sign, overlap));
}

}  // namespace sod_ops::math

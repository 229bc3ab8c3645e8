// The structural similarity index of a pixel and its derivatives, for T = float, double or a SIMD vector of them. The
// definition stands in sod_ops/reference/ssim.py.
#pragma once

#include "scalar.h"

namespace sod_ops::math {

template <typename T>
struct Similarity {
  T index;
  // Its derivatives by the window's averages of x, of y, of x^2 + y^2 and of x y.
  T by_mean_x;
  T by_mean_y;
  T by_squares;
  T by_product;
};

// From these averages. The sum of the two variances is all that the index has of them, so that squares need one
// average.
//
//     index = (2 mx my + C1) / (mx^2 + my^2 + C1)  *  (2 (p - mx my) + C2) / (s - mx^2 - my^2 + C2)
//
// A pixel's derivative is a sum in which, where images hardly vary, terms of size 1 / C2 cancel: by_mean must be
// computed from the very by_squares and by_product that it shall cancel with.
template <typename T>
SOD_OPS_HD Similarity<T> similarity(T mean_x, T mean_y, T squares, T product) {
  const T c1(1e-4), c2(9e-4), two(2);
  const T both = mean_x * mean_y, means = multiply_add(mean_x, mean_x, mean_y * mean_y);
  const T by_means = reciprocal(means + c1), by_variances = reciprocal(squares - means + c2);
  const T luminance = multiply_add(two, both, c1) * by_means;
  const T contrast = multiply_add(two, product - both, c2) * by_variances;
  const T by_product = two * luminance * by_variances, by_squares = T(-0.5) * contrast * by_product;
  const T scale = two * contrast * by_means;
  const auto by_mean = [&](T own, T other) {
    return scale * (other - own * luminance) - multiply_add(two * own, by_squares, other * by_product);
  };
  return {luminance * contrast, by_mean(mean_x, mean_y), by_mean(mean_y, mean_x), by_squares, by_product};
}

}  // namespace sod_ops::math

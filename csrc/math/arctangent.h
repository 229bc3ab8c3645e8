// The arctangent of a quotient, for T = float, double or a SIMD vector of them.
#pragma once

#include "scalar.h"

namespace sod_ops::math {

template <typename T>
SOD_OPS_HD T polynomial(T, double coefficient) {
  return T(coefficient);
}

// first + second x + ...
template <typename T, typename... Coefficients>
SOD_OPS_HD T polynomial(T x, double first, Coefficients... rest) {
  return multiply_add(polynomial(x, rest...), x, T(first));
}

// (atan(t) / t - 1) / t^2 for t = sqrt(z) in [0, 1]. Minimax for the relative error of the arctangent, by the Remez
// exchange in 60 digits: 2.6e-9 for float, 4.6e-18 for double, a twentieth of their rounding.
template <typename T>
SOD_OPS_HD T arctangent_polynomial(T z) {
  if constexpr (sizeof(typename Scalar<T>::type) == sizeof(float)) {
    return polynomial(z, -0.33333299094066598, 0.19998548431902395, -0.14264243110009606, 0.10952192402138586,
                      -0.084034674625037075, 0.057957855361009438, -0.031178081211452763, 0.010914720940622658,
                      -0.0017936453887699460);
  } else {
    return polynomial(
        z, -0.33333333333333068046, 0.19999999999951455161, -0.14285714282574818469, 0.11111111007018754269,
        -0.090909070028816650679, 0.076922798382321242921, -0.066664040504563016417, 0.058805277801486566717,
        -0.052535184298041046696, 0.047223218884414678183, -0.042191782992877263971, 0.036641901183334704696,
        -0.029903848144904608104, 0.021984846192131976382, -0.013900558059105383341, 0.0071965047746373907905,
        -0.0028849206920550981423, 0.00083132309497714893322, -0.00015216122608927192243, 0.000013225119973714734336);
  }
}

// atan(y / x), also where x is 0; NaN where both are.
template <typename T>
SOD_OPS_HD T arctangent(T y, T x) {
  const T rise = math::abs(y), run = math::abs(x);
  const T t = min(rise, run) / max(rise, run);
  const T z = t * t;
  const T angle = multiply_add(t * z, arctangent_polynomial(z), t);
  // pi/2 in two parts: rounded once, it alone would be off by 4e-8 in float.
  constexpr double kHalfPi = 1.57079632679489661923, kRounded = static_cast<typename Scalar<T>::type>(kHalfPi);
  constexpr double kRest =
      sizeof(typename Scalar<T>::type) == sizeof(float) ? kHalfPi - kRounded : 6.123233995736766e-17;
  const T acute = where(greater(rise, run), (T(kRounded) - angle) + T(kRest), angle);
  return where(greater(T(0), y) ^ greater(T(0), x), -acute, acute);
}

}  // namespace sod_ops::math

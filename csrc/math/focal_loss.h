// Focal loss and its derivative for one element, for T = float, double or a SIMD vector of them. The definitions stand in
// sod_ops/reference/sigmoid_focal_loss.py and softmax_focal_loss.py; here each is arranged so that no step overflows or
// cancels, from one exponential and no logarithm but where gamma is other than 0, 1 or 2.
//
// Lin, Goyal, Girshick, He, Dollar: Focal Loss for Dense Object Detection, ICCV 2017.
#pragma once

#include <type_traits>

#include "scalar.h"

namespace sod_ops::math {

// How (1 - p_t)^gamma is taken: for gamma 0, 1 and 2 by multiplication.
enum class Focus { zero, one, two, power };

inline Focus focus_of(double gamma) {
  return gamma == 0 ? Focus::zero : gamma == 1 ? Focus::one : gamma == 2 ? Focus::two : Focus::power;
}

template <typename T>
struct Focal {
  T loss;
  T derivative;  // of the loss by the logit
};

// log(1 + e) for 0 <= e <= 1, as 2 atanh(t) with t = e / (2 + e). The polynomials in t^2 on [0, 1/9] are minimax fits of
// (atanh(t) / t - 1) / t^2, off by 4.5e-9 (float) and 1.3e-18 (double) relative to the logarithm; a library's log1p, which
// serves every argument, takes four times as long.
template <typename T>
SOD_OPS_HD T log1p_of_unit(T e) {
  const T t = divide(e, T(2) + e);
  const T s = t * t;
  T p;
  if constexpr (std::is_same_v<Element<T>, float>) {
    p = T(0.140122293962f);
    p = multiply_add(p, s, T(0.139995705448f));
    p = multiply_add(p, s, T(0.200108495291f));
    p = multiply_add(p, s, T(0.333332065664f));
  } else {
    p = T(0.085092900320486133349);
    p = multiply_add(p, s, T(0.04170049386160209928));
    p = multiply_add(p, s, T(0.06053043460530705816));
    p = multiply_add(p, s, T(0.066504867482841855248));
    p = multiply_add(p, s, T(0.076932799651423114143));
    p = multiply_add(p, s, T(0.090908719622837982559));
    p = multiply_add(p, s, T(0.11111111984870994051));
    p = multiply_add(p, s, T(0.1428571427392684603));
    p = multiply_add(p, s, T(0.20000000000078622257));
    p = multiply_add(p, s, T(0.33333333333333151899));
  }
  const T twice = t + t;
  return multiply_add(twice, s * p, twice);
}

// The sigmoid form, for the logit x and the target y. With e = exp(-|x|) and r = 1 / (1 + e), the probability of what the
// logit leans to is r, that of the other e r. Let a be the target's share of the other, b = 1 - a (a = 1 - y, b = y for
// x >= 0, the reverse for x < 0). Then, without a cancellation,
//
//     cross entropy c  = a |x| + log(1 + e)             1 - p_t = q = r (a + b e)
//     dc/dx            = sign(x) r (a - b e)            dq/dx      = sign(x) r^2 e (a - b)
//
// and the loss is w q^gamma c with w = positive y + negative (1 - y). Where q underflows the loss and its derivative are 0
// for any gamma > 0, which is their limit.
template <Focus kFocus, typename T>
SOD_OPS_HD Focal<T> sigmoid_focal(T x, T y, T positive, T negative, T gamma) {
  const T one(1);
  const T other = one - y;
  const auto leans_positive = x >= T(0);
  const T a = where(leans_positive, other, y);
  const T b = where(leans_positive, y, other);
  const T magnitude = math::abs(x);
  const T e = exp_of_nonpositive(-magnitude);
  const T r = divide(one, one + e);
  const T log_sum = log1p_of_unit(e);
  const T c = multiply_add(a, magnitude, log_sum);
  const T be = b * e;
  const T slope = r * (a - be);
  const T weight = multiply_add(positive, y, negative * other);
  const T signed_weight = where(leans_positive, weight, T(0) - weight);
  if constexpr (kFocus == Focus::zero) {
    return {weight * c, signed_weight * slope};
  } else if constexpr (kFocus == Focus::power) {
    // The smallest normal number in place of an underflowed q / r: log and the quotient stay finite, c and e are 0.
    const T tiny(std::is_same_v<Element<T>, float> ? 1.1754943508222875e-38 : 2.2250738585072014e-308);
    const T sum = a + be;
    const T d = where(math::abs(sum) < tiny, tiny, sum);
    const T modulation = exp_of_nonpositive(gamma * (math::log(d) - log_sum));
    const T gain = gamma * c * r * divide(e * (a - b), d);
    return {weight * modulation * c, signed_weight * modulation * (gain + slope)};
  } else {
    const T q = r * (a + be);
    const T q_slope = c * r * (r * e) * (a - b);
    if constexpr (kFocus == Focus::one) {
      return {weight * q * c, signed_weight * multiply_add(q, slope, q_slope)};
    } else {
      const T wq = weight * q;
      return {wq * q * c, signed_weight * q * multiply_add(q, slope, q_slope + q_slope)};
    }
  }
}

}  // namespace sod_ops::math

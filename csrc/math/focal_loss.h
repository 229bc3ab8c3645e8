// Focal loss and its derivative for one element, for T = float, double or a SIMD vector of them. The definitions stand
// in sod_ops/reference/sigmoid_focal_loss.py and softmax_focal_loss.py; here each is arranged so that no step overflows
// or cancels. The sigmoid form takes one exponential, and no logarithm but where gamma is other than 0, 1 or 2.
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

template <typename T>
SOD_OPS_HD T smallest_normal() {
  return T(std::is_same_v<typename Scalar<T>::type, float> ? 1.1754943508222875e-38 : 2.2250738585072014e-308);
}

// log(1 + e) for 0 <= e <= 1; a library's log1p, which serves every argument, takes four times as long. The polynomials
// are minimax fits: in float of (log(1 + e) - e) / e^2; in double, where that would need 22 terms, of (atanh(t) / t -
// 1) / t^2 with t = e / (2 + e), as log(1 + e) = 2 atanh(t). Relative to the logarithm they are off by 3.3e-8
// and 1.3e-18.
template <typename T>
SOD_OPS_HD T log1p_of_unit(T e) {
  if constexpr (std::is_same_v<typename Scalar<T>::type, float>) {
    T p(0.0053669325026f);
    p = multiply_add(p, e, T(-0.030073630394f));
    p = multiply_add(p, e, T(0.079216287292f));
    p = multiply_add(p, e, T(-0.137547109f));
    p = multiply_add(p, e, T(0.19154038711f));
    p = multiply_add(p, e, T(-0.2485724976f));
    p = multiply_add(p, e, T(0.33321331697f));
    p = multiply_add(p, e, T(-0.49999648284f));
    return multiply_add(p, e * e, e);
  } else {
    const T t = divide(e, T(2) + e);
    const T s = t * t;
    T p(0.085092900320486133349);
    p = multiply_add(p, s, T(0.04170049386160209928));
    p = multiply_add(p, s, T(0.06053043460530705816));
    p = multiply_add(p, s, T(0.066504867482841855248));
    p = multiply_add(p, s, T(0.076932799651423114143));
    p = multiply_add(p, s, T(0.090908719622837982559));
    p = multiply_add(p, s, T(0.11111111984870994051));
    p = multiply_add(p, s, T(0.1428571427392684603));
    p = multiply_add(p, s, T(0.20000000000078622257));
    p = multiply_add(p, s, T(0.33333333333333151899));
    return multiply_add(t + t, s * p, t + t);
  }
}

// The sigmoid form, for the logit x and the target y. With e = exp(-|x|) and r = 1 / (1 + e), the probability of what
// the logit leans to is r, that of the other e r. Let a be the target's share of the other, b = 1 - a (a = 1 - y, b = y
// for x > 0, the reverse for x <= 0). Then, without a cancellation,
//
//     cross entropy c  = a |x| + log(1 + e)             1 - p_t = q = r (a + b e)
//     dc/dx            = sign(x) r (a - b e)            dq/dx      = sign(x) r^2 e (a - b)
//
// and the loss is w q^gamma c with w = positive y + negative (1 - y). Where q underflows the loss and its derivative
// are 0 for any gamma > 0, which is their limit.
template <Focus kFocus, typename T>
SOD_OPS_HD Focal<T> sigmoid_focal(T x, T y, T positive, T negative, T gamma) {
  const T one(1);
  const T other = one - y;
  const auto leans_positive = greater(x, T(0));
  const T a = where(leans_positive, other, y), b = where(leans_positive, y, other);
  const T magnitude = math::abs(x);
  const T e = exp_of_nonpositive(-magnitude);
  const T r = reciprocal(one + e);
  const T log_sum = log1p_of_unit(e);
  const T c = multiply_add(a, magnitude, log_sum);
  const T be = b * e;
  const T difference = a - be, sum = a + be;
  const T weight = multiply_add(positive, y, negative * other);
  const T signed_weight = where(leans_positive, weight, -weight);
  if constexpr (kFocus == Focus::zero) {
    return {weight * c, signed_weight * (r * difference)};
  } else if constexpr (kFocus == Focus::power) {
    // The smallest normal number in place of an underflowed q / r: log and the quotient stay finite, c and e are 0.
    const T tiny = smallest_normal<T>();
    const T d = where(greater(tiny, math::abs(sum)), tiny, sum);
    const T modulation = exp_of_nonpositive(gamma * (math::log(d) - log_sum));
    const T gain = gamma * c * divide(e * (a - b), d);
    return {weight * modulation * c, signed_weight * modulation * r * (gain + difference)};
  } else {
    const T q = r * sum;
    const T gain = c * e * (a - b);
    if constexpr (kFocus == Focus::one) {
      return {weight * q * c, signed_weight * (r * r) * multiply_add(sum, difference, gain)};
    } else {
      const T q2 = q * q;
      return {weight * q2 * c, signed_weight * q * (r * r) * multiply_add(sum, difference, gain + gain)};
    }
  }
}

// What the softmax form is computed from: with the largest logit m, the target's logit z and the sum s of exp(x_k - m)
// over the other classes, the target's cross entropy, its probability, and that of the others together, without a
// cancellation.
template <typename T>
struct Likelihood {
  T cross_entropy;
  T target;
  T others;
  T scale;  // 1 / the sum over all classes: times exp(x_k - m), the probability of class k
};

template <typename T>
SOD_OPS_HD Likelihood<T> likelihood(T largest, T logit, T others) {
  const T behind = largest - logit;
  const T exponential = exp_of_nonpositive(-behind);
  const T sum = others + exponential;
  const T scale = reciprocal(sum);
  // The sum is 1 and this: `others` without rounding where the target's logit is the largest.
  const T above_one = where(greater(behind, T(0)), sum - T(1), others);
  return {behind + math::log1p(above_one), exponential * scale, others * scale, scale};
}

template <typename T>
struct SoftmaxFocal {
  T loss;
  T gain;  // minus the derivative of the loss by the logarithm of the target's probability: times p_k - [k is the
           // target], the derivative by logit k
};

// The softmax form of cross entropy c, where the target has probability p and the others together q. Where q
// underflows, for any gamma > 0 the loss and its derivative are 0, which is their limit.
template <Focus kFocus, typename T>
SOD_OPS_HD SoftmaxFocal<T> softmax_focal(T c, T p, T q, T weight, T gamma) {
  if constexpr (kFocus == Focus::zero) {
    return {weight * c, weight};
  } else if constexpr (kFocus == Focus::one) {
    return {weight * q * c, weight * multiply_add(p, c, q)};
  } else if constexpr (kFocus == Focus::two) {
    const T wq = weight * q, pc = p * c;
    return {wq * q * c, wq * (q + (pc + pc))};
  } else {
    const T tiny = smallest_normal<T>();
    const T d = where(greater(tiny, q), tiny, q);
    const T modulated = weight * exp_of_nonpositive(gamma * math::log(d));
    return {modulated * c, modulated * multiply_add(gamma * p, divide(c, d), T(1))};
  }
}

// The same where gamma is known when the program runs only, as for one position among many classes.
template <typename T>
SOD_OPS_HD SoftmaxFocal<T> softmax_focal(Focus focus, T c, T p, T q, T weight, T gamma) {
  switch (focus) {
    case Focus::zero: return softmax_focal<Focus::zero>(c, p, q, weight, gamma);
    case Focus::one: return softmax_focal<Focus::one>(c, p, q, weight, gamma);
    case Focus::two: return softmax_focal<Focus::two>(c, p, q, weight, gamma);
    default: return softmax_focal<Focus::power>(c, p, q, weight, gamma);
  }
}

}  // namespace sod_ops::math

// Logarithms of probabilities in SIMD vectors, for math/cross_entropy.h.
#pragma once

#include <cmath>
#include <limits>

#include "vector.h"

namespace sod_ops::math {
inline namespace CPU_CAPABILITY {

#if defined(CPU_CAPABILITY_AVX2) || defined(CPU_CAPABILITY_AVX512)
// log(p) for p = 1 - rest within 0 and 1, inlined: at::vec's logarithms are function calls, around which every register
// must be spilled. As k log(2) + log(1 + f) with sqrt(1/2) <= 1 + f < sqrt(2), where p is near 1 with f = -rest, which
// may be known better than p. The polynomial is a minimax fit of (log(1 + f) - f + f^2 / 2) / f^3, off by 3.3e-9
// relative to log(1 + f).
inline Vector<float> log_of_part(const Vector<float>& p, const Vector<float>& rest) {
  using V = Vector<float>;
  using I = at::vec::Vectorized<int32_t>;
  const int32_t root = 0x3f3504f3;  // sqrt(1/2)
  // Subnormal numbers have no exponent of their own.
  const I bits = at::vec::cast<int32_t>(p * V(0x1p64f)), exponent = (bits - I(root)) >> I(23);
  const V mantissa = at::vec::cast<float>(bits - (exponent << I(23)));
  const V k = at::vec::convert_to_fp_of_same_size<float>(exponent) - V(64.0f);
  const V f = where(greater(p, V(0.70710678f)), -rest, mantissa - V(1.0f));
  V q(0.0674653277f);
  q = at::vec::fmadd(q, f, V(-0.116756238f));
  q = at::vec::fmadd(q, f, V(0.118881963f));
  q = at::vec::fmadd(q, f, V(-0.124055959f));
  q = at::vec::fmadd(q, f, V(0.142195478f));
  q = at::vec::fmadd(q, f, V(-0.166679949f));
  q = at::vec::fmadd(q, f, V(0.200021192f));
  q = at::vec::fmadd(q, f, V(-0.250000089f));
  q = at::vec::fmadd(q, f, V(0.333333135f));
  const V square = f * f;
  // k log(2) in two parts, the first of them exact.
  const V tail = at::vec::fmadd(k, V(-2.12194440e-4f), at::vec::fmadd(q * f, square, square * V(-0.5f)));
  const V found = at::vec::fmadd(k, V(0.693359375f), tail + f);
  const V infinity(std::numeric_limits<float>::infinity());
  return where(greater(p, V(0.0f)), found, where(equal(p, V(0.0f)), -infinity, V(NAN)));
}
#endif

template <typename T>
Vector<T> log_of_probability(const Vector<T>& p) {
#if defined(CPU_CAPABILITY_AVX2) || defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<T, float>) return log_of_part(p, Vector<T>(1) - p);
#endif
  return p.log();
}
template <typename T>
Vector<T> log_of_complement(const Vector<T>& p) {
#if defined(CPU_CAPABILITY_AVX2) || defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<T, float>) return log_of_part(Vector<T>(1) - p, p);
#endif
  return (-p).log1p();
}

}  // namespace CPU_CAPABILITY
}  // namespace sod_ops::math

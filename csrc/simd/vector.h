// SIMD vectors for the kernels in csrc/simd: at::vec behind the names of math/scalar.h, and loads and stores that widen
// bfloat16 and float16 to float. Everything lives in the inline namespace that at::vec names after the instruction set,
// so that objects compiled for different sets share no symbol.
#pragma once

#include <ATen/cpu/vec/vec.h>
// After vec.h, on which it relies without including it.
#include <ATen/cpu/vec/functional.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <type_traits>

#include "../math/scalar.h"

namespace sod_ops::math {
inline namespace CPU_CAPABILITY {

template <typename T>
using Vector = at::vec::Vectorized<T>;

// A comparison of vectors is a mask, all bits of a lane set or none.
template <typename T>
Vector<T> where(const Vector<T>& condition, const Vector<T>& a, const Vector<T>& b) {
  return Vector<T>::blendv(b, a, condition);
}

#if defined(CPU_CAPABILITY_AVX512)

// AVX512 compares into a register of bits. at::vec makes a vector of it and where() bits again: two instructions each
// time.
template <typename T>
struct Mask {
  std::conditional_t<sizeof(T) == 4, __mmask16, __mmask8> bits;

  friend Mask operator&(Mask a, Mask b) { return {static_cast<decltype(bits)>(a.bits & b.bits)}; }
  friend Mask operator|(Mask a, Mask b) { return {static_cast<decltype(bits)>(a.bits | b.bits)}; }
  friend Mask operator^(Mask a, Mask b) { return {static_cast<decltype(bits)>(a.bits ^ b.bits)}; }
};

inline Mask<float> greater(const Vector<float>& a, const Vector<float>& b) {
  return {_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ)};
}
inline Mask<double> greater(const Vector<double>& a, const Vector<double>& b) {
  return {_mm512_cmp_pd_mask(a, b, _CMP_GT_OQ)};
}
inline Mask<float> equal(const Vector<float>& a, const Vector<float>& b) {
  return {_mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ)};
}
inline Mask<double> equal(const Vector<double>& a, const Vector<double>& b) {
  return {_mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ)};
}
inline Mask<float> at_most(const Vector<float>& a, const Vector<float>& b) {
  return {_mm512_cmp_ps_mask(a, b, _CMP_LE_OQ)};
}
inline Mask<double> at_most(const Vector<double>& a, const Vector<double>& b) {
  return {_mm512_cmp_pd_mask(a, b, _CMP_LE_OQ)};
}
inline Mask<float> is_nan(const Vector<float>& a) { return {_mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q)}; }
inline Mask<double> is_nan(const Vector<double>& a) { return {_mm512_cmp_pd_mask(a, a, _CMP_UNORD_Q)}; }
inline Mask<float> equal(const Vector<int32_t>& a, const Vector<int32_t>& b) { return {_mm512_cmpeq_epi32_mask(a, b)}; }
inline Mask<double> equal(const Vector<int64_t>& a, const Vector<int64_t>& b) {
  return {_mm512_cmpeq_epi64_mask(a, b)};
}
inline Vector<int32_t> where(Mask<float> condition, const Vector<int32_t>& a, const Vector<int32_t>& b) {
  return _mm512_mask_blend_epi32(condition.bits, b, a);
}
inline Vector<int64_t> where(Mask<double> condition, const Vector<int64_t>& a, const Vector<int64_t>& b) {
  return _mm512_mask_blend_epi64(condition.bits, b, a);
}
inline Vector<float> where(Mask<float> condition, const Vector<float>& a, const Vector<float>& b) {
  return _mm512_mask_blend_ps(condition.bits, b, a);
}
inline Vector<double> where(Mask<double> condition, const Vector<double>& a, const Vector<double>& b) {
  return _mm512_mask_blend_pd(condition.bits, b, a);
}

#else

template <typename T>
Vector<T> greater(const Vector<T>& a, const Vector<T>& b) {
  return a > b;
}
template <typename T>
Vector<T> equal(const Vector<T>& a, const Vector<T>& b) {
  return a == b;
}
template <typename T>
Vector<T> at_most(const Vector<T>& a, const Vector<T>& b) {
  return a <= b;
}
template <typename T>
Vector<T> is_nan(const Vector<T>& a) {
  return a != a;
}
// The answer as a condition on numbers of the integers' size.
inline Vector<float> equal(const Vector<int32_t>& a, const Vector<int32_t>& b) { return at::vec::cast<float>(a == b); }
inline Vector<double> equal(const Vector<int64_t>& a, const Vector<int64_t>& b) {
  return at::vec::cast<double>(a == b);
}
inline Vector<int32_t> where(const Vector<float>& condition, const Vector<int32_t>& a, const Vector<int32_t>& b) {
  return Vector<int32_t>::blendv(b, a, at::vec::cast<int32_t>(condition));
}
inline Vector<int64_t> where(const Vector<double>& condition, const Vector<int64_t>& a, const Vector<int64_t>& b) {
  return Vector<int64_t>::blendv(b, a, at::vec::cast<int64_t>(condition));
}

#endif

template <typename T>
Vector<T> exp(const Vector<T>& x) {
  return x.exp();
}
template <typename T>
Vector<T> log(const Vector<T>& x) {
  return x.log();
}
template <typename T>
Vector<T> log1p(const Vector<T>& x) {
  return x.log1p();
}
template <typename T>
Vector<T> tanh(const Vector<T>& x) {
  return x.tanh();
}
template <typename T>
Vector<T> erf(const Vector<T>& x) {
  return x.erf();
}
template <typename T>
Vector<T> abs(const Vector<T>& x) {
  return x.abs();
}

template <typename T>
Vector<T> product(const Vector<T>& a, const Vector<T>& b) {
  return a * b;
}
template <typename T>
Vector<T> multiply_add(const Vector<T>& a, const Vector<T>& b, const Vector<T>& c) {
  return at::vec::fmadd(a, b, c);
}
template <typename T>
Vector<T> max(const Vector<T>& a, const Vector<T>& b) {
  return at::vec::clamp_min(b, a);
}
template <typename T>
Vector<T> min(const Vector<T>& a, const Vector<T>& b) {
  return at::vec::clamp_max(b, a);
}

template <typename T>
Vector<T> reciprocal(const Vector<T>& b) {
#if defined(CPU_CAPABILITY_AVX512)
  // A division keeps the divider busy for 16 cycles; an estimate of 14 bits and a Newton step take two or three.
  if constexpr (std::is_same_v<T, float>) {
    const Vector<float> estimate = _mm512_rcp14_ps(b);
    return at::vec::fmadd(at::vec::fnmadd(b, estimate, Vector<float>(1.0f)), estimate, estimate);
  }
#endif
  return Vector<T>(1) / b;
}
template <typename T>
Vector<T> divide(const Vector<T>& a, const Vector<T>& b) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<T, float>) return a * reciprocal(b);
#endif
  return a / b;
}

// at::vec's exponential is a function call, around which every register must be spilled; this one is inlined. As 2^n
// e^f with |f| <= log(2) / 2; the polynomial is a minimax fit of (e^f - 1 - f) / f^2, off by 3.1e-9 relative to e^f.
template <typename T>
Vector<T> exp_of_nonpositive(const Vector<T>& x) {
#if defined(CPU_CAPABILITY_AVX2) || defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<T, float>) {
    using V = Vector<float>;
    // Below, the result is 0 even among subnormal numbers. NaN stays.
    const V bounded = at::vec::clamp_min(x, V(-150.0f));
    const V to_integer(12582912.0f);  // 1.5 * 2^23: added, it leaves no bit for a fraction
    const V n = at::vec::fmadd(bounded, V(1.44269504088896341f), to_integer) - to_integer;
    const V f = at::vec::fmadd(n, V(1.904654299957768e-9f), at::vec::fmadd(n, V(-0.69314718246459961f), bounded));
    V p(0.00138145036497f);
    p = at::vec::fmadd(p, f, V(0.00836876274464f));
    p = at::vec::fmadd(p, f, V(0.0416683924953f));
    p = at::vec::fmadd(p, f, V(0.166665202536f));
    p = at::vec::fmadd(p, f, V(0.499999934223f));
    p = at::vec::fmadd(p, f * f, f) + V(1.0f);
#if defined(CPU_CAPABILITY_AVX512)
    return _mm512_scalef_ps(p, n);
#else
    // Half the exponent at a time, as 2^-150 has no representation.
    using I = at::vec::Vectorized<int32_t>;
    const I whole = at::vec::convert_to_int_of_same_size(n), half = whole >> I(1);
    const auto power = [](const I& exponent) { return at::vec::cast<float>((exponent + I(127)) << I(23)); };
    return p * power(half) * power(whole - half);
#endif
  }
#endif
  return x.exp();
}

}  // namespace CPU_CAPABILITY

template <typename T>
struct Scalar<Vector<T>> {
  using type = T;
};

}  // namespace sod_ops::math

namespace sod_ops::simd {
inline namespace CPU_CAPABILITY {

using at::vec::Vectorized;

// What sums, products and transcendental functions of T are taken in.
template <typename T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Stores a register past the caches, without first reading the cache line that it overwrites. p is aligned to a
// register. Call stream_fence() after the last.
template <typename T>
inline void stream(const Vectorized<T>& raw, T* p) {
#if defined(CPU_CAPABILITY_AVX512)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), _mm512_loadu_si512(&raw));
#elif defined(CPU_CAPABILITY_AVX2)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(&raw)));
#else
  raw.store(p);
#endif
}

// As many elements of T as one vector register holds, widened to one or two vectors of the accumulation type.
template <typename T>
struct Lanes {
  using Acc = Accumulator<T>;
  static constexpr bool kWiden = !std::is_same_v<T, Acc>;
  static constexpr int kVectors = kWiden ? 2 : 1;
  static constexpr int64_t kSize = Vectorized<T>::size();

  Vectorized<Acc> v[kVectors];

  static Lanes fill(Acc value) {
    Lanes lanes;
    for (auto& vector : lanes.v) vector = Vectorized<Acc>(value);
    return lanes;
  }

  // `count` elements from p; lanes beyond it are 0.
  static Lanes load(const T* p, int64_t count = kSize) {
    Lanes lanes;
    const auto raw = count == kSize ? Vectorized<T>::loadu(p) : Vectorized<T>::loadu(p, count);
    if constexpr (kWiden) {
      std::tie(lanes.v[0], lanes.v[1]) = at::vec::convert_to_float<T>(raw);
    } else {
      lanes.v[0] = raw;
    }
    return lanes;
  }

  // `count` elements of the accumulation type from p, for the lanes of T.
  static Lanes load_accumulators(const Acc* p, int64_t count = kSize) {
    constexpr int64_t width = Vectorized<Acc>::size();
    Lanes lanes;
    for (int i = 0; i < kVectors; ++i) {
      const int64_t rest = std::clamp<int64_t>(count - i * width, 0, width);
      lanes.v[i] = rest == width ? Vectorized<Acc>::loadu(p + i * width) : Vectorized<Acc>::loadu(p + i * width, rest);
    }
    return lanes;
  }

  Vectorized<T> narrowed() const {
    if constexpr (kWiden) {
      return at::vec::convert_from_float<T>(v[0], v[1]);
    } else {
      return v[0];
    }
  }

  void store(T* p, int64_t count = kSize) const { count == kSize ? narrowed().store(p) : narrowed().store(p, count); }

  // Stores all lanes past the caches; see stream().
  void stream(T* p) const { simd::stream(narrowed(), p); }

  void store_accumulators(Acc* p, int64_t count = kSize) const {
    constexpr int64_t width = Vectorized<Acc>::size();
    for (int i = 0; i < kVectors; ++i) {
      const int64_t rest = std::clamp<int64_t>(count - i * width, 0, width);
      rest == width ? v[i].store(p + i * width) : v[i].store(p + i * width, rest);
    }
  }

  // The sum of all lanes.
  Acc sum() const {
    auto total = v[0];
    if constexpr (kWiden) total = total + v[1];
    return at::vec::vec_reduce_all<Acc>([](Vectorized<Acc> a, Vectorized<Acc> b) { return a + b; }, total);
  }

  friend Lanes operator+(const Lanes& a, const Lanes& b) {
    Lanes lanes;
    for (int i = 0; i < kVectors; ++i) lanes.v[i] = a.v[i] + b.v[i];
    return lanes;
  }
  friend Lanes operator*(const Lanes& a, const Lanes& b) {
    Lanes lanes;
    for (int i = 0; i < kVectors; ++i) lanes.v[i] = a.v[i] * b.v[i];
    return lanes;
  }
  friend Lanes operator/(const Lanes& a, const Lanes& b) {
    Lanes lanes;
    for (int i = 0; i < kVectors; ++i) lanes.v[i] = a.v[i] / b.v[i];
    return lanes;
  }
  // a * b + c
  friend Lanes fmadd(const Lanes& a, const Lanes& b, const Lanes& c) {
    Lanes lanes;
    for (int i = 0; i < kVectors; ++i) lanes.v[i] = at::vec::fmadd(a.v[i], b.v[i], c.v[i]);
    return lanes;
  }
};

// Calls body(offset, count) for every register-wide piece of [0, length): whole ones with count a compile-time
// constant.
template <typename T, typename Body>
inline void for_each_piece(int64_t length, const Body& body) {
  constexpr int64_t size = Lanes<T>::kSize;
  int64_t i = 0;
  for (; i + size <= length; i += size) body(i, std::integral_constant<int64_t, size>{});
  if (i < length) body(i, length - i);
}

// Makes everything streamed visible before what this thread writes next.
inline void stream_fence() {
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
  _mm_sfence();
#endif
}

constexpr uintptr_t kRegister = Vectorized<float>::size() * sizeof(float);

// Runs of memory from this length on are worth starting with a short piece that aligns the rest: an access that
// straddles two cache lines costs two.
template <typename T>
constexpr int64_t kLongRun = 6 * Lanes<T>::kSize;

// How many of the n elements at p to take before the first whole register: up to the next aligned address in a long
// run.
template <typename T>
inline int64_t aligned_start(const T* p, int64_t n) {
  if (n < kLongRun<T>) return 0;
  return static_cast<int64_t>((kRegister - reinterpret_cast<uintptr_t>(p) % kRegister) % kRegister / sizeof(T));
}

}  // namespace CPU_CAPABILITY
}  // namespace sod_ops::simd

// Functions of one number that the formulas in csrc/math are written with, for float and double, on the host and in
// CUDA kernels. simd/vector.h gives the same names for SIMD vectors, so that a formula, a template on its type, is
// written once.
#pragma once

#include <cmath>

#if defined(__CUDACC__)
#define SOD_OPS_HD __host__ __device__ __forceinline__
#else
#define SOD_OPS_HD inline __attribute__((always_inline))
#endif

namespace sod_ops::math {

SOD_OPS_HD float exp(float x) { return ::expf(x); }
SOD_OPS_HD double exp(double x) { return ::exp(x); }
// e^x where x is at most 0, but for rounding: simd/vector.h has a shorter way there.
template <typename T>
SOD_OPS_HD T exp_of_nonpositive(T x) {
  return math::exp(x);
}
SOD_OPS_HD float log(float x) { return ::logf(x); }
SOD_OPS_HD double log(double x) { return ::log(x); }
SOD_OPS_HD float log1p(float x) { return ::log1pf(x); }
SOD_OPS_HD double log1p(double x) { return ::log1p(x); }
SOD_OPS_HD float tanh(float x) { return ::tanhf(x); }
SOD_OPS_HD double tanh(double x) { return ::tanh(x); }
SOD_OPS_HD float erf(float x) { return ::erff(x); }
SOD_OPS_HD double erf(double x) { return ::erf(x); }
SOD_OPS_HD float abs(float x) { return ::fabsf(x); }
SOD_OPS_HD double abs(double x) { return ::fabs(x); }

// 1 / b and a / b for b within 2^-126 and 2^126; of floats, a unit or two in the last place off where that saves time:
// on a GPU the exact quotient takes ten instructions and a branch.
SOD_OPS_HD float reciprocal(float b) {
#if defined(__CUDA_ARCH__)
  return __fdividef(1.0f, b);
#else
  return 1.0f / b;
#endif
}
SOD_OPS_HD double reciprocal(double b) { return 1.0 / b; }
SOD_OPS_HD float divide(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fdividef(a, b);
#else
  return a / b;
#endif
}
SOD_OPS_HD double divide(double a, double b) { return a / b; }

// a * b, rounded before anything is added to it: areas of equal boxes then cancel exactly. Host code is compiled
// without contraction of its own; CUDA's would fuse the product with a following addition.
SOD_OPS_HD float product(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
SOD_OPS_HD double product(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

// a * b + c, fused where that is one instruction.
template <typename T>
SOD_OPS_HD T multiply_add(T a, T b, T c) {
  return a * b + c;
}

// Comparisons that a vector answers in the form that its where() takes at no further cost.
template <typename T>
SOD_OPS_HD bool greater(T a, T b) {
  return a > b;
}

// The larger and the smaller; b where one is NaN.
template <typename T>
SOD_OPS_HD T max(T a, T b) {
  return a > b ? a : b;
}
template <typename T>
SOD_OPS_HD T min(T a, T b) {
  return a < b ? a : b;
}

// The type of a vector's elements; a number's own.
template <typename T>
struct Scalar {
  using type = T;
};

// where(condition, a, b): a where the condition holds, b elsewhere. A comparison with NaN doesn't hold.
template <typename T>
SOD_OPS_HD T where(bool condition, T a, T b) {
  return condition ? a : b;
}

}  // namespace sod_ops::math

// The activations and gates of squeeze-and-excitation and their derivatives, for T = float, double or a SIMD vector of
// them. The numbering is that of the tables in sod_ops/reference/squeeze_excite.py. At a kink the derivative is
// PyTorch's.
#pragma once

#include "scalar.h"

namespace sod_ops::math {

enum class Activation { identity, relu, relu6, leaky_relu, silu, gelu, gelu_tanh, hardswish, mish };
enum class Gate { sigmoid, hardsigmoid, hardsigmoid_paddle };

constexpr int kActivations = 9;
constexpr int kGates = 3;
constexpr double kLeakySlope = 0.01;

// 1 / (1 + e^-z). Where e^-z overflows the quotient is 0.
template <typename T>
SOD_OPS_HD T sigmoid(T z) {
  return T(1) / (T(1) + math::exp(-z));
}

// min(max(z, low), high); NaN stays NaN.
template <typename T>
SOD_OPS_HD T clamp(T z, T low, T high) {
  return where(z < low, low, where(z > high, high, z));
}

// log(1 + e^z) without overflow.
template <typename T>
SOD_OPS_HD T softplus(T z) {
  return where(z > T(0), z, T(0)) + math::log1p(math::exp(-math::abs(z)));
}

template <typename T>
SOD_OPS_HD T activation(Activation kind, T z) {
  switch (kind) {
    case Activation::relu: return where(z < T(0), T(0), z);
    case Activation::relu6: return clamp(z, T(0), T(6));
    case Activation::leaky_relu: return where(z > T(0), z, T(kLeakySlope) * z);
    case Activation::silu: return z * sigmoid(z);
    case Activation::gelu: return T(0.5) * z * (T(1) + math::erf(z * T(0.70710678118654752440)));
    case Activation::gelu_tanh:
      return T(0.5) * z * (T(1) + math::tanh(T(0.79788456080286535588) * (z + T(0.044715) * z * z * z)));
    case Activation::hardswish: return z * clamp(z + T(3), T(0), T(6)) * T(1.0 / 6.0);
    case Activation::mish: return z * math::tanh(softplus(z));
    default: return z;
  }
}

template <typename T>
SOD_OPS_HD T activation_derivative(Activation kind, T z) {
  switch (kind) {
    case Activation::relu: return where(z <= T(0), T(0), T(1));
    case Activation::relu6: return where(z <= T(0), T(0), where(z >= T(6), T(0), T(1)));
    case Activation::leaky_relu: return where(z > T(0), T(1), T(kLeakySlope));
    case Activation::silu: {
      const T s = sigmoid(z);
      return s * (T(1) + z * (T(1) - s));
    }
    case Activation::gelu: {
      const T cdf = T(0.5) * (T(1) + math::erf(z * T(0.70710678118654752440)));
      return cdf + z * T(0.39894228040143267794) * math::exp(T(-0.5) * z * z);
    }
    case Activation::gelu_tanh: {
      const T beta = T(0.79788456080286535588), kappa = T(0.044715);
      const T t = math::tanh(beta * (z + kappa * z * z * z));
      return T(0.5) * (T(1) + t) + T(0.5) * z * (T(1) - t * t) * beta * (T(1) + T(3) * kappa * z * z);
    }
    case Activation::hardswish: return where(z <= T(-3), T(0), where(z >= T(3), T(1), z * T(1.0 / 3.0) + T(0.5)));
    case Activation::mish: {
      const T t = math::tanh(softplus(z));
      return t + z * sigmoid(z) * (T(1) - t * t);
    }
    default: return T(1);
  }
}

template <typename T>
SOD_OPS_HD T gate(Gate kind, T z) {
  switch (kind) {
    case Gate::hardsigmoid: return clamp(z + T(3), T(0), T(6)) * T(1.0 / 6.0);
    case Gate::hardsigmoid_paddle: return clamp(T(0.2) * z + T(0.5), T(0), T(1));
    default: return sigmoid(z);
  }
}

template <typename T>
SOD_OPS_HD T gate_derivative(Gate kind, T z) {
  switch (kind) {
    case Gate::hardsigmoid: return where(z <= T(-3), T(0), where(z >= T(3), T(0), T(1.0 / 6.0)));
    case Gate::hardsigmoid_paddle: {
      const T value = T(0.2) * z + T(0.5);
      return where(value < T(0), T(0), where(value > T(1), T(0), T(0.2)));
    }
    default: {
      const T s = sigmoid(z);
      return s * (T(1) - s);
    }
  }
}

}  // namespace sod_ops::math

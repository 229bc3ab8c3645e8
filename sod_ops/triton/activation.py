"""Activations and gates on tiles of float32 or float64, and their derivatives.

Numbered as the tables ACTIVATIONS and GATES of sod_ops/reference/squeeze_excite.py. NaN comes through, and at kinks the
derivatives are those that PyTorch's autograd takes. Clamps are written with tl.where: tl.maximum drops NaN unless told.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: N803 (compile-time constants in capitals, as everywhere in Triton)

import triton
import triton.language as tl

IDENTITY = tl.constexpr(0)
RELU = tl.constexpr(1)
RELU6 = tl.constexpr(2)
LEAKY_RELU = tl.constexpr(3)
SILU = tl.constexpr(4)
GELU = tl.constexpr(5)
GELU_TANH = tl.constexpr(6)
HARDSWISH = tl.constexpr(7)
MISH = tl.constexpr(8)

SIGMOID = tl.constexpr(0)
HARDSIGMOID = tl.constexpr(1)
HARDSIGMOID_PADDLE = tl.constexpr(2)


@triton.jit
def activation(z, KIND: tl.constexpr):
    """The activation numbered ``KIND``, elementwise; every one of them maps 0 to 0."""
    if KIND == IDENTITY:
        value = z
    elif KIND == RELU:
        value = tl.where(z < 0.0, 0.0, z)
    elif KIND == RELU6:
        value = _clamp(z, 0.0, 6.0)
    elif KIND == LEAKY_RELU:
        value = tl.where(z > 0.0, z, 0.01 * z)
    elif KIND == SILU:
        value = z * _sigmoid(z)
    elif KIND == GELU:
        value = z * _normal_distribution(z)
    elif KIND == GELU_TANH:
        value = z * _sigmoid(_gelu_tanh_argument(z))
    elif KIND == HARDSWISH:
        value = z * _clamp(z + 3.0, 0.0, 6.0) / 6.0
    else:
        tl.static_assert(KIND == MISH, "no activation has this number")
        value = z * _tanh_softplus(z)[0]
    return value


@triton.jit
def activation_derivative(z, KIND: tl.constexpr):
    """d activation(z) / dz."""
    zero = tl.zeros_like(z)
    if KIND == IDENTITY:
        value = zero + 1.0
    elif KIND == RELU:
        value = tl.where(z <= 0.0, zero, 1.0)
    elif KIND == RELU6:
        value = tl.where((z <= 0.0) | (z >= 6.0), zero, 1.0)
    elif KIND == LEAKY_RELU:
        value = tl.where(z > 0.0, 1.0, zero + 0.01)
    elif KIND == SILU:
        s, complement = _sigmoid_and_complement(z)
        value = s * (1.0 + z * complement)
    elif KIND == GELU:
        density = tl.exp(-0.5 * z * z) * 0.3989422804014327  # 1 / sqrt(2 pi)
        value = _normal_distribution(z) + z * density
    elif KIND == GELU_TANH:
        s, complement = _sigmoid_and_complement(_gelu_tanh_argument(z))
        slope = 1.5957691216057308 * (1.0 + 3.0 * 0.044715 * z * z)
        value = s + z * s * complement * slope
    elif KIND == HARDSWISH:
        value = tl.where(z <= -3.0, zero, tl.where(z < 3.0, z / 3.0 + 0.5, 1.0))
    else:
        tl.static_assert(KIND == MISH, "no activation has this number")
        t, complement = _tanh_softplus(z)
        value = t + z * _sigmoid(z) * complement * (1.0 + t)
    return value


@triton.jit
def activation_gradient(gradient, z, KIND: tl.constexpr):
    """``gradient`` of activation(z), carried over to z.

    Where PyTorch masks instead of multiplying, an infinite gradient vanishes on the flat part; a product would be NaN.
    """
    value = gradient
    if KIND != IDENTITY:
        derivative = activation_derivative(z, KIND)
        value = gradient * derivative
        if KIND == RELU or KIND == RELU6 or KIND == HARDSWISH:  # noqa: SIM109 (Triton has no `in`)
            value = tl.where(derivative == 0.0, derivative, value)
    return value


@triton.jit
def gate(z, KIND: tl.constexpr):
    """The gate numbered ``KIND``, elementwise."""
    if KIND == SIGMOID:
        value = _sigmoid(z)
    elif KIND == HARDSIGMOID:
        value = _clamp(z + 3.0, 0.0, 6.0) / 6.0
    else:
        tl.static_assert(KIND == HARDSIGMOID_PADDLE, "no gate has this number")
        value = _clamp(0.2 * z + 0.5, 0.0, 1.0)
    return value


@triton.jit
def gate_derivative(z, KIND: tl.constexpr):
    """d gate(z) / dz."""
    zero = tl.zeros_like(z)
    if KIND == SIGMOID:
        s, complement = _sigmoid_and_complement(z)
        value = s * complement
    elif KIND == HARDSIGMOID:
        value = tl.where((z > -3.0) & (z < 3.0), zero + 1.0 / 6.0, 0.0)
    else:
        tl.static_assert(KIND == HARDSIGMOID_PADDLE, "no gate has this number")
        # 0.2 z + 0.5 >= 0, asked without the sum: a fused multiply-add would make it negative at z = -2.5.
        value = tl.where((0.2 * z >= -0.5) & (0.2 * z + 0.5 <= 1.0), zero + 0.2, 0.0)
    return value


@triton.jit
def gate_gradient(gradient, z, KIND: tl.constexpr):
    """``gradient`` of gate(z), carried over to z; masked as in :func:`activation_gradient`."""
    derivative = gate_derivative(z, KIND)
    value = gradient * derivative
    if KIND != SIGMOID:
        value = tl.where(derivative == 0.0, derivative, value)
    return value


@triton.jit
def _clamp(z, LOW: tl.constexpr, HIGH: tl.constexpr):
    return tl.where(z < LOW, LOW, tl.where(z > HIGH, HIGH, z))


@triton.jit
def _sigmoid(z):
    return _sigmoid_and_complement(z)[0]


@triton.jit
def _sigmoid_and_complement(z):
    """s = 1 / (1 + exp(-z)) and 1 - s, the latter without cancellation; the exponential cannot overflow."""
    e = tl.exp(-tl.abs(z))
    return tl.where(z < 0.0, e, 1.0) / (1.0 + e), tl.where(z < 0.0, 1.0, e) / (1.0 + e)


@triton.jit
def _normal_distribution(z):
    return 0.5 * (1.0 + tl.erf(z * 0.7071067811865476))


@triton.jit
def _gelu_tanh_argument(z):
    """2 u, where gelu_tanh(z) = z (1 + tanh u) / 2 = z sigmoid(2 u) and u = sqrt(2/pi) (z + 0.044715 z^3)."""
    return 1.5957691216057308 * (z + 0.044715 * z * z * z)


@triton.jit
def _tanh_softplus(z):
    """t = tanh(log(1 + exp(z))) and 1 - t, neither with cancellation.

    With e = exp(-|z|), t = n / (n + d), where n = e (e + 2) and d = 2 for z < 0, n = 1 + 2 e and d = 2 e^2 otherwise.
    """
    e = tl.exp(-tl.abs(z))
    n = tl.where(z < 0.0, e * (e + 2.0), 1.0 + 2.0 * e)
    d = tl.where(z < 0.0, 2.0, 2.0 * e * e)
    return n / (n + d), d / (n + d)

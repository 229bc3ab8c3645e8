"""Focal loss and its derivative for one element: csrc/math/focal_loss.h, which has the derivations, in Triton."""
# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: N803 (compile-time constants in capitals, as everywhere in Triton)

import triton
import triton.language as tl

# How (1 - p_t)^gamma is taken: for gamma 0, 1 and 2 by multiplication.
ZERO = tl.constexpr(0)
ONE = tl.constexpr(1)
TWO = tl.constexpr(2)
POWER = tl.constexpr(3)


def focus_of(gamma: float) -> int:
    """The number of the form above that serves ``gamma``."""
    return {0.0: ZERO.value, 1.0: ONE.value, 2.0: TWO.value}.get(gamma, POWER.value)


@triton.jit
def double(number):
    """A float64 argument of a kernel as a tensor. In the interpreter it is Python's float, whose cast would take float32."""
    return number + tl.full((), 0.0, tl.float64)


@triton.jit
def log1p_of_unit(e):
    """log(1 + e) for 0 <= e <= 1: in float32 a polynomial in e, in float64 2 atanh(t) with t = e / (2 + e)."""
    if e.dtype == tl.float64:
        t = e / (2.0 + e)
        s = t * t
        p = 0.085092900320486133349 * s + 0.04170049386160209928
        p = p * s + 0.06053043460530705816
        p = p * s + 0.066504867482841855248
        p = p * s + 0.076932799651423114143
        p = p * s + 0.090908719622837982559
        p = p * s + 0.11111111984870994051
        p = p * s + 0.1428571427392684603
        p = p * s + 0.20000000000078622257
        p = p * s + 0.33333333333333151899
        result = (t + t) * (s * p) + (t + t)
    else:
        p = 0.0053669325026 * e - 0.030073630394
        p = p * e + 0.079216287292
        p = p * e - 0.137547109
        p = p * e + 0.19154038711
        p = p * e - 0.2485724976
        p = p * e + 0.33321331697
        p = p * e - 0.49999648284
        result = p * (e * e) + e
    return result


@triton.jit
def sigmoid_focal(x, y, positive, negative, gamma, FOCUS: tl.constexpr):
    """Loss and derivative for the logit x and the target y, with weights ``positive`` and ``negative``."""
    other = 1.0 - y
    leans_positive = x > 0.0
    a = tl.where(leans_positive, other, y)
    b = tl.where(leans_positive, y, other)
    magnitude = tl.abs(x)
    e = tl.exp(-magnitude)
    r = 1.0 / (1.0 + e)
    log_sum = log1p_of_unit(e)
    c = a * magnitude + log_sum
    be = b * e
    difference = a - be
    summed = a + be
    weight = positive * y + negative * other
    signed_weight = tl.where(leans_positive, weight, -weight)
    if FOCUS == ZERO:
        loss = weight * c
        derivative = signed_weight * (r * difference)
    elif FOCUS == POWER:
        # The smallest normal number in place of an underflowed q / r: log and the quotient stay finite, c and e are 0.
        tiny = 2.2250738585072014e-308 if x.dtype == tl.float64 else 1.1754943508222875e-38
        d = tl.where(tl.abs(summed) < tiny, tiny, summed)
        modulation = tl.exp(gamma * (tl.log(d) - log_sum))
        gain = gamma * c * (e * (a - b) / d)
        loss = weight * modulation * c
        derivative = signed_weight * modulation * r * (gain + difference)
    else:
        q = r * summed
        gain = c * e * (a - b)
        if FOCUS == ONE:
            loss = weight * q * c
            derivative = signed_weight * (r * r) * (summed * difference + gain)
        else:
            loss = weight * (q * q) * c
            derivative = signed_weight * q * (r * r) * (summed * difference + (gain + gain))
    return loss, derivative


@triton.jit
def softmax_focal(largest, logit, others, weight, gamma, FOCUS: tl.constexpr):
    """The softmax form, from the largest logit, the target's logit and the sum of the other classes' exponentials.

    Returns the loss, the gain (the derivative by logit k is gain times p_k, less the gain at the target's class), the
    probability of the other classes together, and 1 / the sum of all exponentials.
    """
    behind = largest - logit
    exponential = tl.exp(-behind)
    total = others + exponential
    scale = 1.0 / total
    p = exponential * scale
    q = others * scale
    # The sum is 1 and this: `others` without rounding where the target's logit is the largest.
    above = tl.where(behind > 0.0, total - 1.0, others)
    c = behind + log1p(above)
    if FOCUS == ZERO:
        loss = weight * c
        gain = weight
    elif FOCUS == ONE:
        loss = weight * q * c
        gain = weight * (p * c + q)
    elif FOCUS == TWO:
        wq = weight * q
        loss = wq * q * c
        gain = wq * (q + 2.0 * (p * c))
    else:
        tiny = 2.2250738585072014e-308 if largest.dtype == tl.float64 else 1.1754943508222875e-38
        d = tl.where(q < tiny, tiny, q)
        modulated = weight * tl.exp(gamma * tl.log(d))
        loss = modulated * c
        gain = modulated * (gamma * p * (c / d) + 1.0)
    return loss, gain, q, scale


@triton.jit
def log1p(a):
    """log(1 + a) for a >= 0: log has the digits from a = 1 on."""
    return tl.where(a > 1.0, tl.log(1.0 + a), log1p_of_unit(tl.minimum(a, 1.0)))

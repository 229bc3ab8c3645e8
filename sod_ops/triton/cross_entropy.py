"""The cross entropy of a probability and its target: csrc/math/cross_entropy.h in Triton."""
# mypy: allow-untyped-defs, allow-incomplete-defs

import triton
import triton.language as tl


@triton.jit
def log_of_rest(p):
    """log(1 - p), exact for a small p too: the logarithm of what 1 - p is rounded to, and a correction for the rest."""
    rest = 1.0 - p
    lost = (1.0 - rest) - p
    return tl.where(rest > 0.0, tl.log(rest) + lost / tl.where(rest > 0.0, rest, 1.0), tl.log(rest))


@triton.jit
def cross_entropy_of(p, y):
    """-y log p - (1 - y) log(1 - p); logarithms end at -100."""
    positive = tl.maximum(tl.log(p), -100.0, propagate_nan=tl.PropagateNan.ALL)
    negative = tl.maximum(log_of_rest(p), -100.0, propagate_nan=tl.PropagateNan.ALL)
    return -(y * positive + (1.0 - y) * negative)


@triton.jit
def cross_entropy_derivative(p, y):
    """By p."""
    least = tl.full((), 9.999999960041972e-13, p.dtype)  # 1e-12 as a float, which PyTorch has in float64 too
    return (p - y) / tl.maximum((1.0 - p) * p, least)

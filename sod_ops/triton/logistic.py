"""The logistic function and the cross entropy of a target: csrc/math/logistic.h in Triton."""
# mypy: allow-untyped-defs, allow-incomplete-defs

import triton
import triton.language as tl

from sod_ops.triton.focal_loss import log1p_of_unit


@triton.jit
def logistic(x, y):
    """For the logit x and the target y: p, p (1 - p), p - y and the cross entropy."""
    other = 1.0 - y
    leans_positive = x > 0.0
    a = tl.where(leans_positive, other, y)
    b = tl.where(leans_positive, y, other)
    magnitude = tl.abs(x)
    e = tl.exp(-magnitude)
    r = 1.0 / (1.0 + e)
    er = e * r
    error = r * (a - b * e)
    probability = tl.where(leans_positive, r, er)
    return probability, er * r, tl.where(leans_positive, error, -error), a * magnitude + log1p_of_unit(e)

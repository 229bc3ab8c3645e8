"""Division as IEEE 754 rounds it."""
# mypy: allow-untyped-defs, allow-incomplete-defs

import triton
import triton.language as tl


@triton.jit
def divide(a, b):
    """a / b to the last bit; Triton's own operator is off by up to two units in float32, and 0 for b above 2^126."""
    if a.dtype == tl.float64:
        quotient = a / b
    else:
        quotient = tl.div_rn(a, b)
    return quotient

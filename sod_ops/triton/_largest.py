"""The largest of many numbers and the first place of it; a NaN is larger than any number, as in torch.max."""
# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: N803 (compile-time constants in capitals, as everywhere in Triton)

import triton
import triton.language as tl

_NOWHERE = tl.constexpr(2147483647)


@triton.jit
def take_larger(largest, place, value, where):
    """Element by element: ``value``, which stands at ``where``, if it is larger, otherwise what there was."""
    taken = ((value > largest) | (value != value)) & (largest == largest)
    return tl.where(taken, value, largest), tl.where(taken, where, place)


@triton.jit
def largest_of(largest, place, AXIS: tl.constexpr):
    """Along one axis of a tile: the largest, and the smallest of the places (int32) that have it."""
    nan = largest != largest
    top = tl.max(tl.where(nan, float("-inf"), largest), AXIS)
    has_nan = tl.max(nan.to(tl.int32), AXIS) > 0
    candidate = tl.where(tl.expand_dims(has_nan, AXIS), nan, largest == tl.expand_dims(top, AXIS))
    first = tl.min(tl.where(candidate, place, _NOWHERE), AXIS)
    return tl.where(has_nan, float("nan"), top), first

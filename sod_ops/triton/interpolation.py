"""Where positions of an upsampled axis read: torch.nn.functional.interpolate's neighbours and weights, along one axis."""
# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: N803 (compile-time constants in capitals, as everywhere in Triton)

import triton
import triton.language as tl

from sod_ops.triton.division import divide


@triton.jit
def source_of(position, FROM, TO, ALIGN_CORNERS: tl.constexpr, NEAREST: tl.constexpr, dtype: tl.constexpr):
    """index0, index1 (int32) and index1's weight: value = (1 - weight) * input[index0] + weight * input[index1].

    ``position`` is an int32 tensor of positions among TO, read from FROM. Computed in ``dtype``, float32 or float64, as
    PyTorch does, so that both round to the same neighbours.
    """
    zero = (position * 0).to(dtype)
    at = position.to(dtype)
    size = FROM.to(dtype) + zero
    if ALIGN_CORNERS:
        source = divide(size - 1.0, tl.maximum((TO - 1).to(dtype), 1.0) + zero) * at
    else:
        scale = divide(size, TO.to(dtype) + zero)
        source = scale * at if NEAREST else tl.maximum(scale * (at + 0.5) - 0.5, 0.0)
    same = FROM == TO
    index0 = tl.minimum(tl.where(same, position, source.to(tl.int32)), FROM - 1)
    index1 = index0
    weight = zero
    if not NEAREST:
        index1 = tl.minimum(index0 + 1, FROM - 1)
        weight = tl.where(same, zero, tl.minimum(source - index0.to(dtype), 1.0))
    return index0, index1, weight


@triton.jit
def weight_on(index, position, FROM, TO, ALIGN_CORNERS: tl.constexpr, NEAREST: tl.constexpr, dtype: tl.constexpr):
    """The weight of ``index`` among FROM at every ``position``; 0 where a position lies outside of [0, TO)."""
    index0, index1, weight = source_of(position, FROM, TO, ALIGN_CORNERS, NEAREST, dtype)
    on = tl.where(index0 == index, 1.0 - weight, 0.0) + tl.where(index1 == index, weight, 0.0)
    return tl.where((position >= 0) & (position < TO), on, 0.0)


@triton.jit
def reads(index, position, FROM, TO, ALIGN_CORNERS: tl.constexpr, NEAREST: tl.constexpr, dtype: tl.constexpr):
    """Whether ``position`` reads ``index``, be it with weight 0: what is not finite there reaches it all the same."""
    index0, index1, _ = source_of(position, FROM, TO, ALIGN_CORNERS, NEAREST, dtype)
    return (index0 == index) | (index1 == index)


@triton.jit
def readers(index, FROM, TO):
    """A range of positions among TO that holds all that read ``index`` among FROM, in every mode."""
    # A position reads within one of its exact source, which two conventions put at most one apart; twice that, for
    # rounding.
    scale = TO.to(tl.float32) / FROM.to(tl.float32)
    corners = (TO - 1).to(tl.float32) / tl.maximum((FROM - 1).to(tl.float32), 1.0)
    low = tl.minimum(scale, corners) * (index - 1).to(tl.float32) - scale - 1.0
    high = tl.maximum(scale, corners) * (index + 1).to(tl.float32) + scale + 2.0
    last = index == FROM - 1  # which the positions beyond it read as well
    return tl.maximum(low.to(tl.int32), 0), tl.where(last | (FROM == 1), TO, tl.minimum(high.to(tl.int32) + 1, TO))

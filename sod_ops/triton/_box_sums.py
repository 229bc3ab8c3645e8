"""Sums over windows, along rows and then along columns: csrc/simd/box_filter.h has the idea, the same here.

A tile holds whole blocks of k elements, k the window's length. Where a window starts at element t of a block, it is the
block's sum from t on and the next block's sum up to t: two scans of tiles, whatever k is. Nothing is subtracted, so that
nothing drifts, and what is infinite or NaN reaches its own windows only.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: N803 (compile-time constants in capitals, as everywhere in Triton)

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sod_ops.triton._planes import ceil_div, device_guard, power_of_two

_TILE = 1024  # elements, each with an address of its own; a program holds two tiles

_NUMBERS = ("channels", "height", "width", "half", "segments", "items", "n_step", "c_step", "h_step", "w_step")


@triton.jit
def sums_of_blocks(pointer, inside, step, length, start, size, t, AXIS: tl.constexpr, DTYPE: tl.constexpr):
    """Sums of windows; ``pointer`` is that of the row's or column's first element, ``t`` the places in a block.

    The block's windows start at ``start + t``, which may lie outside of [0, size): there are zeros.
    """
    first = start + t
    mask = inside & (t < length) & (first >= 0) & (first < size)
    behind = tl.cumsum(tl.load(pointer + first * step, mask=mask, other=0).to(DTYPE), AXIS, reverse=True)
    last = first + length - 1
    mask = inside & (t > 0) & (t < length) & (last >= 0) & (last < size)
    return behind + tl.cumsum(tl.load(pointer + last * step, mask=mask, other=0).to(DTYPE), AXIS)


@triton.jit(do_not_specialize=_NUMBERS)
def box_across_kernel(
    mask,  # [N, C, H, W] at their steps
    sums,  # [N, C, H, W], dense
    channels: tl.int64,
    height: tl.int64,
    width: tl.int64,
    half: tl.int64,
    segments: tl.int64,
    items: tl.int64,
    n_step: tl.int64,
    c_step: tl.int64,
    h_step: tl.int64,
    w_step: tl.int64,
    BLOCK_I: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The sums of windows of 2 half + 1 columns, for BLOCK_I blocks of columns: ``segments`` make up a row."""
    dtype: tl.constexpr = sums.dtype.element_ty
    i = tl.program_id(0).to(tl.int64) * BLOCK_I + tl.arange(0, BLOCK_I)[:, None]
    t = tl.arange(0, BLOCK_K)[None, :]
    length = 2 * half + 1
    start = i % segments * length
    row = i // segments
    plane = row // height
    place = plane // channels * n_step + plane % channels * c_step + row % height * h_step
    value = sums_of_blocks(mask + place, i < items, w_step, length, start - half, width, t, 1, dtype)
    inside = (i < items) & (t < length) & (start + t < width)
    tl.store(sums + row * width + start + t, value, mask=inside)


@triton.jit
def tile_down(width, half, segments, per_group, programs, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr):
    """This program's pixels [BLOCK_K, BLOCK_C]: blocks of rows, BLOCK_C of their columns from here and there.

    A plane has ``segments`` blocks, and ``programs`` share a group of ``per_group`` columns of blocks.

    Returns:
        plane and column [1, BLOCK_C], places in the block [BLOCK_K, 1], row, and what lies in the plane and the group.
    """
    program = tl.program_id(0).to(tl.int64)
    i = program % programs * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    block = (program // programs * per_group + i) // width
    t = tl.arange(0, BLOCK_K)[:, None]
    length = 2 * half + 1
    return block // segments, i % width, t, block % segments * length + t, (t < length) & (i < per_group)


@triton.jit
def averages_down(sums, scale, plane, column, t, row, inside, height, width, half):
    """The averages at this program's pixels: sums of the sums along rows, times ``scale``."""
    dtype: tl.constexpr = sums.dtype.element_ty
    pointer = sums + plane * height * width + column
    value = sums_of_blocks(pointer, inside, width, 2 * half + 1, row - t - half, height, t, 0, dtype)
    return value * (scale + tl.full((), 0.0, tl.float64)).to(dtype)


class Windows:
    """The launches for one window on maps [N, C, H, W].

    Attributes:
        down: arguments of a kernel that calls :func:`tile_down` and :func:`averages_down`: height, width, half, segments,
            per_group, programs, scale.
        constants: the others: BLOCK_K, BLOCK_C and num_warps.
        grid: of that kernel.
        programs: that a group has; they follow each other.
    """

    def __init__(self, shape: tuple[int, ...], kernel_size: int, *, by_plane: bool) -> None:
        """``by_plane``: every plane is a group; otherwise all of them together."""
        self.shape = shape
        n, c, height, width = shape
        # What a window holds beyond the image is zero on both sides: the part that counts is no longer than this.
        half_down, self._half_across = (min(kernel_size // 2, size - 1) for size in (height, width))
        self._segments_across = ceil_div(width, 2 * self._half_across + 1)
        segments = ceil_div(height, 2 * half_down + 1)
        groups = n * c if by_plane else 1
        per_group = n * c // groups * segments * width
        block_k = max(2, power_of_two(2 * half_down + 1))
        block_c = min(power_of_two(per_group), max(1, _TILE // block_k))
        self.programs = ceil_div(per_group, block_c)
        self.grid = (groups * self.programs,)
        self.down = (height, width, half_down, segments, per_group, self.programs, 1.0 / kernel_size**2)
        self.constants: dict[str, Any] = {
            "BLOCK_K": block_k,
            "BLOCK_C": block_c,
            "num_warps": _warps(block_k * block_c),
        }

    def sum_across(self, mask: Tensor, sums: Tensor) -> None:
        """Writes the sums along the rows of ``mask`` [N, C, H, W], taken in the dtype of ``sums``, which is dense."""
        n, c, height, width = self.shape
        items = n * c * height * self._segments_across
        block_k = max(2, power_of_two(2 * self._half_across + 1))
        block_i = max(1, _TILE // block_k)
        with device_guard(mask):
            box_across_kernel[(ceil_div(items, block_i),)](
                mask, sums, c, height, width, self._half_across, self._segments_across, items, *mask.stride(),
                BLOCK_I=block_i, BLOCK_K=block_k, num_warps=_warps(block_i * block_k),
            )  # fmt: skip


def _warps(elements: int) -> int:
    return min(max(elements // 512, 4), 16)


def as_bytes(mask: Tensor) -> Tensor:
    """``mask``, with booleans as the bytes that they are."""
    return mask.view(torch.uint8) if mask.dtype == torch.bool else mask

"""How kernels walk the images of a batch as lines of memory.

A line is a row of a plane where planes are contiguous, a row of pixels with all their channels where those lie side by side
(channels_last: then a sample has one "plane"). One program takes a tile of lines and columns.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: N803 (compile-time constants in capitals, as everywhere in Triton)

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sod_ops.triton._planes import aligned, ceil_div, map_steps, power_of_two

# Elements: 16 for each of 128 threads; fewer where each takes two registers, or an address and two predicates of its own, of
# which a thread has seven: with 8 unaligned bytes to a thread they are spilled.
_TILE = 2048
_DOUBLE_TILE = 1024
_NARROW_TILE = 512
NUMBERS = ("lines", "length", "column_length", "planes", "height", "sample_step", "plane_step")
WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by size: copying is blind to the dtype


class Walk(NamedTuple):
    """The grid of a kernel that visits every element once, and its arguments.

    Attributes:
        grid: one program for each tile.
        numbers: NUMBERS.
        constants: ALIGNMENT (a power of two that divides the steps and the length), BLOCK_R and BLOCK_C.
    """

    grid: tuple[int]
    numbers: tuple[int, ...]
    constants: dict[str, int]


def plan_lines(images: Tensor, largest_tile: int | None = None) -> Walk:
    """Plans the walk over ``images`` [B, C, H, W], contiguous, a slice of such, or channels_last."""
    samples, channels, height, width = images.shape
    interleaved, sample_step, step = map_steps(images.shape, images.stride())
    planes, column_length, plane_step = (1, channels, 0) if interleaved else (channels, 1, step)
    lines, length = samples * planes * height, width * column_length
    bits = length | sample_step | plane_step | 16
    alignment = bits & -bits
    largest = _NARROW_TILE if alignment == 1 else _DOUBLE_TILE if images.element_size() == 8 else _TILE
    largest = min(largest, largest_tile or _TILE)
    block_c = min(power_of_two(length), largest)
    block_r = min(power_of_two(lines), largest // block_c)
    return Walk(
        (ceil_div(lines, block_r) * ceil_div(length, block_c),),
        (lines, length, column_length, planes, height, sample_step, plane_step),
        {"ALIGNMENT": alignment, "BLOCK_R": block_r, "BLOCK_C": block_c},
    )


@triton.jit
def place_of(line, x, length, planes, height, plane_step, ALIGNMENT: tl.constexpr):
    """The sample of each line, its row, and where its elements ``x`` lie within the sample."""
    y = line % height
    place = line // height % planes * aligned(plane_step, ALIGNMENT) + y * aligned(length, ALIGNMENT) + x
    return line // height // planes, y, place


def new_images(images: Tensor) -> Tensor:
    """An uninitialised tensor like ``images``, dense in their memory format."""
    interleaved = map_steps(images.shape, images.stride())[0]
    memory_format = torch.channels_last if interleaved else torch.contiguous_format
    return torch.empty(images.shape, dtype=images.dtype, device=images.device, memory_format=memory_format)

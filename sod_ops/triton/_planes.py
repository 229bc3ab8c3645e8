"""How kernels walk [N, C, H, W] maps in either memory format: strides, tiles, and the work of one program.

A map is *planar* where a channel's pixels are neighbours (contiguous), *interleaved* where a pixel's channels are
(channels_last). Either way H and W are walked as one dimension of P = H W pixels, neighbours are one step apart, and
two numbers say the rest: the step from sample to sample, and the other step, from channel to channel where planar, from
pixel to pixel where interleaved.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: N803 (compile-time constants in capitals, as everywhere in Triton)

import contextlib
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 4096  # elements: 16 for each of 256 threads, so four 16-byte loads of float32 are under way per thread
_NARROW_TILE = 2048  # where each element has an address of its own: 16 of them would take 170 registers, 8 take 75
_SMALLEST_TILE = 1024
_PROGRAMS = 512  # enough to fill the largest GPUs (132 to 160 multiprocessors) with a few programs each
_MOST_PARTS = 64
_CHANNELS_TOGETHER = 64  # interleaved: 128 bytes or more in a row, a cache line

_no_guard = contextlib.nullcontext()


class Walk(NamedTuple):
    """The grid of a kernel that visits every element of a map, and its arguments.

    Attributes:
        grid: one program per tile of channels, part of the pixels and sample, in this order.
        steps: the sample step and the other step of each map, one map after the other.
        parts: into how many parts the pixels are split.
        part_blocks: how many blocks of ``BLOCK_P`` pixels make a part.
        constants: INTERLEAVED, ALIGNMENT (a power of two that divides every step and the length of a row that is read
            in order, so that the compiler may take 16 bytes at a time), BLOCK_C, BLOCK_P and num_warps.
    """

    grid: tuple[int]
    steps: tuple[int, ...]
    parts: int
    part_blocks: int
    constants: dict[str, Any]


def plan_walk(
    shape: torch.Size, strides: tuple[tuple[int, ...], ...], item_size: int, largest_tile: int | None = None
) -> Walk:
    """Plans the walk over maps of one shape and dtype; a function of shapes alone, so that results are reproducible.

    Tiles are smaller where the map is, and the pixels are split where there are few planes, to give every
    multiprocessor work.

    Args:
        shape: ``[N, C, H, W]``.
        strides: of every map; the first decides whether tiles are planar or interleaved.
        item_size: bytes of an element.
        largest_tile: elements to a program; fewer where a kernel keeps several numbers for each.

    Raises:
        ValueError: a map cannot be walked so.
    """
    samples, channels, height, width = shape
    pixels = height * width
    interleaved = _pixel_step(shape, strides[0]) != 1
    steps = tuple(step for stride in strides for step in _steps(shape, stride, interleaved))
    alignment = _common_power_of_two(*steps, channels if interleaved else pixels, 16 // item_size)
    largest = min(largest_tile or _TILE, _TILE if alignment > 1 else _NARROW_TILE)
    tile = min(max(power_of_two(samples * channels * pixels // _PROGRAMS), _SMALLEST_TILE), largest)
    if interleaved:
        block_c = min(power_of_two(channels), _CHANNELS_TOGETHER)
        block_p = min(power_of_two(pixels), tile // block_c)
    else:
        block_p = min(power_of_two(pixels), tile)
        block_c = min(power_of_two(channels), tile // block_p)

    planes = samples * ceil_div(channels, block_c)
    blocks = max(ceil_div(pixels, block_p), 1)
    part_blocks = ceil_div(blocks, min(_MOST_PARTS, ceil_div(_PROGRAMS, max(planes, 1))))
    parts = ceil_div(blocks, part_blocks)
    constants = {
        "INTERLEAVED": interleaved,
        "ALIGNMENT": alignment,
        "BLOCK_C": block_c,
        "BLOCK_P": block_p,
        "num_warps": 8 if block_c * block_p >= largest else 4,
    }
    return Walk((planes * parts,), steps, parts, part_blocks, constants)


class Columns(NamedTuple):
    """The grid of a kernel whose programs take some pixels with all their channels, and its arguments.

    Attributes:
        grid: one program per block of pixels and sample, in this order.
        blocks: how many blocks of pixels a sample has.
        steps: as those of a Walk.
        constants: as those of a Walk.
    """

    grid: tuple[int]
    blocks: int
    steps: tuple[int, ...]
    constants: dict[str, Any]


def plan_columns(
    shape: torch.Size, strides: tuple[tuple[int, ...], ...], item_size: int, interleaved_pixels: int = 16
) -> Columns:
    """Plans such programs over maps of one shape and dtype; arguments and errors as those of :func:`plan_walk`.

    Planar, 64 pixels are 128 bytes or more in a row; blocks get smaller, down to a sector of 32 bytes, where there are
    few pixels. Interleaved they have at most ``interleaved_pixels``.
    """
    samples, channels, height, width = shape
    pixels = height * width
    interleaved = _pixel_step(shape, strides[0]) != 1
    steps = tuple(step for stride in strides for step in _steps(shape, stride, interleaved))
    alignment = _common_power_of_two(*steps, channels if interleaved else pixels, 16 // item_size)
    tile = _NARROW_TILE if item_size <= 4 else _NARROW_TILE // 2
    if alignment == 1:
        tile //= 4
    block_p = min(
        power_of_two(samples * pixels // _PROGRAMS), power_of_two(pixels), interleaved_pixels if interleaved else 64
    )
    block_p = max(block_p, min(power_of_two(pixels), 4 if interleaved else 32 // item_size))
    block_c = min(power_of_two(channels), tile // block_p, 128)
    blocks = ceil_div(pixels, block_p)
    constants = {
        "INTERLEAVED": interleaved,
        "ALIGNMENT": alignment,
        "BLOCK_C": block_c,
        "BLOCK_P": block_p,
        # Eight elements a thread, each with an address of its own, spill on sm_120 (Triton 3.7.1).
        "num_warps": 4 if block_c * block_p >= _SMALLEST_TILE or alignment == 1 else 2,
    }
    return Columns((samples * blocks,), blocks, steps, constants)


def ceil_div(number: int, divisor: int) -> int:
    """What triton.cdiv gives, which serves kernels too: on the host that costs it 4 us a call."""
    return -(-number // divisor)


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below ``number`` (1 for 0)."""
    return 1 << max(number - 1, 0).bit_length()


def device_guard(tensor: Tensor) -> Any:
    """A context in which kernels go to the tensor's device; it costs nothing where that is the current one."""
    if tensor.is_cuda and tensor.get_device() != torch.cuda.current_device():
        return torch.cuda.device(tensor.device)
    return _no_guard


def map_steps(shape: torch.Size, stride: tuple[int, ...]) -> tuple[bool, int, int]:
    """Whether a map is interleaved, and its two steps; ValueError where it cannot be walked so."""
    interleaved = _pixel_step(shape, stride) != 1
    return interleaved, *_steps(shape, stride, interleaved)


def _pixel_step(shape: torch.Size, stride: tuple[int, ...]) -> int:
    """The step between pixels; the strides of dimensions of size 1 say nothing."""
    if shape[3] > 1:
        return stride[3]
    return stride[2] if shape[2] > 1 else 1


def _steps(shape: torch.Size, stride: tuple[int, ...], interleaved: bool) -> tuple[int, int]:
    samples, channels, height, width = shape
    pixel_step = _pixel_step(shape, stride)
    channel_step = stride[1] if channels > 1 else int(interleaved)
    rows_are_dense = height <= 1 or width <= 1 or stride[2] == width * pixel_step
    if not rows_are_dense or (channel_step if interleaved else pixel_step) != 1:
        layout = "interleaved" if interleaved else "planar"
        raise ValueError(f"a map of shape {list(shape)} and strides {list(stride)} is not {layout}")
    return stride[0] if samples > 1 else 0, pixel_step if interleaved else channel_step


def _common_power_of_two(*numbers: int) -> int:
    """The largest power of two that divides them all."""
    bits = 0
    for number in numbers:
        bits |= number
    return bits & -bits


@triton.jit
def program_work(
    channels, pixels, parts, part_blocks, REVERSED: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr
):
    """What this program visits: sample, part, its channels [BLOCK_C], its first pixel and the one after its last.

    A second pass over a map goes REVERSED: what the first read last is still in the cache.
    """
    program = tl.program_id(0)
    if REVERSED:
        program = tl.num_programs(0) - 1 - program
    tiles = tl.cdiv(channels, BLOCK_C)
    channel = program % tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    part = program // tiles % parts
    sample = (program // tiles // parts).to(tl.int64)
    length = part_blocks.to(tl.int64) * BLOCK_P
    return sample, part, channel, part * length, tl.minimum((part + 1) * length, pixels)


@triton.jit
def program_pixels(blocks, BLOCK_P: tl.constexpr):
    """What a program of plan_columns takes: sample, and its pixels [BLOCK_P]."""
    program = tl.program_id(0)
    block = (program % blocks).to(tl.int64)
    return (program // blocks).to(tl.int64), block * BLOCK_P + tl.arange(0, BLOCK_P)


@triton.jit
def aligned(number, ALIGNMENT: tl.constexpr):
    """``number``, which ALIGNMENT divides, in a form from which the compiler sees that it does."""
    return number // ALIGNMENT * ALIGNMENT


@triton.jit
def tile_offsets(channel, pixel, step, INTERLEAVED: tl.constexpr, ALIGNMENT: tl.constexpr):
    """Offsets [BLOCK_C, BLOCK_P] within a sample; ``step`` as above."""
    step = aligned(step, ALIGNMENT).to(tl.int64)  # the interpreter takes small arguments for int32, whatever their type
    return channel[:, None] + pixel[None, :] * step if INTERLEAVED else channel[:, None] * step + pixel[None, :]


@triton.jit
def tile_mask(channel, channels, pixel, pixels, INTERLEAVED: tl.constexpr, ALIGNMENT: tl.constexpr):
    """[BLOCK_C, BLOCK_P]: what lies inside the map."""
    if INTERLEAVED:
        mask = (channel < aligned(channels, ALIGNMENT))[:, None] & (pixel < pixels)[None, :]
    else:
        mask = (channel < channels)[:, None] & (pixel < aligned(pixels, ALIGNMENT))[None, :]
    return mask

"""The mean and the maximum over space in Triton: sod_ops/reference/global_pool.py has the formulas.

Forward one launch, and a second for the parts of maps that several programs share; backward one.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: N803 (compile-time constants in capitals, as everywhere in Triton)

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sod_ops.triton._largest import largest_of, take_larger
from sod_ops.triton._planes import aligned, ceil_div, device_guard, plan_walk, program_work, tile_mask, tile_offsets

_plan = functools.lru_cache(maxsize=4096)(plan_walk)

_SIZES = ("channels", "pixels", "parts", "part_blocks", "sample_step", "step", "other_sample_step", "other_step")
_CHANNELS = 128  # of one program that puts parts together


@triton.jit(do_not_specialize=_SIZES)
def global_pool_kernel(
    x,  # [N, C, P]
    sums,  # [N, parts, C] in the type of the sums where SPLIT; otherwise the mean, [N, C]
    maxima,  # [N, parts, C]; otherwise [N, C]
    indices,  # [N, parts, C], int64; otherwise [N, C]
    channels: tl.int32,
    pixels: tl.int64,
    parts: tl.int32,
    part_blocks: tl.int32,
    sample_step: tl.int64,
    step: tl.int64,
    SPLIT: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Sum (or mean), maximum and the maximum's first pixel.

    One program takes one part of the pixels of BLOCK_C channels of one sample; where SPLIT, the parts' results remain to
    be put together. Sums in float32, in float64 for float64.
    """
    sample, part, channel, first, last = program_work(channels, pixels, parts, part_blocks, False, BLOCK_C, BLOCK_P)
    accumulator: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    x += sample * aligned(sample_step, ALIGNMENT)
    total = tl.zeros([BLOCK_C, BLOCK_P], dtype=accumulator)
    largest = tl.full([BLOCK_C, BLOCK_P], float("-inf"), dtype=accumulator)
    place = tl.zeros([BLOCK_C, BLOCK_P], dtype=tl.int32) + tl.arange(0, BLOCK_P)[None, :]
    for start in range(first, last, BLOCK_P):
        pixel = start + tl.arange(0, BLOCK_P)
        mask = tile_mask(channel, channels, pixel, pixels, INTERLEAVED, ALIGNMENT)
        offsets = tile_offsets(channel, pixel, step, INTERLEAVED, ALIGNMENT)
        value = tl.load(x + offsets, mask=mask, other=float("-inf")).to(accumulator)
        total += tl.where(mask, value, 0.0)
        largest, place = take_larger(largest, place, value, (pixel - first).to(tl.int32)[None, :])
    value = tl.sum(total, 1)
    maximum, index = largest_of(largest, place, 1)
    if not SPLIT:
        value = value / pixels.to(accumulator)
    inside = channel < channels
    row = (sample * parts + part) * channels + channel
    tl.store(sums + row, value, mask=inside)
    tl.store(maxima + row, maximum, mask=inside)
    tl.store(indices + row, first + index, mask=inside)


@triton.jit(do_not_specialize=_SIZES)
def join_parts_kernel(
    sums,  # [N, parts, C]
    maxima,  # [N, parts, C]
    indices,  # [N, parts, C]
    mean,  # [N, C]
    maximum,  # [N, C]
    index,  # [N, C]
    channels: tl.int32,
    pixels: tl.int64,
    parts: tl.int32,
    BLOCK_C: tl.constexpr,
):
    """The parts' results put together, in their order, by one program for BLOCK_C channels of one sample."""
    tiles = tl.cdiv(channels, BLOCK_C)
    sample = (tl.program_id(0) // tiles).to(tl.int64)
    channel = tl.program_id(0) % tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channel < channels
    total = tl.zeros([BLOCK_C], dtype=sums.dtype.element_ty)
    largest = tl.full([BLOCK_C], float("-inf"), dtype=sums.dtype.element_ty)
    place = tl.zeros([BLOCK_C], dtype=tl.int64)
    for part in range(parts):
        row = (sample * parts + part) * channels + channel
        total += tl.load(sums + row, mask=inside, other=0.0)
        value = tl.load(maxima + row, mask=inside, other=0.0)
        largest, place = take_larger(largest, place, value, tl.load(indices + row, mask=inside, other=0))
    row = sample * channels + channel
    tl.store(mean + row, total / pixels.to(total.dtype), mask=inside)
    tl.store(maximum + row, largest, mask=inside)
    tl.store(index + row, place, mask=inside)


@triton.jit(do_not_specialize=_SIZES)
def global_pool_backward_kernel(
    grad_mean,  # [N, C]
    grad_maximum,  # [N, C]
    indices,  # [N, C], int64
    other,  # like grad_x, other_sample_step and other_step apart; or None
    grad_x,  # [N, C, P]
    channels: tl.int32,
    pixels: tl.int64,
    parts: tl.int32,
    part_blocks: tl.int32,
    sample_step: tl.int64,
    step: tl.int64,
    other_sample_step: tl.int64,
    other_step: tl.int64,
    INTERLEAVED: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """grad_x = grad_mean / P, and grad_maximum more where the maximum was, and other more, where there is one.

    One program writes one part of the pixels of BLOCK_C channels of one sample. Computes in float32, in float64 for
    float64.
    """
    sample, _, channel, first, last = program_work(channels, pixels, parts, part_blocks, False, BLOCK_C, BLOCK_P)
    accumulator: tl.constexpr = tl.float64 if grad_x.dtype.element_ty == tl.float64 else tl.float32
    inside = channel < channels
    row = sample * channels + channel
    every = tl.load(grad_mean + row, mask=inside, other=0.0).to(accumulator) / pixels.to(accumulator)
    chosen = every + tl.load(grad_maximum + row, mask=inside, other=0.0).to(accumulator)
    index = tl.load(indices + row, mask=inside, other=0)
    grad_x += sample * aligned(sample_step, ALIGNMENT)
    if other is not None:
        other += sample * aligned(other_sample_step, ALIGNMENT)
    for start in range(first, last, BLOCK_P):
        pixel = start + tl.arange(0, BLOCK_P)
        mask = tile_mask(channel, channels, pixel, pixels, INTERLEAVED, ALIGNMENT)
        value = tl.where(pixel[None, :] == index[:, None], chosen[:, None], every[:, None])
        if other is not None:
            beside = tile_offsets(channel, pixel, other_step, INTERLEAVED, ALIGNMENT)
            value += tl.load(other + beside, mask=mask, other=0.0).to(accumulator)
        tl.store(grad_x + tile_offsets(channel, pixel, step, INTERLEAVED, ALIGNMENT), value, mask=mask)


def global_pool(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mean, the maximum and the pixels of the maxima; x in one of the two memory formats."""
    samples, channels, height, width = x.shape
    mean = x.new_empty((samples, channels, 1, 1))
    maximum = torch.empty_like(mean)
    indices = x.new_empty((samples, channels), dtype=torch.int64)
    if not indices.numel():
        return mean, maximum, indices
    # In float64 a thread keeps five registers for each of its elements.
    walk = _plan(x.shape, (x.stride(),), x.element_size(), 2048 if x.dtype == torch.float64 else 4096)
    outputs = (mean, maximum, indices)
    partial = outputs
    if walk.parts > 1:
        shape = (samples, walk.parts, channels)
        sums = x.new_empty(shape, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
        partial = (sums, x.new_empty(shape), x.new_empty(shape, dtype=torch.int64))
    with device_guard(x):
        global_pool_kernel[walk.grid](
            x, *partial, channels, height * width, walk.parts, walk.part_blocks, *walk.steps,
            SPLIT=walk.parts > 1, **walk.constants,
        )  # fmt: skip
        if walk.parts > 1:
            join_parts_kernel[(samples * ceil_div(channels, _CHANNELS),)](
                *partial, *outputs, channels, height * width, walk.parts, BLOCK_C=_CHANNELS, num_warps=4
            )
    return outputs


def global_pool_backward(
    grad_mean: Tensor,
    grad_maximum: Tensor,
    indices: Tensor,
    height: int,
    width: int,
    channels_last: bool,
    other: Tensor | None = None,
) -> Tensor:
    """The gradient of x, [N, C, height, width]; those of the results are contiguous; the other one, which is added, may be
    a slice."""
    samples, channels = indices.shape
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    grad_x = torch.empty(
        (samples, channels, height, width), dtype=grad_mean.dtype, device=grad_mean.device, memory_format=memory_format
    )
    if grad_x.numel():
        added = grad_x if other is None else other
        walk = _plan(grad_x.shape, (grad_x.stride(), added.stride()), grad_x.element_size())
        with device_guard(grad_x):
            global_pool_backward_kernel[walk.grid](
                grad_mean, grad_maximum, indices, other, grad_x, channels, height * width, walk.parts, walk.part_blocks,
                *walk.steps, **walk.constants,
            )  # fmt: skip
    return grad_x


def ahead_of_time_cases() -> Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Launcher calls, on the meta device, whose launches together need every variant that is worth compiling ahead."""
    for shape, dtype, channels_last in (
        ((8, 256, 56, 56), torch.float32, False),
        ((8, 256, 56, 56), torch.bfloat16, True),  # pixels in parts
        ((32, 2048, 7, 7), torch.float16, False),  # rows of 49
        ((8, 64, 64, 64), torch.float64, False),
        ((8, 64, 64, 64), torch.float64, True),
    ):
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        x = torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)
        yield global_pool, (x,)
        grad = x.new_empty((*shape[:2], 1, 1))
        indices = x.new_empty(shape[:2], dtype=torch.int64)
        for other in (None, torch.cat([x, x], 1)[:, shape[1] :]):
            yield global_pool_backward, (grad, grad, indices, *shape[2:], channels_last, other)

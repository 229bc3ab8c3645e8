"""What scSE's gates are computed from, in Triton: sod_ops/reference/scse.py has the formulas.

One launch each way over x, whose programs take some pixels with all their channels; what they give of each channel, PyTorch
adds up.
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

from sod_ops.triton._planes import (
    Columns,
    aligned,
    device_guard,
    map_steps,
    plan_columns,
    program_pixels,
    tile_mask,
    tile_offsets,
)

_SIZES = ("channels", "pixels", "blocks", "sample_step", "step", "other_sample_step", "other_step")


@functools.lru_cache(maxsize=4096)
def _plan(shape: torch.Size, strides: tuple[tuple[int, ...], ...], item_size: int) -> Columns:
    # Every block gives a number for each channel: blocks of 64 pixels keep those a small part of x.
    return plan_columns(shape, strides, item_size, interleaved_pixels=64)


@triton.jit(do_not_specialize=_SIZES)
def squeeze_kernel(
    x,  # [N, C, P]
    weight,  # [C]
    projection,  # [N, P]
    sums,  # [N, blocks, C]
    channels: tl.int32,
    pixels: tl.int64,
    blocks: tl.int32,
    sample_step: tl.int64,
    step: tl.int64,
    INTERLEAVED: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """projection = the sum of weight times x over channels, and sums = that of x over a block's pixels.

    One program takes BLOCK_P pixels of one sample, BLOCK_C channels at a time. Sums in float32, in float64 for float64.
    """
    sample, pixel = program_pixels(blocks, BLOCK_P)
    accumulator: tl.constexpr = projection.dtype.element_ty
    x += sample * aligned(sample_step, ALIGNMENT)
    sums += tl.program_id(0).to(tl.int64) * channels
    total = tl.zeros([BLOCK_P], dtype=accumulator)
    for start in range(0, channels, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        mask = tile_mask(channel, channels, pixel, pixels, INTERLEAVED, ALIGNMENT)
        value = tl.load(x + tile_offsets(channel, pixel, step, INTERLEAVED, ALIGNMENT), mask=mask, other=0.0)
        value = value.to(accumulator)
        factor = tl.load(weight + channel, mask=channel < channels, other=0.0).to(accumulator)
        total += tl.sum(value * factor[:, None], 0)
        tl.store(sums + channel, tl.sum(value, 1), mask=channel < channels)
    tl.store(projection + sample * pixels + pixel, total, mask=pixel < pixels)


@triton.jit(do_not_specialize=_SIZES)
def squeeze_backward_kernel(
    grad_means,  # [N, C]
    grad_projection,  # [N, P]
    x,  # [N, C, P]
    weight,  # [C]
    other,  # like x, other_sample_step and other_step apart; or None
    grad_x,  # [N, C, P], dense in the memory format of x
    sums,  # [N, blocks, C]
    channels: tl.int32,
    pixels: tl.int64,
    blocks: tl.int32,
    sample_step: tl.int64,
    step: tl.int64,
    other_sample_step: tl.int64,
    other_step: tl.int64,
    INTERLEAVED: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """grad_x = grad_means / P + weight grad_projection, and other more, where there is one; sums = those of x
    grad_projection over a block's pixels.

    One program takes BLOCK_P pixels of one sample, BLOCK_C channels at a time. Computes in float32, in float64 for float64.
    """
    sample, pixel = program_pixels(blocks, BLOCK_P)
    accumulator: tl.constexpr = grad_projection.dtype.element_ty
    x += sample * aligned(sample_step, ALIGNMENT)
    grad_x += sample * channels * pixels
    if other is not None:
        other += sample * aligned(other_sample_step, ALIGNMENT)
    sums += tl.program_id(0).to(tl.int64) * channels
    of_pixel = tl.load(grad_projection + sample * pixels + pixel, mask=pixel < pixels, other=0.0)
    for start in range(0, channels, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        inside = channel < channels
        mask = tile_mask(channel, channels, pixel, pixels, INTERLEAVED, ALIGNMENT)
        value = tl.load(x + tile_offsets(channel, pixel, step, INTERLEAVED, ALIGNMENT), mask=mask, other=0.0)
        tl.store(sums + channel, tl.sum(value.to(accumulator) * of_pixel[None, :], 1), mask=inside)
        factor = tl.load(weight + channel, mask=inside, other=0.0).to(accumulator)
        of_channel = tl.load(grad_means + sample * channels + channel, mask=inside, other=0.0).to(accumulator)
        gradient = (of_channel / pixels.to(accumulator))[:, None] + factor[:, None] * of_pixel[None, :]
        if other is not None:
            beside = tile_offsets(channel, pixel, other_step, INTERLEAVED, ALIGNMENT)
            gradient += tl.load(other + beside, mask=mask, other=0.0).to(accumulator)
        to = tile_offsets(channel, pixel, channels if INTERLEAVED else pixels, INTERLEAVED, ALIGNMENT)
        tl.store(grad_x + to, gradient, mask=mask)


def _accumulator(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def scse(x: Tensor, spatial_weight: Tensor) -> tuple[Tensor, Tensor]:
    """The channels' means and the pixels' projections; x in one of the two memory formats."""
    samples, channels, height, width = x.shape
    dtype = _accumulator(x)
    projection = x.new_empty((samples, 1, height, width), dtype=dtype)
    plan = _plan(x.shape, (x.stride(),), x.element_size())
    sums = x.new_empty((samples, plan.blocks, channels), dtype=dtype)
    if projection.numel():
        with device_guard(x):
            squeeze_kernel[plan.grid](
                x,
                spatial_weight,
                projection,
                sums,
                channels,
                height * width,
                plan.blocks,
                *plan.steps,
                **plan.constants,
            )
    means = (sums.sum(1) / (height * width)).to(x.dtype)
    return means[:, :, None, None], projection


def scse_backward(
    grad_means: Tensor, grad_projection: Tensor, x: Tensor, spatial_weight: Tensor, other: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The gradients of x, dense in its memory format, and of the weight; the other one, which is added, may be a slice."""
    samples, channels, height, width = x.shape
    memory_format = torch.channels_last if map_steps(x.shape, x.stride())[0] else torch.contiguous_format
    grad_x = torch.empty_like(x, memory_format=memory_format)
    added = grad_x if other is None else other
    plan = _plan(x.shape, (x.stride(), added.stride()), x.element_size())
    sums = x.new_empty((samples, plan.blocks, channels), dtype=_accumulator(x))
    if x.numel():
        with device_guard(x):
            squeeze_backward_kernel[plan.grid](
                grad_means, grad_projection, x, spatial_weight, other, grad_x, sums, channels, height * width, plan.blocks,
                *plan.steps, **plan.constants,
            )  # fmt: skip
    return grad_x, sums.sum((0, 1)).to(x.dtype).view(spatial_weight.shape)


def ahead_of_time_cases() -> Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Launcher calls, on the meta device, whose launches together need every variant that is worth compiling ahead."""
    for shape, dtype, channels_last in (
        ((8, 256, 56, 56), torch.float32, False),
        ((8, 256, 56, 56), torch.bfloat16, True),
        ((2, 2048, 7, 7), torch.float16, False),  # few pixels, rows of 49
        ((8, 64, 64, 64), torch.float64, False),
        ((8, 64, 64, 64), torch.float64, True),
    ):
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        x = torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)
        weight = x.new_empty((1, shape[1], 1, 1))
        yield scse, (x, weight)
        grads = (x.new_empty((*shape[:2], 1, 1)), x.new_empty((shape[0], 1, *shape[2:]), dtype=_accumulator(x)))
        for other in (None, torch.cat([x, x], 1)[:, shape[1] :]):
            yield scse_backward, (*grads, x, weight, other)

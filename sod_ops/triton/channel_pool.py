"""The mean and the maximum over channels in Triton: sod_ops/reference/channel_pool.py has the formulas.

One launch each way: x is read once, its gradient written once.
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
from sod_ops.triton._planes import (
    aligned,
    device_guard,
    map_steps,
    plan_columns,
    program_pixels,
    tile_mask,
    tile_offsets,
)

_plan = functools.lru_cache(maxsize=4096)(plan_columns)

_SIZES = ("channels", "pixels", "blocks", "sample_step", "step", "other_sample_step", "other_step", "y_step")


@triton.jit(do_not_specialize=_SIZES)
def channel_pool_kernel(
    x,  # [N, C, P]
    y,  # [N, 2, P], pixels y_step apart
    indices,  # [N, P], int32
    channels: tl.int32,
    pixels: tl.int64,
    blocks: tl.int32,
    sample_step: tl.int64,
    step: tl.int64,
    y_step: tl.int32,
    INTERLEAVED: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """y = mean and maximum of x over its channels, and the first channel of each maximum.

    One program takes BLOCK_P pixels of one sample, BLOCK_C channels at a time. Sums in float32, in float64 for float64.
    """
    sample, pixel = program_pixels(blocks, BLOCK_P)
    accumulator: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    x += sample * aligned(sample_step, ALIGNMENT)
    total = tl.zeros([BLOCK_C, BLOCK_P], dtype=accumulator)
    largest = tl.full([BLOCK_C, BLOCK_P], float("-inf"), dtype=accumulator)
    place = tl.zeros([BLOCK_C, BLOCK_P], dtype=tl.int32) + tl.arange(0, BLOCK_C)[:, None]
    for start in range(0, channels, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        mask = tile_mask(channel, channels, pixel, pixels, INTERLEAVED, ALIGNMENT)
        offsets = tile_offsets(channel, pixel, step, INTERLEAVED, ALIGNMENT)
        value = tl.load(x + offsets, mask=mask, other=float("-inf")).to(accumulator)
        total += tl.where(mask, value, 0.0)
        largest, place = take_larger(largest, place, value, channel[:, None])
    mean = tl.sum(total, 0) / channels.to(accumulator)
    maximum, index = largest_of(largest, place, 0)
    inside = pixel < pixels
    y += 2 * sample * pixels + pixel * y_step
    tl.store(y, mean, mask=inside)
    tl.store(y + (1 if INTERLEAVED else pixels), maximum, mask=inside)
    tl.store(indices + sample * pixels + pixel, index, mask=inside)


@triton.jit(do_not_specialize=_SIZES)
def channel_pool_backward_kernel(
    grad_output,  # [N, 2, P], pixels y_step apart
    indices,  # [N, P], int32
    other,  # like grad_x, other_sample_step and other_step apart; or None
    grad_x,  # [N, C, P]
    channels: tl.int32,
    pixels: tl.int64,
    blocks: tl.int32,
    sample_step: tl.int64,
    step: tl.int64,
    other_sample_step: tl.int64,
    other_step: tl.int64,
    y_step: tl.int32,
    INTERLEAVED: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """grad_x = grad_output[0] / C, and grad_output[1] more where the maximum was, and other more, where there is one.

    One program writes BLOCK_P pixels of one sample, BLOCK_C channels at a time. Computes in float32, in float64 for
    float64.
    """
    sample, pixel = program_pixels(blocks, BLOCK_P)
    accumulator: tl.constexpr = tl.float64 if grad_x.dtype.element_ty == tl.float64 else tl.float32
    inside = pixel < pixels
    grad_output += 2 * sample * pixels + pixel * y_step
    every = tl.load(grad_output, mask=inside, other=0.0).to(accumulator) / channels.to(accumulator)
    more = tl.load(grad_output + (1 if INTERLEAVED else pixels), mask=inside, other=0.0).to(accumulator)
    index = tl.load(indices + sample * pixels + pixel, mask=inside, other=0)
    first = every + more
    grad_x += sample * aligned(sample_step, ALIGNMENT)
    if other is not None:
        other += sample * aligned(other_sample_step, ALIGNMENT)
    for start in range(0, channels, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        mask = tile_mask(channel, channels, pixel, pixels, INTERLEAVED, ALIGNMENT)
        value = tl.where(channel[:, None] == index[None, :], first[None, :], every[None, :])
        if other is not None:
            beside = tile_offsets(channel, pixel, other_step, INTERLEAVED, ALIGNMENT)
            value += tl.load(other + beside, mask=mask, other=0.0).to(accumulator)
        tl.store(grad_x + tile_offsets(channel, pixel, step, INTERLEAVED, ALIGNMENT), value, mask=mask)


def channel_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """The result and the channels of the maxima; x in one of the two memory formats."""
    samples, channels, height, width = x.shape
    interleaved = map_steps(x.shape, x.stride())[0]
    memory_format = torch.channels_last if interleaved else torch.contiguous_format
    y = torch.empty((samples, 2, height, width), dtype=x.dtype, device=x.device, memory_format=memory_format)
    indices = x.new_empty((samples, 1, height, width), dtype=torch.int32)
    if indices.numel():
        plan = _plan(x.shape, (x.stride(),), x.element_size())
        with device_guard(x):
            channel_pool_kernel[plan.grid](
                x, y, indices, channels, height * width, plan.blocks, *plan.steps, 2 if interleaved else 1,
                **plan.constants,
            )  # fmt: skip
    return y, indices


def channel_pool_backward(
    grad_output: Tensor, indices: Tensor, channels: int, channels_last: bool, other: Tensor | None = None
) -> Tensor:
    """The gradient of x, whose memory format the result's gradient has; the other one, which is added, may be a slice."""
    samples, _, height, width = grad_output.shape
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    grad_x = torch.empty(
        (samples, channels, height, width), dtype=grad_output.dtype, device=grad_output.device,
        memory_format=memory_format,
    )  # fmt: skip
    if grad_x.numel():
        added = grad_x if other is None else other
        plan = _plan(grad_x.shape, (grad_x.stride(), added.stride()), grad_x.element_size())
        interleaved = plan.constants["INTERLEAVED"]
        with device_guard(grad_x):
            channel_pool_backward_kernel[plan.grid](
                grad_output, indices, other, grad_x, channels, height * width, plan.blocks, *plan.steps,
                2 if interleaved else 1, **plan.constants,
            )  # fmt: skip
    return grad_x


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
        yield channel_pool, (x,)
        grad = x[:, :2].contiguous(memory_format=memory_format)
        indices = grad[:, :1].int().contiguous()
        for other in (None, torch.cat([x, x], 1)[:, shape[1] :]):
            yield channel_pool_backward, (grad, indices, shape[1], channels_last, other)

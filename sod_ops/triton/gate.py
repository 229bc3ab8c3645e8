"""Gates in Triton: sod_ops/reference/gate.py has the formulas.

Forward one launch. Backward one over the map, in which the gradients of the pixels' logits are complete; those of the
channels' logits are put together from blocks of pixels by a second.
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
    aligned,
    ceil_div,
    device_guard,
    map_steps,
    plan_columns,
    plan_walk,
    program_pixels,
    program_work,
    tile_mask,
    tile_offsets,
)
from sod_ops.triton.activation import SIGMOID, gate_derivative
from sod_ops.triton.activation import gate as activation_gate

_plan_forward = functools.lru_cache(maxsize=4096)(plan_walk)
_plan_backward = functools.lru_cache(maxsize=4096)(plan_columns)

_SIZES = (
    *("channels", "pixels", "parts", "part_blocks", "blocks"),
    *("channel_sample_step", "channel_step", "spatial_sample_step", "spatial_step"),
    *("x_sample_step", "x_step", "y_sample_step", "y_step"),
    *("grad_output_sample_step", "grad_output_step", "grad_x_sample_step", "grad_x_step"),
)
_CHANNELS = 128  # of one program that puts the blocks' sums together


@triton.jit
def _gates(channel_logits, spatial_logits, SUM_OF_GATES: tl.constexpr):
    """The gates of a tile from logits [BLOCK_C, 1] and [1, BLOCK_P], either of which may be None."""
    if channel_logits is None:
        gates = activation_gate(spatial_logits, SIGMOID)
    elif spatial_logits is None:
        gates = activation_gate(channel_logits, SIGMOID)
    elif SUM_OF_GATES:
        gates = activation_gate(channel_logits, SIGMOID) + activation_gate(spatial_logits, SIGMOID)
    else:
        gates = activation_gate(channel_logits + spatial_logits, SIGMOID)
    return gates


@triton.jit(do_not_specialize=_SIZES)
def gate_kernel(
    x,  # [N, C, P]
    channel_logits,  # [N, C] or None
    spatial_logits,  # [N, P] or None
    y,  # [N, C, P]
    channels: tl.int32,
    pixels: tl.int64,
    parts: tl.int32,
    part_blocks: tl.int32,
    channel_sample_step: tl.int64,
    channel_step: tl.int64,
    spatial_sample_step: tl.int64,
    spatial_step: tl.int64,
    x_sample_step: tl.int64,
    x_step: tl.int64,
    y_sample_step: tl.int64,
    y_step: tl.int64,
    SUM_OF_GATES: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """y = x g. One program scales one part of the pixels of BLOCK_C channels of one sample, in float32 or float64."""
    sample, _, channel, first, last = program_work(channels, pixels, parts, part_blocks, False, BLOCK_C, BLOCK_P)
    accumulator: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    of_channels = None
    if channel_logits is not None:
        there = channel < channels
        channel_place = sample * channel_sample_step + channel.to(tl.int64) * channel_step
        of_channels = tl.load(channel_logits + channel_place, mask=there, other=0.0).to(accumulator)[:, None]
    x += sample * aligned(x_sample_step, ALIGNMENT)
    y += sample * aligned(y_sample_step, ALIGNMENT)
    for start in range(first, last, BLOCK_P):
        pixel = start + tl.arange(0, BLOCK_P)
        mask = tile_mask(channel, channels, pixel, pixels, INTERLEAVED, ALIGNMENT)
        of_pixels = None
        if spatial_logits is not None:
            pixel_place = sample * spatial_sample_step + pixel * spatial_step
            of_pixels = tl.load(spatial_logits + pixel_place, mask=pixel < pixels, other=0.0).to(accumulator)[None, :]
        offsets = tile_offsets(channel, pixel, x_step, INTERLEAVED, ALIGNMENT)
        value = tl.load(x + offsets, mask=mask, other=0.0).to(accumulator)
        value *= _gates(of_channels, of_pixels, SUM_OF_GATES)
        tl.store(y + tile_offsets(channel, pixel, y_step, INTERLEAVED, ALIGNMENT), value, mask=mask)


@triton.jit(do_not_specialize=_SIZES)
def gate_backward_kernel(
    grad_output,  # [N, C, P]
    x,  # [N, C, P]
    channel_logits,  # [N, C] or None
    spatial_logits,  # [N, P] or None
    grad_x,  # [N, C, P]
    channel_sums,  # [N, blocks, C]; None without channel_logits
    grad_spatial,  # [N, P]; None without spatial_logits
    channels: tl.int32,
    pixels: tl.int64,
    blocks: tl.int32,
    channel_sample_step: tl.int64,
    channel_step: tl.int64,
    spatial_sample_step: tl.int64,
    spatial_step: tl.int64,
    grad_output_sample_step: tl.int64,
    grad_output_step: tl.int64,
    x_sample_step: tl.int64,
    x_step: tl.int64,
    grad_x_sample_step: tl.int64,
    grad_x_step: tl.int64,
    SUM_OF_GATES: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """grad_x = grad_output g, and the sums of grad_output x g' over channels and, of this block, over pixels.

    One program takes BLOCK_P pixels of one sample, BLOCK_C channels at a time. Sums in float32, in float64 for float64.
    """
    sample, pixel = program_pixels(blocks, BLOCK_P)
    block = tl.program_id(0) % blocks
    accumulator: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    BOTH: tl.constexpr = channel_logits is not None and spatial_logits is not None
    of_pixels = None
    if spatial_logits is not None:
        pixel_place = sample * spatial_sample_step + pixel * spatial_step
        of_pixels = tl.load(spatial_logits + pixel_place, mask=pixel < pixels, other=0.0).to(accumulator)[None, :]
        total = tl.zeros([BLOCK_C, BLOCK_P], dtype=accumulator)
    grad_output += sample * aligned(grad_output_sample_step, ALIGNMENT)
    x += sample * aligned(x_sample_step, ALIGNMENT)
    grad_x += sample * aligned(grad_x_sample_step, ALIGNMENT)
    for start in range(0, channels, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        mask = tile_mask(channel, channels, pixel, pixels, INTERLEAVED, ALIGNMENT)
        of_channels = None
        if channel_logits is not None:
            there = channel < channels
            channel_place = sample * channel_sample_step + channel.to(tl.int64) * channel_step
            of_channels = tl.load(channel_logits + channel_place, mask=there, other=0.0).to(accumulator)[:, None]
        offsets = tile_offsets(channel, pixel, grad_output_step, INTERLEAVED, ALIGNMENT)
        gradient = tl.load(grad_output + offsets, mask=mask, other=0.0).to(accumulator)
        offsets = tile_offsets(channel, pixel, x_step, INTERLEAVED, ALIGNMENT)
        product = gradient * tl.load(x + offsets, mask=mask, other=0.0).to(accumulator)
        gradient *= _gates(of_channels, of_pixels, SUM_OF_GATES)
        tl.store(grad_x + tile_offsets(channel, pixel, grad_x_step, INTERLEAVED, ALIGNMENT), gradient, mask=mask)
        if BOTH and not SUM_OF_GATES:
            product *= gate_derivative(of_channels + of_pixels, SIGMOID)  # type: ignore[operator]
        if spatial_logits is not None:
            total += product
        if channel_logits is not None:
            sums = channel_sums + (sample * blocks + block) * channels + channel
            tl.store(sums, tl.sum(product, 1), mask=channel < channels)
    if spatial_logits is not None:
        value = tl.sum(total, 0)
        if SUM_OF_GATES or not BOTH:
            value *= tl.sum(gate_derivative(of_pixels, SIGMOID), 0)
        tl.store(grad_spatial + sample * pixels + pixel, value, mask=pixel < pixels)


@triton.jit(do_not_specialize=_SIZES)
def join_channel_sums_kernel(
    channel_sums,  # [N, blocks, C]
    channel_logits,  # [N, C]; None where the sums have the derivative in them
    grad_channel,  # [N, C]
    channels: tl.int32,
    blocks: tl.int32,
    channel_sample_step: tl.int64,
    channel_step: tl.int64,
    BLOCK_B: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The blocks' sums added up in their order, by one program for BLOCK_C channels of one sample."""
    tiles = tl.cdiv(channels, BLOCK_C)
    sample = (tl.program_id(0) // tiles).to(tl.int64)
    channel = tl.program_id(0) % tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channel < channels
    total = tl.zeros([BLOCK_B, BLOCK_C], dtype=channel_sums.dtype.element_ty)
    channel_sums += sample * blocks * channels
    for start in range(0, blocks, BLOCK_B):
        block = start + tl.arange(0, BLOCK_B)
        place = block.to(tl.int64)[:, None] * channels + channel[None, :]
        total += tl.load(channel_sums + place, mask=(block < blocks)[:, None] & inside[None, :], other=0.0)
    value = tl.sum(total, 0)
    if channel_logits is not None:
        channel_place = sample * channel_sample_step + channel.to(tl.int64) * channel_step
        logits = tl.load(channel_logits + channel_place, mask=inside, other=0.0).to(value.dtype)
        value *= gate_derivative(logits, SIGMOID)
    tl.store(grad_channel + sample * channels + channel, value, mask=inside)


def _logits_steps(channel: Tensor | None, spatial: Tensor | None) -> tuple[int, int, int, int]:
    """Sample step and inner step of both."""
    steps = [0, 0, 0, 0]
    if channel is not None:
        steps[:2] = channel.stride()[:2]
    if spatial is not None:
        interleaved, sample_step, step = map_steps(spatial.shape, spatial.stride())
        steps[2:] = sample_step, step if interleaved else 1
    return steps[0], steps[1], steps[2], steps[3]


def gate(x: Tensor, channel_logits: Tensor | None, spatial_logits: Tensor | None, sum_of_gates: bool) -> Tensor:
    """y; arguments as those of the operator, x in one of the two memory formats."""
    channels, height, width = x.shape[1:]
    y = torch.empty_like(x)
    if x.numel():
        walk = _plan_forward(x.shape, (x.stride(), y.stride()), x.element_size())
        with device_guard(x):
            gate_kernel[walk.grid](
                x, channel_logits, spatial_logits, y, channels, height * width, walk.parts, walk.part_blocks,
                *_logits_steps(channel_logits, spatial_logits), *walk.steps,
                SUM_OF_GATES=sum_of_gates, **walk.constants,
            )  # fmt: skip
    return y


def gate_backward(
    grad_output: Tensor,
    x: Tensor,
    channel_logits: Tensor | None,
    spatial_logits: Tensor | None,
    sum_of_gates: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x and of the logits; ``grad_output`` is in the memory format of ``x``."""
    samples, channels, height, width = x.shape
    grad_x = torch.empty_like(x)
    grad_channel, grad_spatial = (
        x.new_empty((0,)) if t is None else t.new_empty(t.shape) for t in (channel_logits, spatial_logits)
    )
    if not x.numel():
        return grad_x, grad_channel.zero_(), grad_spatial.zero_()
    plan = _plan_backward(x.shape, (grad_output.stride(), x.stride(), grad_x.stride()), x.element_size())
    steps = _logits_steps(channel_logits, spatial_logits)
    sums = None
    if channel_logits is not None:
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        sums = x.new_empty((samples, plan.blocks, channels), dtype=dtype)
    with device_guard(x):
        gate_backward_kernel[plan.grid](
            grad_output, x, channel_logits, spatial_logits, grad_x, sums,
            None if spatial_logits is None else grad_spatial, channels, height * width, plan.blocks, *steps,
            *plan.steps, SUM_OF_GATES=sum_of_gates, **plan.constants,
        )  # fmt: skip
        if sums is not None:
            separable = spatial_logits is None or sum_of_gates
            join_channel_sums_kernel[(samples * ceil_div(channels, _CHANNELS),)](
                sums, channel_logits if separable else None, grad_channel, channels, plan.blocks, *steps[:2],
                BLOCK_B=8, BLOCK_C=_CHANNELS, num_warps=4,
            )  # fmt: skip
    return grad_x, grad_channel, grad_spatial


def ahead_of_time_cases() -> Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Launcher calls, on the meta device, whose launches together need every variant that is worth compiling ahead."""
    for shape, dtype, channels_last, kinds, sum_of_gates in (
        ((8, 256, 56, 56), torch.float32, False, "channel", False),
        ((8, 256, 56, 56), torch.float32, False, "spatial", False),
        ((8, 256, 56, 56), torch.bfloat16, True, "channel, spatial", True),
        ((8, 256, 56, 56), torch.float32, False, "channel, spatial", True),
        ((2, 2048, 7, 7), torch.float16, False, "channel, spatial", False),  # few pixels, rows of 49
        ((8, 64, 64, 64), torch.float64, False, "channel, spatial", False),
        ((8, 64, 64, 64), torch.float64, True, "channel, spatial", False),
    ):
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        x = torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)
        channel = x.new_empty((*shape[:2], 1, 1)) if "channel" in kinds else None
        spatial = x.new_empty((shape[0], 1, *shape[2:])) if "spatial" in kinds else None
        yield gate, (x, channel, spatial, sum_of_gates)
        yield gate_backward, (x, x, channel, spatial, sum_of_gates)

"""Object attention in Triton: sod_ops/reference/object_attention.py has the formula.

One launch forward, one backward. encoder is [N, C, P], P = H W pixels, in either memory format (_planes.py). A program of
the forward scales one tile; one of the backward takes all channels of its pixels, whose products it sums up. Factors and
sums are float32 (float64 for float64).
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
    Walk,
    aligned,
    device_guard,
    map_steps,
    plan_walk,
    power_of_two,
    program_work,
    tile_mask,
    tile_offsets,
)
from sod_ops.triton._rows import store
from sod_ops.triton.focal_loss import double

# Compiling for particular sizes would mean compiling at every new shape.
_NUMBERS = (
    *("channels", "pixels", "parts", "part_blocks", "lowest", "logits_sample_step", "logits_step"),
    *("x_sample_step", "x_step", "y_sample_step", "y_step"),
    *("grad_output_sample_step", "grad_output_step", "grad_x_sample_step", "grad_x_step"),
)


@triton.jit
def _factors(logits, pixel, pixels, sample, sample_step, step, lowest, DOUBLE: tl.constexpr):
    """The factors of pixels [BLOCK_P], and their derivatives by the logits."""
    dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    d = tl.load(logits + sample * sample_step + pixel * step, mask=pixel < pixels, other=0.0).to(dtype)
    e = tl.exp(-tl.abs(d))
    r = 1.0 / (1.0 + e)
    probability = tl.where(d > 0.0, r, e * r)
    nothing = probability * 0.0  # NaN where the logit is
    background = d < double(lowest).to(dtype)
    return tl.where(background, probability, nothing + 1.0), tl.where(background, e * r * r, nothing)


@triton.jit(do_not_specialize=_NUMBERS)
def object_attention_kernel(
    logits,  # [N, P]
    x,  # [N, C, P]
    y,  # [N, C, P]
    lowest: tl.float64,
    channels: tl.int32,
    pixels: tl.int64,
    parts: tl.int32,
    part_blocks: tl.int32,
    logits_sample_step: tl.int64,
    logits_step: tl.int64,
    x_sample_step: tl.int64,
    x_step: tl.int64,
    y_sample_step: tl.int64,
    y_step: tl.int64,
    DOUBLE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """y = x factor(logits): one program scales one part of the pixels of BLOCK_C channels of one sample."""
    sample, _part, channel, first, last = program_work(channels, pixels, parts, part_blocks, False, BLOCK_C, BLOCK_P)
    x += sample * aligned(x_sample_step, ALIGNMENT)
    y += sample * aligned(y_sample_step, ALIGNMENT)
    for start in range(first, last, BLOCK_P):
        pixel = start + tl.arange(0, BLOCK_P)
        factor, _slope = _factors(logits, pixel, pixels, sample, logits_sample_step, logits_step, lowest, DOUBLE)
        mask = tile_mask(channel, channels, pixel, pixels, INTERLEAVED, ALIGNMENT)
        value = tl.load(x + tile_offsets(channel, pixel, x_step, INTERLEAVED, ALIGNMENT), mask=mask, other=0.0)
        value = value.to(factor.dtype) * factor[None, :]
        store(y + tile_offsets(channel, pixel, y_step, INTERLEAVED, ALIGNMENT), value, mask)


@triton.jit(do_not_specialize=_NUMBERS)
def object_attention_backward_kernel(
    grad_output,  # [N, C, P]
    logits,  # [N, P]
    x,  # [N, C, P]
    grad_x,  # [N, C, P]
    grad_logits,  # [N, P], dense
    lowest: tl.float64,
    channels: tl.int32,
    pixels: tl.int64,
    logits_sample_step: tl.int64,
    logits_step: tl.int64,
    grad_output_sample_step: tl.int64,
    grad_output_step: tl.int64,
    x_sample_step: tl.int64,
    x_step: tl.int64,
    grad_x_sample_step: tl.int64,
    grad_x_step: tl.int64,
    DOUBLE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """grad_x = grad_output factor, grad_logits = factor' sum_C grad_output x: BLOCK_P pixels of one sample a program."""
    blocks = tl.cdiv(pixels, BLOCK_P)
    sample = tl.program_id(0) // blocks
    pixel = tl.program_id(0) % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    factor, slope = _factors(logits, pixel, pixels, sample, logits_sample_step, logits_step, lowest, DOUBLE)
    grad_output += sample * aligned(grad_output_sample_step, ALIGNMENT)
    x += sample * aligned(x_sample_step, ALIGNMENT)
    grad_x += sample * aligned(grad_x_sample_step, ALIGNMENT)
    total = tl.zeros([BLOCK_C, BLOCK_P], dtype=factor.dtype)
    for start in range(0, channels, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        mask = tile_mask(channel, channels, pixel, pixels, INTERLEAVED, ALIGNMENT)
        offsets = tile_offsets(channel, pixel, grad_output_step, INTERLEAVED, ALIGNMENT)
        gradient = tl.load(grad_output + offsets, mask=mask, other=0.0).to(factor.dtype)
        offsets = tile_offsets(channel, pixel, x_step, INTERLEAVED, ALIGNMENT)
        total += gradient * tl.load(x + offsets, mask=mask, other=0.0).to(factor.dtype)
        store(
            grad_x + tile_offsets(channel, pixel, grad_x_step, INTERLEAVED, ALIGNMENT), gradient * factor[None, :], mask
        )
    store(grad_logits + sample * pixels + pixel, tl.sum(total, 0) * slope, pixel < pixels)


def _logits_steps(decoder_logits: Tensor) -> tuple[int, int]:
    """The steps from sample to sample and from pixel to pixel."""
    interleaved, sample_step, step = map_steps(decoder_logits.shape, decoder_logits.stride())
    return sample_step, step if interleaved else 1


def object_attention(decoder_logits: Tensor, encoder: Tensor, lowest: float) -> Tensor:
    """y; arguments as those of the operator, in one of the two memory formats."""
    y = torch.empty_like(encoder)
    if encoder.numel() == 0:
        return y
    walk = _plan(encoder.shape, (encoder.stride(), y.stride()), encoder.element_size())
    with device_guard(encoder):
        object_attention_kernel[walk.grid](
            decoder_logits, encoder, y, lowest, encoder.shape[1], encoder.shape[2] * encoder.shape[3],
            walk.parts, walk.part_blocks, *_logits_steps(decoder_logits), *walk.steps,
            DOUBLE=encoder.dtype == torch.float64, **walk.constants,
        )  # fmt: skip
    return y


def object_attention_backward(
    grad_output: Tensor, decoder_logits: Tensor, encoder: Tensor, lowest: float
) -> tuple[Tensor, Tensor]:
    """The gradients of encoder and of decoder_logits. ``grad_output`` is in the memory format of ``encoder``."""
    grad_encoder = torch.empty_like(encoder)
    grad_logits = decoder_logits.new_empty(decoder_logits.shape)
    if encoder.numel() == 0:
        return grad_encoder, grad_logits.zero_()
    strides = (grad_output.stride(), encoder.stride(), grad_encoder.stride())
    walk = _plan_backward(encoder.shape, strides, encoder.element_size())
    with device_guard(encoder):
        object_attention_backward_kernel[walk.grid](
            grad_output, decoder_logits, encoder, grad_encoder, grad_logits, lowest,
            encoder.shape[1], encoder.shape[2] * encoder.shape[3],
            *_logits_steps(decoder_logits), *walk.steps,
            DOUBLE=encoder.dtype == torch.float64, **walk.constants,
        )  # fmt: skip
    return grad_encoder, grad_logits


_plan = functools.lru_cache(maxsize=4096)(plan_walk)


@functools.lru_cache(maxsize=4096)
def _plan_backward(shape: torch.Size, strides: tuple[tuple[int, ...], ...], item_size: int) -> Walk:
    """As plan_walk, with programs that take all channels: tiles are as narrow as memory allows, so that there are many."""
    walk = plan_walk(shape, strides, item_size)
    samples, channels, height, width = shape
    pixels = height * width
    tile = 2048 if item_size == 4 else 1024  # two-byte numbers are loaded eight at a time: more would be spilled
    if walk.constants["INTERLEAVED"]:
        block_c = min(power_of_two(channels), 128)
        block_p = min(power_of_two(pixels), max(tile // block_c, 1))
    else:
        block_p = min(power_of_two(pixels), 128)  # four warps' 16 bytes of two-byte numbers, or 512 bytes of float32
        block_c = min(power_of_two(channels), tile // block_p)
    grid = (samples * triton.cdiv(pixels, block_p),)
    blocks = {"BLOCK_C": block_c, "BLOCK_P": block_p, "num_warps": 4}
    return Walk(grid, walk.steps, 1, 1, {**walk.constants, **blocks})


def ahead_of_time_cases() -> Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Launcher calls, on the meta device, whose launches together need every variant that is worth compiling ahead."""
    for shape, dtype, memory_format in (
        ((8, 40, 80, 80), torch.float32, torch.contiguous_format),
        ((8, 40, 80, 80), torch.bfloat16, torch.contiguous_format),
        ((8, 40, 80, 80), torch.bfloat16, torch.channels_last),
        ((8, 256, 40, 40), torch.float32, torch.channels_last),
        ((2, 24, 35, 35), torch.float16, torch.contiguous_format),  # rows that no power of two divides
        ((2, 24, 35, 35), torch.float64, torch.contiguous_format),
        ((2, 24, 35, 35), torch.float64, torch.channels_last),
    ):
        encoder = torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)
        logits = encoder.new_empty((shape[0], 1, *shape[2:]))
        yield object_attention, (logits, encoder, -2.5)
        yield object_attention_backward, (encoder, logits, encoder, -2.5)

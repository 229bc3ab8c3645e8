"""Upsampled branches in a convolution's output, in Triton: sod_ops/reference/pyramid_conv2d.py has the formula.

Forward: one launch for every four branches, which reads y and the branches' products and writes the output. Backward: two
launches for each branch, first along rows of the output, then along its columns, with a workspace of height x taps x (the
branch's width) for each channel between them. No atomics: each sum is one program's.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: N803 (compile-time constants in capitals, as everywhere in Triton)

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sod_ops.triton._planes import aligned, ceil_div, device_guard, power_of_two
from sod_ops.triton.interpolation import readers, source_of, weight_on

_BRANCHES = 4  # in one launch
_BLOCK_C = 64
_BLOCK_P = 32


@triton.jit
def _upsampled(
    total,  # [BLOCK_P, BLOCK_C]
    products,  # [h, w, taps, C] of this sample
    row,  # [BLOCK_P], like column
    column,
    channel,  # [BLOCK_C]
    inside,  # [BLOCK_P, BLOCK_C]
    height,
    width,
    h,
    w,
    channels,
    KERNEL: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    NEAREST: tl.constexpr,
    dtype: tl.constexpr,
):
    """``total`` plus what one branch adds."""
    pad: tl.constexpr = KERNEL // 2
    for tap in range(KERNEL * KERNEL):
        y = row + tap // KERNEL - pad
        x = column + tap % KERNEL - pad
        there = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        v0, v1, weight_v = source_of(tl.where(there, x, 0), w, width, ALIGN_CORNERS, NEAREST, dtype)
        u0, u1, weight_u = source_of(tl.where(there, y, 0), h, height, ALIGN_CORNERS, NEAREST, dtype)
        mask = inside & there[:, None]
        taps = KERNEL * KERNEL
        p00 = ((u0 * w + v0).to(tl.int64) * taps + tap) * channels
        value = tl.load(products + p00[:, None] + channel[None, :], mask=mask, other=0.0)
        if NEAREST:
            total += value
        else:
            p01 = ((u0 * w + v1).to(tl.int64) * taps + tap) * channels
            p10 = ((u1 * w + v0).to(tl.int64) * taps + tap) * channels
            p11 = ((u1 * w + v1).to(tl.int64) * taps + tap) * channels
            at01 = tl.load(products + p01[:, None] + channel[None, :], mask=mask, other=0.0)
            at10 = tl.load(products + p10[:, None] + channel[None, :], mask=mask, other=0.0)
            at11 = tl.load(products + p11[:, None] + channel[None, :], mask=mask, other=0.0)
            upper = value * (1.0 - weight_v)[:, None] + at01 * weight_v[:, None]
            lower = at10 * (1.0 - weight_v)[:, None] + at11 * weight_v[:, None]
            total += upper * (1.0 - weight_u)[:, None] + lower * weight_u[:, None]
    return total


@triton.jit(
    do_not_specialize=(
        "h0", "w0", "h1", "w1", "h2", "w2", "h3", "w3", "channels", "height", "width", "sample_step", "step",
    )
)  # fmt: skip
def add_products_kernel(
    y,  # [N, C, H, W]
    out,  # the same, like y in memory
    products0,  # [N, h0, w0, taps, C], or None, like the others
    products1,
    products2,
    products3,
    h0: tl.int32,
    w0: tl.int32,
    h1: tl.int32,
    w1: tl.int32,
    h2: tl.int32,
    w2: tl.int32,
    h3: tl.int32,
    w3: tl.int32,
    channels: tl.int32,
    height: tl.int32,
    width: tl.int32,
    sample_step: tl.int64,
    step: tl.int64,
    INTERLEAVED: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    KERNEL: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    NEAREST: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out = y + what up to four branches add; a program has BLOCK_P pixels and BLOCK_C channels of a sample.

    ``step`` is that from pixel to pixel where INTERLEAVED, otherwise from channel to channel; ALIGNMENT divides the
    number of channels. Sums in float32 (float64 for float64).
    """
    dtype: tl.constexpr = tl.float64 if y.dtype.element_ty == tl.float64 else tl.float32
    channels = aligned(channels, ALIGNMENT)
    pixels = height * width
    blocks = tl.cdiv(pixels, BLOCK_P)
    program = tl.program_id(0)
    sample = (program // blocks).to(tl.int64)
    pixel = program % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    step = step.to(tl.int64)  # the interpreter takes small arguments for int32, whatever their type
    across = pixel[:, None] * step + channel[None, :] if INTERLEAVED else pixel[:, None] + channel[None, :] * step
    at = sample * sample_step + across
    row = tl.minimum(pixel, pixels - 1) // width
    column = tl.minimum(pixel, pixels - 1) % width
    total = tl.zeros([BLOCK_P, BLOCK_C], dtype=dtype)
    taps = KERNEL * KERNEL
    if products0 is not None:
        total = _upsampled(
            total, products0 + sample * h0 * w0 * taps * channels, row, column, channel, inside,
            height, width, h0, w0, channels, KERNEL, ALIGN_CORNERS, NEAREST, dtype,
        )  # fmt: skip
    if products1 is not None:
        total = _upsampled(
            total, products1 + sample * h1 * w1 * taps * channels, row, column, channel, inside,
            height, width, h1, w1, channels, KERNEL, ALIGN_CORNERS, NEAREST, dtype,
        )  # fmt: skip
    if products2 is not None:
        total = _upsampled(
            total, products2 + sample * h2 * w2 * taps * channels, row, column, channel, inside,
            height, width, h2, w2, channels, KERNEL, ALIGN_CORNERS, NEAREST, dtype,
        )  # fmt: skip
    if products3 is not None:
        total = _upsampled(
            total, products3 + sample * h3 * w3 * taps * channels, row, column, channel, inside,
            height, width, h3, w3, channels, KERNEL, ALIGN_CORNERS, NEAREST, dtype,
        )  # fmt: skip
    total += tl.load(y + at, mask=inside, other=0.0).to(dtype)
    tl.store(out + at, total, mask=inside)


@triton.jit(
    do_not_specialize=("channels", "height", "width", "w", "sample_step", "channel_step", "row_step", "column_step")
)
def columns_gradient_kernel(
    grad,  # [N, C, H, W], the output's
    partial,  # [N, H, w, K, C]: what column v gets from each row, for each tap of a row
    channels: tl.int32,
    height: tl.int32,
    width: tl.int32,
    w: tl.int32,
    sample_step: tl.int64,
    channel_step: tl.int64,
    row_step: tl.int64,
    column_step: tl.int64,
    KERNEL: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    NEAREST: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The adjoint of interpolation along a row: a program has one row, one column v of the branch, BLOCK_C channels."""
    dtype: tl.constexpr = tl.float64 if grad.dtype.element_ty == tl.float64 else tl.float32
    pad: tl.constexpr = KERNEL // 2
    program = tl.program_id(0).to(tl.int64)
    v = (program % w).to(tl.int32)
    line = program // w
    from_row = grad + line // height * sample_step + line % height * row_step
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = channel < channels
    begin, end = readers(v, w, width)
    sum0 = tl.zeros([BLOCK_C], dtype=dtype)
    sum1 = sum0
    sum2 = sum0
    for start in range(tl.maximum(begin - pad, 0), tl.minimum(end + pad, width), BLOCK_X):
        x = start + tl.arange(0, BLOCK_X)
        mask = (x < width)[:, None] & known[None, :]
        at = x.to(tl.int64)[:, None] * column_step + channel.to(tl.int64)[None, :] * channel_step
        values = tl.load(from_row + at, mask=mask, other=0.0).to(dtype)
        weight = weight_on(v, x - pad, w, width, ALIGN_CORNERS, NEAREST, dtype)
        sum0 += tl.sum(values * weight[:, None], 0)
        if KERNEL == 3:
            weight = weight_on(v, x, w, width, ALIGN_CORNERS, NEAREST, dtype)
            sum1 += tl.sum(values * weight[:, None], 0)
            weight = weight_on(v, x + pad, w, width, ALIGN_CORNERS, NEAREST, dtype)
            sum2 += tl.sum(values * weight[:, None], 0)
    to = partial + (line * w + v) * KERNEL * channels + channel
    tl.store(to, sum0, mask=known)
    if KERNEL == 3:
        tl.store(to + channels, sum1, mask=known)
        tl.store(to + 2 * channels, sum2, mask=known)


@triton.jit(do_not_specialize=("channels", "height", "h", "w"))
def rows_gradient_kernel(
    partial,  # [N, H, w, K, C]
    grad_products,  # [N, h, w, K * K, C]
    channels: tl.int32,
    height: tl.int32,
    h: tl.int32,
    w: tl.int32,
    KERNEL: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    NEAREST: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The adjoint along a column: a program has one pixel (u, v) of the branch, one kx and BLOCK_C channels."""
    dtype: tl.constexpr = partial.dtype.element_ty
    pad: tl.constexpr = KERNEL // 2
    program = tl.program_id(0).to(tl.int64)
    kx = program % KERNEL
    pixel = program // KERNEL
    v = pixel % w
    u = (pixel // w % h).to(tl.int32)
    sample = pixel // w // h
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = channel < channels
    row_step = w.to(tl.int64) * KERNEL * channels
    from_column = partial + sample * height * row_step + (v * KERNEL + kx) * channels
    begin, end = readers(u, h, height)
    sum0 = tl.zeros([BLOCK_C], dtype=dtype)
    sum1 = sum0
    sum2 = sum0
    for start in range(tl.maximum(begin - pad, 0), tl.minimum(end + pad, height), BLOCK_Y):
        y = start + tl.arange(0, BLOCK_Y)
        mask = (y < height)[:, None] & known[None, :]
        values = tl.load(from_column + y.to(tl.int64)[:, None] * row_step + channel[None, :], mask=mask, other=0.0)
        weight = weight_on(u, y - pad, h, height, ALIGN_CORNERS, NEAREST, dtype)
        sum0 += tl.sum(values * weight[:, None], 0)
        if KERNEL == 3:
            weight = weight_on(u, y, h, height, ALIGN_CORNERS, NEAREST, dtype)
            sum1 += tl.sum(values * weight[:, None], 0)
            weight = weight_on(u, y + pad, h, height, ALIGN_CORNERS, NEAREST, dtype)
            sum2 += tl.sum(values * weight[:, None], 0)
    to = grad_products + (pixel * KERNEL * KERNEL + kx) * channels + channel
    tl.store(to, sum0, mask=known)
    if KERNEL == 3:
        tl.store(to + 3 * channels, sum1, mask=known)
        tl.store(to + 6 * channels, sum2, mask=known)


def pyramid_conv2d(y: Tensor, products: Sequence[Tensor], align_corners: bool, nearest: bool) -> Tensor:
    """``y`` plus the products ``[N, h, w, taps, C]``, interpolated and shifted; as the operator."""
    samples, channels, height, width = y.shape
    out = torch.empty_like(y)
    if out.numel() == 0:
        return out
    source = y
    block_c = min(power_of_two(channels), _BLOCK_C)
    grid = (samples * ceil_div(height * width, _BLOCK_P), ceil_div(channels, block_c))
    if not products:
        return out.copy_(y)
    interleaved = y.stride(1) == 1 and channels > 1
    steps = y.stride(0), _pixel_step(y) if interleaved else y.stride(1)
    with device_guard(y):
        for first in range(0, len(products), _BRANCHES):
            part = [p.contiguous() for p in products[first : first + _BRANCHES]]
            absent = _BRANCHES - len(part)
            sizes = [n for p in part for n in p.shape[1:3]] + [1, 1] * absent
            add_products_kernel[grid](
                source, out, *part, *[None] * absent, *sizes, channels, height, width, *steps,
                INTERLEAVED=interleaved, ALIGNMENT=min(channels & -channels, 8),
                KERNEL=_kernel_size(part[0]), ALIGN_CORNERS=align_corners, NEAREST=nearest,
                BLOCK_P=_BLOCK_P, BLOCK_C=block_c, num_warps=4,
            )  # fmt: skip
            source = out
    return out


def pyramid_conv2d_backward(
    grad_output: Tensor,
    heights: Sequence[int],
    widths: Sequence[int],
    kernel_size: int,
    align_corners: bool,
    nearest: bool,
) -> list[Tensor]:
    """The gradients of the products."""
    samples, channels, height, width = grad_output.shape
    dtype = torch.float64 if grad_output.dtype == torch.float64 else torch.float32
    block_c = min(power_of_two(channels), _BLOCK_C)
    blocks = ceil_div(channels, block_c)
    gradients = []
    for h, w in zip(heights, widths, strict=True):
        gradient = grad_output.new_empty((samples, h, w, kernel_size * kernel_size, channels), dtype=dtype)
        gradients.append(gradient)
        if gradient.numel() == 0:
            continue
        partial = grad_output.new_empty((samples, height, w, kernel_size, channels), dtype=dtype)
        with device_guard(grad_output):
            columns_gradient_kernel[(samples * height * w, blocks)](
                grad_output, partial, channels, height, width, w, *_steps(grad_output),
                KERNEL=kernel_size, ALIGN_CORNERS=align_corners, NEAREST=nearest,
                BLOCK_X=_window(width, w), BLOCK_C=block_c, num_warps=4,
            )  # fmt: skip
            rows_gradient_kernel[(samples * h * w * kernel_size, blocks)](
                partial, gradient, channels, height, h, w,
                KERNEL=kernel_size, ALIGN_CORNERS=align_corners, NEAREST=nearest,
                BLOCK_Y=_window(height, h), BLOCK_C=block_c, num_warps=4,
            )  # fmt: skip
    return gradients


def _kernel_size(products: Tensor) -> int:
    return 3 if products.shape[3] == 9 else 1


def _steps(map_: Tensor) -> tuple[int, int, int, int]:
    return map_.stride(0), map_.stride(1), map_.stride(2), map_.stride(3)


def _pixel_step(map_: Tensor) -> int:
    """The step between pixels of a contiguous or channels_last map."""
    return map_.stride(3) if map_.shape[3] > 1 else map_.stride(2) if map_.shape[2] > 1 else 1


def _window(to: int, from_: int) -> int:
    """How many positions to take at once: about those that read one index."""
    return min(max(power_of_two(2 * to // from_ + 2), 8), 32)


def ahead_of_time_cases() -> Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Launcher calls, on the meta device, whose launches together need every variant that is worth compiling ahead."""
    for dtype, channels, kernel, sizes, align_corners, nearest in (
        (torch.float32, 512, 3, (1, 2, 3, 6), False, False),
        (torch.bfloat16, 512, 1, (1, 2, 3, 6), True, False),
        (torch.bfloat16, 256, 3, (30, 15, 8), False, False),
        (torch.float16, 64, 3, (30,), False, True),
        (torch.float64, 8, 3, (1, 2, 3, 6), False, False),
    ):
        y = torch.empty((2, channels, 60, 60), dtype=dtype, device="meta")
        accumulator = torch.float64 if dtype == torch.float64 else torch.float32
        taps = kernel * kernel
        products = [torch.empty((2, s, s, taps, channels), dtype=accumulator, device="meta") for s in sizes]
        yield pyramid_conv2d, (y, products, align_corners, nearest)
        yield pyramid_conv2d_backward, (y, sizes, sizes, kernel, align_corners, nearest)

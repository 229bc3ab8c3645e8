"""The kernels of pyramid_upsample_concat: its reference has the formula, pyramid_upsample_concat.py the launches.

A branch is [N, C, h, w]; its place in the concatenation y [N, C_y, H, W] is C channels from ``offset``. All maps are dense,
in one memory format. Sums are taken in float32 (float64 for float64).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: N803 (compile-time constants in capitals, as everywhere in Triton)

import triton
import triton.language as tl

from sod_ops.triton.interpolation import readers, reads, source_of, weight_on

# Compiling for particular sizes would mean compiling at every new shape.
_SIZES = ("channels", "all_channels", "offset", "inputs_h", "inputs_w", "height", "width")


@triton.jit
def _offsets(channel, pixel, channels, pixels, INTERLEAVED: tl.constexpr):
    """Offsets [BLOCK_C, BLOCK_P] within a sample of a dense map."""
    if INTERLEAVED:
        offsets = pixel.to(tl.int64)[None, :] * channels + channel[:, None]
    else:
        offsets = channel.to(tl.int64)[:, None] * pixels + pixel[None, :]
    return offsets


@triton.jit(do_not_specialize=_SIZES)
def resize_kernel(
    branch,  # [N, C, h, w]
    y,  # [N, C_y, H, W]
    channels: tl.int32,
    all_channels: tl.int32,
    offset: tl.int32,
    inputs_h: tl.int32,
    inputs_w: tl.int32,
    height: tl.int32,
    width: tl.int32,
    ALIGN_CORNERS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """One program writes BLOCK_P pixels of BLOCK_C channels of one sample."""
    ACC: tl.constexpr = tl.float64 if y.dtype.element_ty == tl.float64 else tl.float32
    pixels = height.to(tl.int64) * width
    inputs = inputs_h * inputs_w
    blocks = tl.cdiv(pixels, BLOCK_P)
    tiles = tl.cdiv(channels, BLOCK_C)
    program = tl.program_id(0).to(tl.int64)
    channel = (program // blocks % tiles).to(tl.int32) * BLOCK_C + tl.arange(0, BLOCK_C)
    sample = program // blocks // tiles
    start = program % blocks * BLOCK_P
    first_row = start // width
    local = (start - first_row * width).to(tl.int32) + tl.arange(0, BLOCK_P)
    row = first_row.to(tl.int32) + local // width
    column = local % width
    top, bottom, below = source_of(row, inputs_h, height, ALIGN_CORNERS, False, ACC)
    left, right, beside = source_of(column, inputs_w, width, ALIGN_CORNERS, False, ACC)
    pixel = start + tl.arange(0, BLOCK_P)
    mask = (channel < channels)[:, None] & (pixel < pixels)[None, :]
    branch += sample * channels * inputs
    at = _offsets(channel, top * inputs_w + left, channels, inputs, INTERLEAVED)
    upper = tl.load(branch + at, mask=mask, other=0.0).to(ACC) * (1.0 - beside)[None, :]
    at = _offsets(channel, top * inputs_w + right, channels, inputs, INTERLEAVED)
    upper += tl.load(branch + at, mask=mask, other=0.0).to(ACC) * beside[None, :]
    at = _offsets(channel, bottom * inputs_w + left, channels, inputs, INTERLEAVED)
    lower = tl.load(branch + at, mask=mask, other=0.0).to(ACC) * (1.0 - beside)[None, :]
    at = _offsets(channel, bottom * inputs_w + right, channels, inputs, INTERLEAVED)
    lower += tl.load(branch + at, mask=mask, other=0.0).to(ACC) * beside[None, :]
    value = upper * (1.0 - below)[None, :] + lower * below[None, :]
    y += sample * all_channels * pixels
    tl.store(y + _offsets(channel + offset, pixel, all_channels, pixels, INTERLEAVED), value, mask=mask)


@triton.jit(do_not_specialize=_SIZES)
def gather_rows_kernel(
    grad_y,  # [N, C_y, H, W]
    rows,  # [N, C, h, W]
    channels: tl.int32,
    all_channels: tl.int32,
    offset: tl.int32,
    inputs_h: tl.int32,
    height: tl.int32,
    width: tl.int32,
    ALIGN_CORNERS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """rows[i] = sum over output rows of their weight of input row i. One program: BLOCK_P columns, BLOCK_C channels."""
    ACC: tl.constexpr = rows.dtype.element_ty
    pixels = height.to(tl.int64) * width
    blocks = tl.cdiv(width, BLOCK_P)
    tiles = tl.cdiv(channels, BLOCK_C)
    program = tl.program_id(0)
    column = program % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    number = program // blocks % inputs_h
    channel = program // blocks // inputs_h % tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    sample = (program // blocks // inputs_h // tiles).to(tl.int64)
    mask = (channel < channels)[:, None] & (column < width)[None, :]
    grad_y += sample * all_channels * pixels
    source = _offsets(channel + offset, column, all_channels, pixels, INTERLEAVED)
    row_step = width.to(tl.int64) * all_channels if INTERLEAVED else width.to(tl.int64)
    total = tl.zeros([BLOCK_C, BLOCK_P], dtype=ACC)
    begin, end = readers(number, inputs_h, height)
    for step in range(end - begin):
        row = begin + step  # a tensor, also in the interpreter
        # Rows that do not read this one are not loaded: 0 times infinity would be NaN.
        known = mask & reads(number, row, inputs_h, height, ALIGN_CORNERS, False, ACC)
        weight = weight_on(number, row, inputs_h, height, ALIGN_CORNERS, False, ACC)
        total += tl.load(grad_y + row * row_step + source, mask=known, other=0.0).to(ACC) * weight
    place = inputs_h.to(tl.int64) * width
    to = rows + sample * channels * place
    tl.store(to + _offsets(channel, number * width + column, channels, place, INTERLEAVED), total, mask=mask)


@triton.jit(do_not_specialize=_SIZES)
def gather_columns_kernel(
    rows,  # [N, C, h, W]
    grad_branch,  # [N, C, h, w]
    channels: tl.int32,
    inputs_h: tl.int32,
    inputs_w: tl.int32,
    width: tl.int32,
    ALIGN_CORNERS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """grad_branch[j] = sum over columns of their weight of input column j. One program: a pixel of BLOCK_C channels."""
    ACC: tl.constexpr = rows.dtype.element_ty
    inputs = inputs_h * inputs_w
    tiles = tl.cdiv(channels, BLOCK_C)
    program = tl.program_id(0)
    number = program % inputs_w
    row = program // inputs_w % inputs_h
    channel = program // inputs % tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    sample = (program // inputs // tiles).to(tl.int64)
    place = inputs_h.to(tl.int64) * width
    rows += sample * channels * place
    total = tl.zeros([BLOCK_C, BLOCK_P], dtype=ACC)
    begin, end = readers(number, inputs_w, width)
    for start in range(begin, end, BLOCK_P):
        column = start + tl.arange(0, BLOCK_P)
        weight = weight_on(number, column, inputs_w, width, ALIGN_CORNERS, False, ACC)
        known = reads(number, column, inputs_w, width, ALIGN_CORNERS, False, ACC) & (column < end)
        mask = (channel < channels)[:, None] & known[None, :]
        source = _offsets(channel, row * width + column, channels, place, INTERLEAVED)
        total += tl.load(rows + source, mask=mask, other=0.0) * weight[None, :]
    grad_branch += sample * channels * inputs
    if INTERLEAVED:
        to = (row * inputs_w + number).to(tl.int64) * channels + channel
    else:
        to = channel.to(tl.int64) * inputs + row * inputs_w + number
    tl.store(grad_branch + to, tl.sum(total, 1), mask=channel < channels)

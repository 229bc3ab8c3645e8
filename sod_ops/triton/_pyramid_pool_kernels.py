"""The kernels of pyramid_pool: sod_ops/reference/pyramid_pool.py has the formula, pyramid_pool.py the launches.

The edges of all levels' bins cut H and W into cells, so that a bin is the sum of its cells, and a pixel's gradient is that
of its cell. ``tables`` is [2, 2, L + 1], L the longer side: for rows and for columns, the edges of the cells, and for
every pixel the number of its cell (for the one past the last, how many there are). Sums of cells, and their gradients, are
float32 (float64 for float64), in which all sums are taken.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: N803 (compile-time constants in capitals, as everywhere in Triton)

import triton
import triton.language as tl

from sod_ops.triton._planes import aligned, tile_mask, tile_offsets
from sod_ops.triton.division import divide

# Compiling for particular sizes would mean compiling at every new shape.
_SIZES = (
    "channels",
    "height",
    "width",
    "cut",
    "rows",
    "columns",
    "sample_step",
    "step",
    "other_sample_step",
    "other_step",
)


@triton.jit(do_not_specialize=_SIZES)
def tables_kernel(
    tables,  # [2, 2, L + 1]
    height: tl.int32,
    width: tl.int32,
    cut: tl.int32,
    BINS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program makes the rows' tables, the other the columns'. Rows are cut by ``cut`` equal bins besides."""
    columns = tl.program_id(0) == 1
    length = tl.where(columns, width, height)
    pixel = tl.arange(0, BLOCK)
    is_edge = _is_edge(pixel, tl.where(columns, 1, cut), length)
    for k in tl.static_range(len(BINS)):
        is_edge = is_edge | _is_edge(pixel, BINS[k], length)
    inside = pixel <= length
    count = tl.cumsum((is_edge & inside).to(tl.int32), 0)
    step = tl.maximum(height, width) + 1
    tables += tl.program_id(0) * 2 * step
    tl.store(tables + count - 1, pixel, mask=is_edge & inside)
    tl.store(tables + step + pixel, count - 1, mask=inside)


@triton.jit
def _is_edge(pixel, bins, length):
    """Whether a bin begins at floor(i length / bins) = pixel, or ends at ceil(i length / bins) = pixel."""
    scaled = pixel.to(tl.int64) * bins
    begins = (scaled + length - 1) // length * length // bins == pixel
    ends = (scaled // length * length + bins - 1) // bins == pixel
    return begins | ends


@triton.jit(do_not_specialize=_SIZES)
def cell_sums_kernel(
    x,  # [N, C, H, W]
    tables,
    sums,  # [N, rows, columns, C]
    channels: tl.int32,
    height: tl.int32,
    width: tl.int32,
    rows: tl.int32,
    columns: tl.int32,
    sample_step: tl.int64,
    step: tl.int64,
    INTERLEAVED: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """One program sums one row of cells of BLOCK_C channels of one sample."""
    program = tl.program_id(0)
    tiles = tl.cdiv(channels, BLOCK_C)
    row = program % rows
    channel = program // rows % tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    sample = (program // rows // tiles).to(tl.int64)
    table = tl.maximum(height, width) + 1
    first_row = tl.load(tables + row)
    last_row = tl.load(tables + row + 1)
    edges = tables + 2 * table
    x += sample * aligned(sample_step, ALIGNMENT)
    sums += (sample * rows + row) * columns * channels
    length = (width if INTERLEAVED else aligned(width, ALIGNMENT)).to(tl.int64)
    row_step = length * aligned(step, ALIGNMENT) if INTERLEAVED else length
    cell = 0
    for start in range(0, width, BLOCK_W):
        column = start + tl.arange(0, BLOCK_W)
        mask = tile_mask(channel, channels, column, length, INTERLEAVED, ALIGNMENT)
        offsets = tile_offsets(channel, column, step, INTERLEAVED, ALIGNMENT)
        total = tl.zeros([BLOCK_C, BLOCK_W], dtype=sums.dtype.element_ty)
        for y in range(first_row, last_row):
            total += tl.load(x + y * row_step + offsets, mask=mask, other=0.0).to(total.dtype)
        end = tl.minimum(start + BLOCK_W, width)
        begin = tl.load(edges + cell)
        while begin < end:
            stop = tl.load(edges + cell + 1)
            here = (column >= begin) & (column < stop)
            value = tl.sum(tl.where(here[None, :], total, 0.0), 1)
            to = sums + channels.to(tl.int64) * cell + channel
            if begin < start:
                # A block before this one has begun the cell, in these threads.
                value += tl.load(to, mask=channel < channels, other=0.0)
            tl.store(to, value, mask=channel < channels)
            begin = tl.where(stop > end, end, stop)
            cell += tl.where(stop > end, 0, 1)


@triton.jit
def _bin_of(number, BINS: tl.constexpr):
    """Of bin ``number`` of all levels: the level, its bins, and the number within it."""
    level = 0
    size = BINS[0]
    first = 0
    offset = 0
    for k in tl.static_range(len(BINS)):
        if k > 0:
            inside = number >= offset
            level = tl.where(inside, k, level)
            size = tl.where(inside, BINS[k], size)
            first = tl.where(inside, offset, first)
        offset += BINS[k] * BINS[k]
    return level, size, number - first


@triton.jit(do_not_specialize=_SIZES)
def means_kernel(
    sums,  # [N, rows, columns, C]
    tables,
    out0,  # [N, C, BINS[0], BINS[0]]
    out1,
    out2,
    out3,
    channels: tl.int32,
    height: tl.int32,
    width: tl.int32,
    rows: tl.int32,
    columns: tl.int32,
    BINS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """One program takes the mean of one bin of BLOCK_C channels of one sample."""
    bins: tl.constexpr = _all_bins(BINS)
    program = tl.program_id(0)
    tiles = tl.cdiv(channels, BLOCK_C)
    level, size, number = _bin_of(program % bins, BINS)
    channel = program // bins % tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    sample = (program // bins // tiles).to(tl.int64)
    table = tl.maximum(height, width) + 1
    row = number // size
    column = number % size
    top = (row.to(tl.int64) * height // size).to(tl.int32)
    bottom = (((row + 1).to(tl.int64) * height + size - 1) // size).to(tl.int32)
    left = (column.to(tl.int64) * width // size).to(tl.int32)
    right = (((column + 1).to(tl.int64) * width + size - 1) // size).to(tl.int32)
    first = tl.load(tables + 3 * table + left)
    last = tl.load(tables + 3 * table + right)
    sums += sample * rows * columns * channels
    total = tl.zeros([BLOCK_J, BLOCK_C], dtype=sums.dtype.element_ty)
    for i in range(tl.load(tables + table + top), tl.load(tables + table + bottom)):
        for begin in range(first, last, BLOCK_J):
            j = begin + tl.arange(0, BLOCK_J)
            offsets = (i * columns + j).to(tl.int64)[:, None] * channels + channel[None, :]
            total += tl.load(sums + offsets, mask=(j < last)[:, None] & (channel < channels)[None, :], other=0.0)
    area = (bottom - top).to(tl.int64) * (right - left)
    mean = divide(tl.sum(total, 0), area.to(total.dtype))
    if INTERLEAVED:
        offsets = (sample * size * size + number) * channels + channel
    else:
        offsets = (sample * channels + channel) * size * size + number
    mask = channel < channels
    if level == 0:
        tl.store(out0 + offsets, mean, mask=mask)
    if out1 is not None:  # noqa: SIM102 (known at compile time, the level is not)
        if level == 1:
            tl.store(out1 + offsets, mean, mask=mask)
    if out2 is not None:  # noqa: SIM102 (known at compile time, the level is not)
        if level == 2:
            tl.store(out2 + offsets, mean, mask=mask)
    if out3 is not None:  # noqa: SIM102 (known at compile time, the level is not)
        if level == 3:
            tl.store(out3 + offsets, mean, mask=mask)


@triton.constexpr_function
def _all_bins(bins):
    return sum(size * size for size in bins)


@triton.jit
def _level_gradient(
    grad,  # [N, C, SIZE, SIZE] or None
    sample,
    channel,
    top,  # the cell's first pixel
    left,
    channels,
    height,
    width,
    total,  # [BLOCK_C]
    SIZE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    """Adds what a pixel of a cell gets from the bins of one level that the cell lies in."""
    height = height.to(tl.int64)
    width = width.to(tl.int64)
    first_row = top * SIZE // height
    last_row = ((top + 1) * SIZE + height - 1) // height
    first_column = left * SIZE // width
    last_column = ((left + 1) * SIZE + width - 1) // width
    for row in range(first_row, last_row):
        rows = ((row + 1) * height + SIZE - 1) // SIZE - row * height // SIZE
        for column in range(first_column, last_column):
            area = rows * (((column + 1) * width + SIZE - 1) // SIZE - column * width // SIZE)
            number = row * SIZE + column
            if INTERLEAVED:
                offsets = (sample * SIZE * SIZE + number) * channels + channel
            else:
                offsets = (sample * channels + channel) * SIZE * SIZE + number
            value = tl.load(grad + offsets, mask=channel < channels, other=0.0).to(total.dtype)
            total += divide(value, area.to(total.dtype))
    return total


@triton.jit(do_not_specialize=_SIZES)
def cell_gradients_kernel(
    grad0,  # [N, C, BINS[0], BINS[0]]
    grad1,
    grad2,
    grad3,
    tables,
    gradients,  # [N, rows, columns, C] where INTERLEAVED, otherwise [N, C, rows, columns]
    channels: tl.int32,
    height: tl.int32,
    width: tl.int32,
    rows: tl.int32,
    columns: tl.int32,
    BINS: tl.constexpr,
    FIRST: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program computes one cell of BLOCK_C channels of one sample; unless FIRST, it adds to what is there."""
    cells = rows * columns
    program = tl.program_id(0)
    tiles = tl.cdiv(channels, BLOCK_C)
    cell = program % cells
    channel = program // cells % tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    sample = (program // cells // tiles).to(tl.int64)
    table = tl.maximum(height, width) + 1
    top = tl.load(tables + cell // columns).to(tl.int64)
    left = tl.load(tables + 2 * table + cell % columns).to(tl.int64)
    if INTERLEAVED:
        offsets = (sample * cells + cell) * channels + channel
    else:
        offsets = (sample * channels + channel) * cells + cell
    mask = channel < channels
    total = tl.zeros([BLOCK_C], dtype=gradients.dtype.element_ty)
    if not FIRST:
        total += tl.load(gradients + offsets, mask=mask, other=0.0)
    total = _level_gradient(
        grad0, sample, channel, top, left, channels, height, width, total, BINS[0], INTERLEAVED
    )  # fmt: skip
    if grad1 is not None:
        total = _level_gradient(
            grad1, sample, channel, top, left, channels, height, width, total, BINS[1], INTERLEAVED
        )  # fmt: skip
    if grad2 is not None:
        total = _level_gradient(
            grad2, sample, channel, top, left, channels, height, width, total, BINS[2], INTERLEAVED
        )  # fmt: skip
    if grad3 is not None:
        total = _level_gradient(
            grad3, sample, channel, top, left, channels, height, width, total, BINS[3], INTERLEAVED
        )  # fmt: skip
    tl.store(gradients + offsets, total, mask=mask)


@triton.jit(do_not_specialize=_SIZES)
def expand_kernel(
    gradients,  # as above
    tables,
    other,  # [N, C, H, W] or None
    grad_x,  # [N, C, H, W]
    channels: tl.int32,
    height: tl.int32,
    width: tl.int32,
    rows: tl.int32,
    columns: tl.int32,
    other_sample_step: tl.int64,
    other_step: tl.int64,
    INTERLEAVED: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Gives every pixel the gradient of its cell, and adds the other that it has. One program writes BLOCK_P pixels of
    BLOCK_C channels of one sample."""
    pixels = height.to(tl.int64) * width
    blocks = tl.cdiv(pixels, BLOCK_P)
    tiles = tl.cdiv(channels, BLOCK_C)
    program = tl.program_id(0).to(tl.int64)
    channel = (program // blocks % tiles).to(tl.int32) * BLOCK_C + tl.arange(0, BLOCK_C)
    sample = program // blocks // tiles
    start = program % blocks * BLOCK_P
    first_row = start // width
    # Beyond 2^31 pixels a division of each pixel's number would be slow; of its distance from a row it is not.
    local = (start - first_row * width).to(tl.int32) + tl.arange(0, BLOCK_P)
    row = first_row.to(tl.int32) + local // width
    column = local % width
    table = tl.maximum(height, width) + 1
    there = row < height
    cell = tl.load(tables + table + row, mask=there, other=0) * columns
    cell += tl.load(tables + 3 * table + column)
    cells = rows * columns
    if INTERLEAVED:
        gradients += sample * cells * channels
        source = cell.to(tl.int64)[None, :] * channels + channel[:, None]
    else:
        gradients += sample * channels * cells
        source = channel.to(tl.int64)[:, None] * cells + cell[None, :]
    pixel = start + tl.arange(0, BLOCK_P)
    mask = tile_mask(channel, channels, pixel, pixels, INTERLEAVED, ALIGNMENT)
    value = tl.load(gradients + source, mask=mask, other=0.0)
    if other is not None:
        other += sample * aligned(other_sample_step, ALIGNMENT)
        offsets = tile_offsets(channel, pixel, other_step, INTERLEAVED, ALIGNMENT)
        value += tl.load(other + offsets, mask=mask, other=0.0).to(value.dtype)
    step = channels.to(tl.int64) if INTERLEAVED else pixels
    offsets = tile_offsets(channel, pixel, step, INTERLEAVED, ALIGNMENT)
    grad_x += (
        sample * aligned(channels, ALIGNMENT if INTERLEAVED else 1) * aligned(pixels, 1 if INTERLEAVED else ALIGNMENT)
    )
    tl.store(grad_x + offsets, value, mask=mask)

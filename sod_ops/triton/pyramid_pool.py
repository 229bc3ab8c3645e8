"""Pyramid pooling in Triton: what is launched. The kernels are in _pyramid_pool_kernels.py.

Forward, 3 launches: the cells' tables, the sums of the cells, the means of the bins. Backward, 3: the tables, the
gradients of the cells, and x's. One more of the second kind for each four levels beyond the first four.

Traffic of the maps: the forward reads x once, the backward writes x's gradient once. Cells are about a tenth of that.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sod_ops.triton._planes import ceil_div, device_guard, map_steps, power_of_two
from sod_ops.triton._pyramid_pool_kernels import (
    cell_gradients_kernel,
    cell_sums_kernel,
    expand_kernel,
    means_kernel,
    tables_kernel,
)

_TILE = 2048
_CHANNELS = 64  # of a program that works on cells
_TALLEST_CELL = 8  # so that a tall bin's rows are shared by several programs
_LEVELS_TOGETHER = 4  # as many results as one kernel writes


class _Cells(NamedTuple):
    """What the cells of a map and its levels depend on."""

    height: int
    width: int
    cut: int
    rows: int
    columns: int


class _Level(NamedTuple):
    """Up to four levels that one launch serves: their tensors, padded with None, and their bins."""

    tensors: tuple[Tensor | None, ...]
    bins: tuple[int, ...]


def pyramid_pool(x: Tensor, bins: Sequence[int]) -> list[Tensor]:
    """The levels' means; arguments as those of the operator, x in one of the two memory formats."""
    samples, channels, height, width = x.shape
    interleaved, sample_step, step = map_steps(x.shape, x.stride())
    memory_format = torch.channels_last if interleaved else torch.contiguous_format
    outputs = [
        torch.empty((samples, channels, size, size), dtype=x.dtype, device=x.device, memory_format=memory_format)
        for size in bins
    ]
    if not samples:
        return outputs
    plan = _plan_cells(height, width, tuple(bins))
    sums = x.new_empty((samples, plan.rows * plan.columns, channels), dtype=_accumulator(x))
    row, constants = _plan_rows(channels, width, interleaved, x.element_size(), (sample_step, step))
    with device_guard(x):
        tables = _tables(x, plan, tuple(bins))
        cell_sums_kernel[(samples * ceil_div(channels, row) * plan.rows,)](
            x, tables, sums, channels, height, width, plan.rows, plan.columns, sample_step, step, **constants
        )
        block_c = min(power_of_two(channels), _CHANNELS)
        for level in _levels(outputs, bins):
            grid = (samples * ceil_div(channels, block_c) * sum(size * size for size in level.bins),)
            means_kernel[grid](
                sums, tables, *level.tensors, channels, height, width, plan.rows, plan.columns,
                BINS=level.bins, INTERLEAVED=interleaved, BLOCK_C=block_c, BLOCK_J=8, num_warps=2,
            )  # fmt: skip
    return outputs


def pyramid_pool_backward(
    grads: Sequence[Tensor],
    bins: Sequence[int],
    height: int,
    width: int,
    channels_last: bool,
    other: Tensor | None = None,
) -> Tensor:
    """The gradient of x, whose memory format the levels' gradients and the other gradient have."""
    first = grads[0]
    samples, channels = first.shape[:2]
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    grad_x = torch.empty(
        (samples, channels, height, width), dtype=first.dtype, device=first.device, memory_format=memory_format
    )
    if not samples:
        return grad_x
    plan = _plan_cells(height, width, tuple(bins))
    cells = plan.rows * plan.columns
    gradients = first.new_empty((samples, cells * channels), dtype=_accumulator(first))
    block_c = min(power_of_two(channels), _CHANNELS)
    steps = (0, 0) if other is None else map_steps(other.shape, other.stride())[1:]
    pixel_c, pixel_p, alignment = _plan_pixels(channels, height * width, channels_last, first.element_size(), steps)
    with device_guard(first):
        tables = _tables(first, plan, tuple(bins))
        for i, level in enumerate(_levels(grads, bins)):
            cell_gradients_kernel[(samples * ceil_div(channels, block_c) * cells,)](
                *level.tensors, tables, gradients, channels, height, width, plan.rows, plan.columns,
                BINS=level.bins, FIRST=i == 0, INTERLEAVED=channels_last, BLOCK_C=block_c, num_warps=2,
            )  # fmt: skip
        grid = (samples * ceil_div(channels, pixel_c) * ceil_div(height * width, pixel_p),)
        expand_kernel[grid](
            gradients, tables, other, grad_x, channels, height, width, plan.rows, plan.columns, *steps,
            INTERLEAVED=channels_last, ALIGNMENT=alignment, BLOCK_C=pixel_c, BLOCK_P=pixel_p, num_warps=4,
        )  # fmt: skip
    return grad_x


def _accumulator(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _levels(tensors: Sequence[Tensor], bins: Sequence[int]) -> Iterator[_Level]:
    for i in range(0, len(bins), _LEVELS_TOGETHER):
        some = tuple(tensors[i : i + _LEVELS_TOGETHER])
        yield _Level(some + (None,) * (_LEVELS_TOGETHER - len(some)), tuple(bins[i : i + _LEVELS_TOGETHER]))


def _tables(x: Tensor, plan: _Cells, bins: tuple[int, ...]) -> Tensor:
    """See tables_kernel. Made anew at every call: a copy from the host would have to wait for the device."""
    length = max(plan.height, plan.width) + 1
    tables = torch.empty((2, 2, length), dtype=torch.int32, device=x.device)
    tables_kernel[(2,)](
        tables, plan.height, plan.width, plan.cut, BINS=bins, BLOCK=power_of_two(length), num_warps=4
    )  # fmt: skip
    return tables


@functools.lru_cache(maxsize=4096)
def _plan_cells(height: int, width: int, bins: tuple[int, ...]) -> _Cells:
    cut = ceil_div(height, _TALLEST_CELL)

    def cells(length: int, levels: tuple[int, ...]) -> int:
        edges = {i * length // size for size in levels for i in range(size + 1)}
        edges |= {ceil_div(i * length, size) for size in levels for i in range(size + 1)}
        return len(edges) - 1

    return _Cells(height, width, cut, cells(height, (*bins, cut)), cells(width, bins))


def _plan_rows(
    channels: int, width: int, interleaved: bool, item_size: int, steps: tuple[int, int]
) -> tuple[int, dict[str, Any]]:
    """The tile of a program that walks rows: its channels, and the compile-time constants."""
    tile = _TILE if item_size <= 4 else _TILE // 4  # more numbers of eight bytes than that spill on sm_90
    if interleaved:
        block_c = min(power_of_two(channels), _CHANNELS)
        block_w = min(power_of_two(width), tile // block_c)
    else:
        block_w = min(power_of_two(width), tile)
        block_c = min(power_of_two(channels), tile // block_w)
    alignment = _alignment(channels if interleaved else width, *steps, item_size=item_size)
    return block_c, {
        "INTERLEAVED": interleaved,
        "ALIGNMENT": alignment,
        "BLOCK_C": block_c,
        "BLOCK_W": block_w,
        "num_warps": 4,
    }


def _plan_pixels(
    channels: int, pixels: int, interleaved: bool, item_size: int, steps: tuple[int, int]
) -> tuple[int, int, int]:
    """Channels and pixels of a tile, and their alignment. What a pixel costs is shared by its channels."""
    block_c = min(power_of_two(channels), _CHANNELS if interleaved else 16)
    block_p = min(power_of_two(pixels), _TILE // block_c)
    return block_c, block_p, _alignment(channels if interleaved else pixels, *steps, item_size=item_size)


def _alignment(*numbers: int, item_size: int) -> int:
    """The largest power of two that divides them all, as far as 16 bytes go."""
    bits = 16 // item_size
    for number in numbers:
        bits |= number
    return bits & -bits


def ahead_of_time_cases() -> Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Launcher calls, on the meta device, whose launches together need every variant that is worth compiling ahead."""
    for shape, bins, dtype, channels_last in (
        ((8, 512, 64, 64), (1, 2, 3, 6), torch.bfloat16, False),
        ((8, 512, 64, 64), (1, 2, 3, 6), torch.bfloat16, True),
        ((1, 2048, 60, 60), (1, 2, 3, 6), torch.float32, False),
        ((1, 2048, 60, 60), (1, 2, 3, 6), torch.float32, True),
        ((2, 64, 33, 31), (1, 3, 5, 7, 9), torch.float16, False),  # more levels than one launch serves
        ((2, 16, 31, 33), (1, 2, 3, 6), torch.float64, False),
        ((2, 16, 31, 33), (1, 2, 3, 6), torch.float64, True),
    ):
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        x = torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)
        yield pyramid_pool, (x, bins)
        grads = [x.new_empty((*shape[:2], size, size)) for size in bins]
        for other in (None, torch.cat([x, x], 1)[:, shape[1] :]):
            yield pyramid_pool_backward, (grads, bins, *shape[2:], channels_last, other)

"""The average filter in Triton: two launches, along rows and along columns."""
# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: N803 (compile-time constants in capitals, as everywhere in Triton)

from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sod_ops.triton._box_sums import Windows, as_bytes, averages_down, tile_down
from sod_ops.triton._planes import device_guard
from sod_ops.triton._rows import store

_NUMBERS = (
    *("height", "width", "half", "segments", "per_group", "programs", "scale"),
    *("channels", "n_step", "c_step", "h_step", "w_step"),
)


@triton.jit(do_not_specialize=_NUMBERS)
def box_down_kernel(
    sums,  # [N, C, H, W], dense
    averages,  # [N, C, H, W] at their steps
    height: tl.int64,
    width: tl.int64,
    half: tl.int64,
    segments: tl.int64,
    per_group: tl.int64,
    programs: tl.int64,
    scale: tl.float64,
    channels: tl.int64,
    n_step: tl.int64,
    c_step: tl.int64,
    h_step: tl.int64,
    w_step: tl.int64,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The averages over windows whose sums along rows are there."""
    plane, column, t, row, inside = tile_down(width, half, segments, per_group, programs, BLOCK_K, BLOCK_C)
    value = averages_down(sums, scale, plane, column, t, row, inside, height, width, half)
    place = plane // channels * n_step + plane % channels * c_step + row * h_step + column * w_step
    store(averages + place, value, inside & (row < height))


def box_filter(mask: Tensor, kernel_size: int) -> Tensor:
    """The averages, in the dtype of a floating mask, otherwise in float32."""
    averages = torch.empty_like(mask, dtype=mask.dtype if mask.is_floating_point() else torch.float32)
    if mask.numel() == 0:
        return averages
    maps, outputs = _as_maps(as_bytes(mask)), _as_maps(averages)
    windows = Windows(maps.shape, kernel_size, by_plane=False)
    sums = maps.new_empty(maps.shape, dtype=torch.float64 if mask.dtype == torch.float64 else torch.float32)
    windows.sum_across(maps, sums)
    with device_guard(mask):
        box_down_kernel[windows.grid](
            sums, outputs, *windows.down, maps.shape[1], *outputs.stride(), **windows.constants
        )
    # Leading dimensions that are no single one in memory were not written in place.
    return averages if outputs.data_ptr() == averages.data_ptr() else averages.copy_(outputs.view(averages.shape))


def box_filter_backward(grad_output: Tensor, kernel_size: int) -> Tensor:
    """The filter is its own adjoint."""
    return box_filter(grad_output, kernel_size)


def _as_maps(x: Tensor) -> Tensor:
    """[..., H, W] as [N, C, H, W]."""
    return x.reshape(-1, *x.shape[-3:]) if x.dim() > 3 else x.reshape(1, -1, *x.shape[-2:])


def ahead_of_time_cases() -> Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Launcher calls, on the meta device, whose launches together need every variant that is worth compiling ahead."""
    for dtype, kernel_sizes in (
        (torch.float32, (3, 31, 63)),
        (torch.float64, (31,)),
        (torch.bfloat16, (31,)),
        (torch.uint8, (31,)),
    ):
        for kernel_size in kernel_sizes:
            yield box_filter, (torch.empty((8, 1, 352, 352), dtype=dtype, device="meta"), kernel_size)
    # A window larger than the image.
    yield box_filter, (torch.empty((1, 1, 2048, 2048), device="meta"), 4097)

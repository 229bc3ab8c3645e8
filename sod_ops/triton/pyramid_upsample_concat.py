"""Upsampling into a concatenation in Triton: what is launched. The kernels are in
_pyramid_upsample_concat_kernels.py.

Forward: a copy of x into its place, and one launch for each branch, straight into its place. Backward: two launches for
each branch, which sum over rows and then over columns: no atomics, and a branch's part of the large gradient is read from
memory once.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sod_ops.triton._planes import ceil_div, device_guard, map_steps, power_of_two
from sod_ops.triton._pyramid_upsample_concat_kernels import gather_columns_kernel, gather_rows_kernel, resize_kernel

_TILE = 1024


def pyramid_upsample_concat(x: Tensor, branches: Sequence[Tensor], align_corners: bool, x_first: bool) -> Tensor:
    """The concatenation; arguments as those of the operator, in one of the two memory formats."""
    samples, channels, height, width = x.shape
    interleaved = map_steps(x.shape, x.stride())[0]
    all_channels = channels + sum(branch.shape[1] for branch in branches)
    y = _empty(x, (samples, all_channels, height, width), channels_last=interleaved)
    if not samples:
        return y
    with device_guard(x):
        x_offset = 0 if x_first else all_channels - channels
        y[:, x_offset : x_offset + channels].copy_(x)
        offset = channels if x_first else 0
        for branch in branches:
            _, own, inputs_h, inputs_w = branch.shape
            block_c, block_p = _tile(own, height * width, interleaved, x.element_size())
            resize_kernel[(samples * ceil_div(own, block_c) * ceil_div(height * width, block_p),)](
                branch, y, own, all_channels, offset, inputs_h, inputs_w, height, width,
                ALIGN_CORNERS=align_corners, INTERLEAVED=interleaved, BLOCK_C=block_c, BLOCK_P=block_p, num_warps=4,
            )  # fmt: skip
            offset += own
    return y


def pyramid_upsample_concat_backward(
    grad_output: Tensor, branch_shapes: Sequence[int], align_corners: bool, x_first: bool, channels_last: bool
) -> list[Tensor]:
    """The gradients of the branches, in the memory format of ``grad_output``."""
    samples, all_channels, height, width = grad_output.shape
    gradients = []
    offset = all_channels - sum(branch_shapes[::3]) if x_first else 0
    accumulator = torch.float64 if grad_output.dtype == torch.float64 else torch.float32
    with device_guard(grad_output):
        for own, inputs_h, inputs_w in zip(*(branch_shapes[i::3] for i in range(3)), strict=True):
            grad_branch = _empty(grad_output, (samples, own, inputs_h, inputs_w), channels_last=channels_last)
            gradients.append(grad_branch)
            if samples:
                rows = grad_output.new_empty((samples * own * inputs_h * width,), dtype=accumulator)
                block_c, block_p = _tile(own, width, channels_last, grad_output.element_size())
                blocks = ceil_div(own, block_c)
                gather_rows_kernel[(samples * blocks * inputs_h * ceil_div(width, block_p),)](
                    grad_output, rows, own, all_channels, offset, inputs_h, height, width,
                    ALIGN_CORNERS=align_corners, INTERLEAVED=channels_last,
                    BLOCK_C=block_c, BLOCK_P=block_p, num_warps=4,
                )  # fmt: skip
                gather_columns_kernel[(samples * blocks * inputs_h * inputs_w,)](
                    rows, grad_branch, own, inputs_h, inputs_w, width,
                    ALIGN_CORNERS=align_corners, INTERLEAVED=channels_last,
                    BLOCK_C=block_c, BLOCK_P=block_p, num_warps=4,
                )  # fmt: skip
            offset += own
    return gradients


def _empty(like: Tensor, shape: tuple[int, ...], *, channels_last: bool) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


def _tile(channels: int, pixels: int, interleaved: bool, item_size: int) -> tuple[int, int]:
    """Channels and pixels of a tile. What a pixel's weights cost is shared by its channels."""
    tile = _TILE if item_size <= 4 else _TILE // 2
    block_c = min(power_of_two(channels), 64 if interleaved else 16)
    return block_c, min(power_of_two(pixels), tile // block_c)


def ahead_of_time_cases() -> Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Launcher calls, on the meta device, whose launches together need every variant that is worth compiling ahead."""
    for dtype, channels_last, align_corners in (
        (torch.bfloat16, False, False),
        (torch.bfloat16, True, False),
        (torch.float32, False, True),
        (torch.float32, True, True),
        (torch.float16, False, False),
        (torch.float64, False, True),
        (torch.float64, True, False),
    ):
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        x, branch, y = (
            torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)
            for shape in ((2, 512, 60, 60), (2, 128, 6, 6), (2, 640, 60, 60))
        )
        yield pyramid_upsample_concat, (x, [branch], align_corners, True)
        yield pyramid_upsample_concat_backward, (y, (128, 6, 6), align_corners, True, channels_last)

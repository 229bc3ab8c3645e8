"""The structural similarity in Triton: sod_ops/triton/_similarity.py and, here, what is made of it."""
# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: N803 (compile-time constants in capitals, as everywhere in Triton)

from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sod_ops.triton._heads import MEAN, NONE, SIZES, grad_step, load_tile, sum_of_parts, tile_of
from sod_ops.triton._planes import device_guard
from sod_ops.triton._rows import SUM_BLOCK, store
from sod_ops.triton._similarity import (
    FIRST_STEPS,
    SECOND_STEPS,
    Similarity,
    averages_down,
    derivative_by_own,
    start_of,
)
from sod_ops.triton.focal_loss import double

_BY_FIRST_STEPS = ("a_n_step", "a_c_step", "a_h_step", "a_w_step")
_BY_SECOND_STEPS = ("b_n_step", "b_c_step", "b_h_step", "b_w_step")


@triton.jit(do_not_specialize=("count", "scale"))
def ssim_value_kernel(
    parts,  # [values, count]
    values,
    count: tl.int64,
    scale: tl.float64,
    BLOCK: tl.constexpr,
):
    """Sums of indices, times ``scale``."""
    b = tl.program_id(0).to(tl.int64)
    store(values + b, sum_of_parts(parts, b * count, count, 1, BLOCK) * double(scale), None)


@triton.jit(
    do_not_specialize=(
        *(*SIZES, "half", "map_step", "first", "channels", "scale", "g_step"),
        *(*FIRST_STEPS, *SECOND_STEPS, *_BY_FIRST_STEPS, *_BY_SECOND_STEPS),
    )
)
def ssim_gradient_kernel(
    averages,  # of derivatives along rows, as Similarity leaves them
    weights,  # [2 half + 1]
    height: tl.int64,
    width: tl.int64,
    half: tl.int64,
    map_step: tl.int64,
    x,  # [N, C, H, W] at its steps, like all that follow
    y,
    by_x,
    by_y,  # or None
    grad_output,  # one number or, at its step, one for each sample; or None: as if of ones
    first: tl.int64,
    channels: tl.int64,
    scale: tl.float64,
    g_step: tl.int64,
    x_n_step: tl.int64,
    x_c_step: tl.int64,
    x_h_step: tl.int64,
    x_w_step: tl.int64,
    y_n_step: tl.int64,
    y_c_step: tl.int64,
    y_h_step: tl.int64,
    y_w_step: tl.int64,
    a_n_step: tl.int64,
    a_c_step: tl.int64,
    a_h_step: tl.int64,
    a_w_step: tl.int64,
    b_n_step: tl.int64,
    b_c_step: tl.int64,
    b_h_step: tl.int64,
    b_w_step: tl.int64,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Gradients of the planes from ``first`` on: the derivatives times ``scale`` and the sample's gradient."""
    dtype: tl.constexpr = averages.dtype.element_ty
    plane, row, column, inside = tile_of(height, width, BLOCK_R, BLOCK_C)
    by_mean, by_squares, by_product, by_mean_y = averages_down(
        averages, weights, plane, row, column, height, width, half, map_step, by_y is not None
    )
    plane += first
    factor = double(scale)
    if grad_output is not None:
        factor *= tl.load(grad_output + plane // channels * g_step).to(tl.float64)
    factor = factor.to(dtype)
    of_x = x + start_of(plane, channels, x_n_step, x_c_step)
    of_y = y + start_of(plane, channels, y_n_step, y_c_step)
    a = load_tile(of_x, 0, row, column, inside, 0, x_h_step, x_w_step, dtype)
    b = load_tile(of_y, 0, row, column, inside, 0, y_h_step, y_w_step, dtype)
    place = by_x + start_of(plane, channels, a_n_step, a_c_step) + row * a_h_step + column * a_w_step
    store(place, factor * derivative_by_own(by_mean, by_squares, by_product, a, b), inside)
    if by_y is not None:
        place = by_y + start_of(plane, channels, b_n_step, b_c_step) + row * b_h_step + column * b_w_step
        store(place, factor * derivative_by_own(by_mean_y, by_squares, by_product, b, a), inside)


def ssim(
    x: Tensor, y: Tensor, window_size: int, sigma: float, reduction: int, first: bool, second: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The similarity and, where it is a mean or a sum, the gradients that are wanted; otherwise they are empty."""
    value = x.new_empty(() if reduction else x.shape[:1], dtype=torch.promote_types(x.dtype, y.dtype))
    by_x, by_y = _gradients(x, y, first and reduction != NONE, second and reduction != NONE)
    if x.numel() == 0:
        # No pixels: 0 / 0. The mean of no samples is NaN too.
        return value.fill_(float("nan") if x.shape[0] or reduction == MEAN else 0.0), by_x, by_y
    parts = _run(x, y, window_size, sigma, reduction, None, by_x, by_y)
    values = x.shape[0] if reduction == NONE else 1
    scale = 1 / x[0].numel() / (x.shape[0] if reduction == MEAN else 1)
    with device_guard(x):
        ssim_value_kernel[(values,)](parts, value, parts.numel() // values, scale, BLOCK=SUM_BLOCK)
    return value, by_x, by_y


def ssim_backward(
    grad_output: Tensor,
    x: Tensor,
    y: Tensor,
    window_size: int,
    sigma: float,
    reduction: int,
    first: bool,
    second: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients that are wanted; the others are empty."""
    by_x, by_y = _gradients(x, y, first, second)
    if x.numel() > 0 and (first or second):
        _run(x, y, window_size, sigma, reduction, grad_output, by_x, by_y)
    return by_x, by_y


def _gradients(x: Tensor, y: Tensor, first: bool, second: bool) -> tuple[Tensor, Tensor]:
    by_x, by_y = (torch.empty_like(t) if wanted else t.new_empty((0,)) for t, wanted in ((x, first), (y, second)))
    return by_x, by_y


def _run(
    x: Tensor,
    y: Tensor,
    window_size: int,
    sigma: float,
    reduction: int,
    grad_output: Tensor | None,
    by_x: Tensor,
    by_y: Tensor,
) -> Tensor:
    """Writes those gradients that aren't empty; returns sums of indices, sample after sample."""
    if by_y.numel() and not by_x.numel():
        # The index is symmetric.
        x, y, by_x, by_y = y, x, by_y, by_x
    wanted = [gradient for gradient in (by_x, by_y) if gradient.numel()]
    dtype = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
    similarity = Similarity(x, window_size, sigma, dtype, derivatives=2 + len(wanted) if wanted else 0)
    parts = x.new_empty((x.shape[0] * x.shape[1] * similarity.per_plane,), dtype=dtype)
    scale = 1 / x[0].numel() / (x.shape[0] if reduction == MEAN else 1)
    for first, planes in similarity.groups():
        similarity.run(x, y, first, planes, parts[first * similarity.per_plane :])
        if not wanted:
            continue
        with device_guard(x):
            ssim_gradient_kernel[(planes * similarity.per_plane,)](
                similarity.averages, *similarity.axis(0), similarity.map_step, x, y, wanted[0],
                wanted[1] if len(wanted) > 1 else None, grad_output, first, x.shape[1], scale,
                grad_step(grad_output, reduction), *x.stride(), *y.stride(), *wanted[0].stride(), *wanted[-1].stride(),
                **similarity.constants,
            )  # fmt: skip
    return parts


def ahead_of_time_cases() -> Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Launcher calls, on the meta device, whose launches together need every variant that is worth compiling ahead."""
    for dtype, other in (
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float16),
    ):
        x = torch.empty((4, 3, 256, 256), dtype=dtype, device="meta")
        y = x.new_empty(x.shape, dtype=other)
        yield ssim, (x, y, 11, 1.5, MEAN, True, True)
        yield ssim, (x, y, 11, 1.5, NONE, False, False)
        grad_output = x.new_empty((4,), dtype=torch.promote_types(dtype, other))
        yield ssim_backward, (grad_output, x, y, 11, 1.5, NONE, True, False)

"""The Tversky loss in Triton: csrc/math/tversky_loss.h has the arithmetic.

Each head takes a launch for its sums, one for its term and one for its gradient, and the loss one.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: N803 (compile-time constants in capitals, as everywhere in Triton)

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sod_ops.triton._box_sums import as_bytes
from sod_ops.triton._heads import (
    GRADIENT_STEPS,
    HEAD_STEPS,
    MASK_STEPS,
    MEAN,
    NONE,
    SIZES,
    Tiles,
    accumulator,
    empty_results,
    grad_step,
    load_tile,
    reduce_terms,
    steps,
    sum_of_parts,
    tile_of,
)
from sod_ops.triton._planes import device_guard
from sod_ops.triton._rows import SUM_BLOCK, store
from sod_ops.triton.logistic import logistic


@triton.jit(do_not_specialize=(*SIZES, *HEAD_STEPS, *MASK_STEPS))
def tversky_sums_kernel(
    logits,  # [B, 1, H, W] at their steps, like mask
    mask,
    parts,  # [programs, 3]
    height: tl.int64,
    width: tl.int64,
    x_n_step: tl.int64,
    x_h_step: tl.int64,
    x_w_step: tl.int64,
    y_n_step: tl.int64,
    y_h_step: tl.int64,
    y_w_step: tl.int64,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """This program's sums of p y, of p and of y."""
    dtype: tl.constexpr = parts.dtype.element_ty
    sample, row, column, inside = tile_of(height, width, BLOCK_R, BLOCK_C)
    x = load_tile(logits, sample, row, column, inside, x_n_step, x_h_step, x_w_step, dtype)
    y = load_tile(mask, sample, row, column, inside, y_n_step, y_h_step, y_w_step, dtype)
    p, _, _, _ = logistic(x, y)
    part = parts + tl.program_id(0).to(tl.int64) * 3
    tl.store(part, tl.sum(tl.sum(p * y, 1), 0))
    tl.store(part + 1, tl.sum(tl.sum(tl.where(inside, p, 0.0), 1), 0))
    tl.store(part + 2, tl.sum(tl.sum(y, 1), 0))


@triton.jit(do_not_specialize=("samples", "count", "alpha", "beta", "smooth", "weight", "g_step"))
def tversky_terms_kernel(
    parts,  # [samples, count, 3]
    grad_output,  # one number or, at its step, one for each sample; or None: as if of ones
    terms,  # [samples], or None
    coefficients,  # [samples, 2], or None
    samples: tl.int64,
    count: tl.int32,
    alpha: tl.float64,
    beta: tl.float64,
    smooth: tl.float64,
    weight: tl.float64,
    g_step: tl.int64,
    MEAN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A sample's term of the loss of one head, and the coefficients of its derivative."""
    b = tl.program_id(0).to(tl.int64)
    zero = tl.full((), 0.0, tl.float64)  # the interpreter would take numbers that are added to it for float32
    intersection = sum_of_parts(parts, b * count, count, 3, BLOCK)
    predicted = sum_of_parts(parts + 1, b * count, count, 3, BLOCK)
    target = sum_of_parts(parts + 2, b * count, count, 3, BLOCK)
    above = intersection + (smooth + zero)
    below = above + (alpha + zero) * (predicted - intersection) + (beta + zero) * (target - intersection)
    factor = weight + zero
    if MEAN:
        factor = factor / samples.to(tl.float64)
    if terms is not None:
        tl.store(terms + b, factor * (1.0 - above / below))
    if coefficients is not None:
        if grad_output is not None:
            factor *= tl.load(grad_output + b * g_step).to(tl.float64)
        factor = factor / (below * below)
        tl.store(coefficients + b * 2, factor * (above * (1.0 - (beta + zero)) - below))
        tl.store(coefficients + b * 2 + 1, factor * above * (alpha + zero))


@triton.jit(do_not_specialize=(*SIZES, *HEAD_STEPS, *MASK_STEPS, *GRADIENT_STEPS))
def tversky_gradient_kernel(
    logits,  # [B, 1, H, W] at their steps, like mask and gradient
    mask,
    coefficients,  # [B, 2]
    gradient,
    height: tl.int64,
    width: tl.int64,
    x_n_step: tl.int64,
    x_h_step: tl.int64,
    x_w_step: tl.int64,
    y_n_step: tl.int64,
    y_h_step: tl.int64,
    y_w_step: tl.int64,
    g_n_step: tl.int64,
    g_h_step: tl.int64,
    g_w_step: tl.int64,
    DOUBLE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """p (1 - p) (inside y + outside (1 - y))."""
    dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    sample, row, column, inside = tile_of(height, width, BLOCK_R, BLOCK_C)
    x = load_tile(logits, sample, row, column, inside, x_n_step, x_h_step, x_w_step, dtype)
    y = load_tile(mask, sample, row, column, inside, y_n_step, y_h_step, y_w_step, dtype)
    _, slope_of_p, _, _ = logistic(x, y)
    inside_mask = tl.load(coefficients + sample * 2).to(dtype)
    outside_mask = tl.load(coefficients + sample * 2 + 1).to(dtype)
    place = sample * g_n_step + row * g_h_step + column * g_w_step
    store(gradient + place, slope_of_p * (inside_mask * y + outside_mask * (1.0 - y)), inside)


def tversky_loss(
    logits: Sequence[Tensor],
    mask: Tensor,
    alpha: float,
    beta: float,
    smooth: float,
    weights: Sequence[float],
    reduction: int,
    with_gradient: bool,
) -> tuple[Tensor, list[Tensor]]:
    """The loss and, for a mean or a sum with ``with_gradient``, its gradient by each head."""
    loss, gradients = empty_results(logits, mask, reduction, with_gradient)
    samples = mask.shape[0]
    if samples == 0:
        return loss.fill_(float("nan") if reduction == MEAN else 0.0), gradients
    terms = mask.new_empty((len(logits), samples), dtype=torch.float64)
    _run(logits, mask, (alpha, beta, smooth), weights, reduction, None, terms, gradients)
    reduce_terms(terms, loss, reduction)
    return loss, gradients


def tversky_loss_backward(
    grad_output: Tensor,
    logits: Sequence[Tensor],
    mask: Tensor,
    alpha: float,
    beta: float,
    smooth: float,
    weights: Sequence[float],
    reduction: int,
) -> list[Tensor]:
    """The gradient by each head."""
    gradients = [torch.empty_like(head) for head in logits]
    if mask.numel() > 0:
        _run(logits, mask, (alpha, beta, smooth), weights, reduction, grad_output, None, gradients)
    return gradients


def _run(
    logits: Sequence[Tensor],
    mask: Tensor,
    options: tuple[float, float, float],
    weights: Sequence[float],
    reduction: int,
    grad_output: Tensor | None,
    terms: Tensor | None,
    gradients: list[Tensor],
) -> None:
    """Writes the terms of every head's loss and the gradients, whichever have a place to go."""
    samples, _, height, width = mask.shape
    dtype = accumulator(logits, mask)
    y = as_bytes(mask)
    tiles = Tiles(height, width)
    parts = mask.new_empty((samples * tiles.per_sample, 3), dtype=dtype)
    coefficients = mask.new_empty((samples, 2), dtype=torch.float64) if gradients else None
    g_step = grad_step(grad_output, reduction)
    grid = (samples * tiles.per_sample,)
    with device_guard(mask):
        for index, (head, weight) in enumerate(zip(logits, weights, strict=True)):
            if grid[0] > 0:
                tversky_sums_kernel[grid](head, y, parts, height, width, *steps(head), *steps(y), **tiles.constants)
            tversky_terms_kernel[(samples,)](
                parts, grad_output, None if terms is None else terms[index], coefficients,
                samples, tiles.per_sample, *options, weight, g_step, MEAN=reduction == MEAN, BLOCK=SUM_BLOCK,
            )  # fmt: skip
            if coefficients is not None and grid[0] > 0:
                gradient = gradients[index]
                tversky_gradient_kernel[grid](
                    head, y, coefficients, gradient, height, width, *steps(head), *steps(y), *steps(gradient),
                    DOUBLE=dtype == torch.float64, **tiles.constants,
                )  # fmt: skip


def ahead_of_time_cases() -> Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Launcher calls, on the meta device, whose launches together need every variant that is worth compiling ahead."""
    for dtype, mask_dtype in (
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.uint8),
    ):
        logits = torch.empty((8, 1, 352, 352), dtype=dtype, device="meta")
        mask = logits.new_empty(logits.shape, dtype=mask_dtype)
        options = 0.3, 0.7, 1.0, [1.0]
        yield tversky_loss, ([logits], mask, *options, MEAN, True)
        yield tversky_loss, ([logits], mask, *options, NONE, False)
        grad_output = logits.new_empty((8,), dtype=torch.promote_types(dtype, mask_dtype))
        yield tversky_loss_backward, (grad_output, [logits], mask, *options, NONE)

"""The structure loss in Triton: csrc/math/structure_loss.h has the arithmetic.

The pixels' weights take two launches and two maps, whatever the number of heads; then each head takes one for its sums, one
for its terms and one for its gradient, and the loss one.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: N803 (compile-time constants in capitals, as everywhere in Triton)

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sod_ops.triton._box_sums import Windows, as_bytes, averages_down, tile_down
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
    steps,
    sum_of_parts,
    tile_of,
)
from sod_ops.triton._planes import device_guard
from sod_ops.triton._rows import SUM_BLOCK, store, sum_kernel
from sod_ops.triton.focal_loss import double
from sod_ops.triton.logistic import logistic


@triton.jit(do_not_specialize=(*SIZES, "half", "segments", "per_group", "programs", "scale", *MASK_STEPS))
def structure_weights_kernel(
    sums,  # [B, 1, H, W], dense
    mask,  # [B, 1, H, W] at its steps
    weights,  # like sums
    parts,  # [programs]
    height: tl.int64,
    width: tl.int64,
    half: tl.int64,
    segments: tl.int64,
    per_group: tl.int64,
    programs: tl.int64,
    scale: tl.float64,
    y_n_step: tl.int64,
    y_h_step: tl.int64,
    y_w_step: tl.int64,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Pixels' weights from the mask and the windows' sums along its rows; and this program's sum of them."""
    sample, column, t, row, inside = tile_down(width, half, segments, per_group, programs, BLOCK_K, BLOCK_C)
    average = averages_down(sums, scale, sample, column, t, row, inside, height, width, half)
    inside &= row < height
    y = load_tile(mask, sample, row, column, inside, y_n_step, y_h_step, y_w_step, sums.dtype.element_ty)
    weight = 1.0 + 5.0 * tl.abs(average - y)
    tl.store(weights + (sample * height + row) * width + column, weight, mask=inside)
    tl.store(parts + tl.program_id(0), tl.sum(tl.sum(tl.where(inside, weight, 0.0), 1), 0))


@triton.jit(do_not_specialize=(*SIZES, *HEAD_STEPS, *MASK_STEPS))
def structure_sums_kernel(
    logits,  # [B, 1, H, W] at their steps, like mask
    mask,
    weights,  # dense
    parts,  # [programs, 3]
    height: tl.int64,
    width: tl.int64,
    x_n_step: tl.int64,
    x_h_step: tl.int64,
    x_w_step: tl.int64,
    y_n_step: tl.int64,
    y_h_step: tl.int64,
    y_w_step: tl.int64,
    PUBLISHED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """This program's sums of cross entropy (weighted; as PUBLISHED, not), of w p y and of w (p + y)."""
    dtype: tl.constexpr = weights.dtype.element_ty
    sample, row, column, inside = tile_of(height, width, BLOCK_R, BLOCK_C)
    x = load_tile(logits, sample, row, column, inside, x_n_step, x_h_step, x_w_step, dtype)
    y = load_tile(mask, sample, row, column, inside, y_n_step, y_h_step, y_w_step, dtype)
    w = load_tile(weights, sample, row, column, inside, height * width, width, 1, dtype)
    p, _, _, cross_entropy = logistic(x, y)
    if PUBLISHED:
        cross_entropy = tl.where(inside, cross_entropy, 0.0)
    else:
        cross_entropy = w * cross_entropy
    part = parts + tl.program_id(0).to(tl.int64) * 3
    tl.store(part, tl.sum(tl.sum(cross_entropy, 1), 0))
    tl.store(part + 1, tl.sum(tl.sum(w * p * y, 1), 0))
    tl.store(part + 2, tl.sum(tl.sum(w * (p + y), 1), 0))


@triton.jit(do_not_specialize=("samples", "pixels", "count", "weight_count", "weight", "g_step"))
def structure_terms_kernel(
    parts,  # [samples, count, 3]
    weight_parts,  # [samples, weight_count]
    grad_output,  # one number or, at its step, one for each sample; or None: as if of ones
    terms,  # [2, samples], or None
    coefficients,  # [samples, 4], or None
    samples: tl.int64,
    pixels: tl.int64,
    count: tl.int32,
    weight_count: tl.int32,
    weight: tl.float64,
    g_step: tl.int64,
    MEAN: tl.constexpr,
    PUBLISHED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A sample's two terms of the loss of one head, and the coefficients of its derivative."""
    b = tl.program_id(0).to(tl.int64)
    cross_entropy = sum_of_parts(parts, b * count, count, 3, BLOCK)
    intersection = sum_of_parts(parts + 1, b * count, count, 3, BLOCK) + 1.0
    rest = sum_of_parts(parts + 2, b * count, count, 3, BLOCK) - intersection + 2.0
    factor = double(weight)
    size = samples.to(tl.float64)
    if MEAN:
        factor = factor / size
    if PUBLISHED:
        total = pixels.to(tl.float64)
    else:
        total = sum_of_parts(weight_parts, b * weight_count, weight_count, 1, BLOCK)
    if terms is not None:
        tl.store(terms + b, factor * cross_entropy / total)
        tl.store(terms + samples + b, factor * (1.0 - intersection / rest))
    if coefficients is not None:
        gradient = factor
        batch = factor * size  # the sum of all samples' gradients
        if grad_output is not None:
            gradient = factor * tl.load(grad_output + b * g_step).to(tl.float64)
            if g_step == 0:
                batch = gradient * size
            else:
                batch = factor * sum_of_parts(grad_output, 0, samples.to(tl.int32), g_step, BLOCK)
        if PUBLISHED:
            tl.store(coefficients + b * 4, factor * 0.0)
            tl.store(coefficients + b * 4 + 1, batch / (size * total))
        else:
            tl.store(coefficients + b * 4, gradient / total)
            tl.store(coefficients + b * 4 + 1, factor * 0.0)
        tl.store(coefficients + b * 4 + 2, -gradient * (rest + intersection) / (rest * rest))
        tl.store(coefficients + b * 4 + 3, gradient * intersection / (rest * rest))


@triton.jit(do_not_specialize=("heads", "samples"))
def structure_losses_kernel(
    terms,  # [heads, 2, samples]
    losses,  # [samples]
    heads: tl.int32,
    samples: tl.int64,
    PUBLISHED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A sample's loss from its terms; as PUBLISHED, the cross entropy is the mean over all samples."""
    b = tl.program_id(0).to(tl.int64)
    loss = tl.full((), 0.0, tl.float64)
    for h in range(heads):
        of_head = terms + h * 2 * samples
        if PUBLISHED:
            loss += sum_of_parts(of_head, 0, samples.to(tl.int32), 1, BLOCK) / samples.to(tl.float64)
        else:
            loss += tl.load(of_head + b)
        loss += tl.load(of_head + samples + b)
    store(losses + b, loss, None)


@triton.jit(do_not_specialize=(*SIZES, *HEAD_STEPS, *MASK_STEPS, *GRADIENT_STEPS))
def structure_gradient_kernel(
    logits,  # [B, 1, H, W] at their steps, like mask and gradient
    mask,
    weights,  # dense
    coefficients,  # [B, 4]
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
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """(weighted w + plain) (p - y) + w p (1 - p) (slope y + offset)."""
    dtype: tl.constexpr = weights.dtype.element_ty
    sample, row, column, inside = tile_of(height, width, BLOCK_R, BLOCK_C)
    x = load_tile(logits, sample, row, column, inside, x_n_step, x_h_step, x_w_step, dtype)
    y = load_tile(mask, sample, row, column, inside, y_n_step, y_h_step, y_w_step, dtype)
    w = load_tile(weights, sample, row, column, inside, height * width, width, 1, dtype)
    _, slope_of_p, error, _ = logistic(x, y)
    weighted = tl.load(coefficients + sample * 4).to(dtype)
    plain = tl.load(coefficients + sample * 4 + 1).to(dtype)
    slope = tl.load(coefficients + sample * 4 + 2).to(dtype)
    offset = tl.load(coefficients + sample * 4 + 3).to(dtype)
    value = (weighted * w + plain) * error + w * slope_of_p * (slope * y + offset)
    store(gradient + sample * g_n_step + row * g_h_step + column * g_w_step, value, inside)


def structure_loss(
    logits: Sequence[Tensor],
    mask: Tensor,
    kernel_size: int,
    as_published: bool,
    weights: Sequence[float],
    reduction: int,
    with_gradient: bool,
) -> tuple[Tensor, list[Tensor]]:
    """The loss and, for a mean or a sum with ``with_gradient``, its gradient by each head."""
    loss, gradients = empty_results(logits, mask, reduction, with_gradient)
    if mask.numel() == 0:
        # No pixels: 0 / 0. The mean of no samples is NaN too.
        return loss.fill_(float("nan") if mask.shape[0] or reduction == MEAN else 0.0), gradients
    samples = mask.shape[0]
    terms = mask.new_empty((len(logits), 2, samples), dtype=torch.float64)
    _run(logits, mask, kernel_size, as_published, weights, reduction, None, terms, gradients)
    with device_guard(mask):
        if reduction == NONE:
            structure_losses_kernel[(samples,)](
                terms, loss, len(logits), samples, PUBLISHED=as_published, BLOCK=SUM_BLOCK
            )
        else:
            sum_kernel[(1,)](terms, loss, terms.numel(), BLOCK=SUM_BLOCK)
    return loss, gradients


def structure_loss_backward(
    grad_output: Tensor,
    logits: Sequence[Tensor],
    mask: Tensor,
    kernel_size: int,
    as_published: bool,
    weights: Sequence[float],
    reduction: int,
) -> list[Tensor]:
    """The gradient by each head."""
    gradients = [torch.empty_like(head) for head in logits]
    if mask.numel() > 0:
        _run(logits, mask, kernel_size, as_published, weights, reduction, grad_output, None, gradients)
    return gradients


def _run(
    logits: Sequence[Tensor],
    mask: Tensor,
    kernel_size: int,
    as_published: bool,
    head_weights: Sequence[float],
    reduction: int,
    grad_output: Tensor | None,
    terms: Tensor | None,
    gradients: list[Tensor],
) -> None:
    """Writes the terms of every head's loss and the gradients, whichever have a place to go."""
    samples, _, height, width = mask.shape
    dtype = accumulator(logits, mask)
    y = as_bytes(mask)
    windows, tiles = Windows(mask.shape, kernel_size, by_plane=True), Tiles(height, width)
    sums, weights = (mask.new_empty(mask.shape, dtype=dtype) for _ in range(2))
    windows.sum_across(y, sums)
    weight_parts = mask.new_empty(windows.grid, dtype=dtype)
    parts = mask.new_empty((samples * tiles.per_sample, 3), dtype=dtype)
    coefficients = mask.new_empty((samples, 4), dtype=torch.float64) if gradients else None
    g_step = grad_step(grad_output, reduction)
    grid = (samples * tiles.per_sample,)
    with device_guard(mask):
        structure_weights_kernel[windows.grid](
            sums, y, weights, weight_parts, *windows.down, *steps(y), **windows.constants
        )
        for index, (head, weight) in enumerate(zip(logits, head_weights, strict=True)):
            structure_sums_kernel[grid](
                head, y, weights, parts, height, width, *steps(head), *steps(y),
                PUBLISHED=as_published, **tiles.constants,
            )  # fmt: skip
            structure_terms_kernel[(samples,)](
                parts, weight_parts, grad_output, None if terms is None else terms[index], coefficients,
                samples, height * width, tiles.per_sample, windows.programs, weight, g_step,
                MEAN=reduction == MEAN, PUBLISHED=as_published, BLOCK=SUM_BLOCK,
            )  # fmt: skip
            if coefficients is not None:
                gradient = gradients[index]
                structure_gradient_kernel[grid](
                    head, y, weights, coefficients, gradient, height, width, *steps(head), *steps(y), *steps(gradient),
                    **tiles.constants,
                )  # fmt: skip


def ahead_of_time_cases() -> Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Launcher calls, on the meta device, whose launches together need every variant that is worth compiling ahead."""
    float32, float64, bfloat16 = torch.float32, torch.float64, torch.bfloat16
    for dtype, mask_dtype, published in (
        (float32, float32, False),
        (float64, float64, True),
        (bfloat16, float32, True),
        (torch.float16, torch.uint8, False),
    ):
        logits = torch.empty((8, 1, 352, 352), dtype=dtype, device="meta")
        mask = logits.new_empty(logits.shape, dtype=mask_dtype)
        yield structure_loss, ([logits], mask, 31, published, [1.0], MEAN, True)
        yield structure_loss, ([logits], mask, 31, published, [1.0], NONE, False)
        grad_output = logits.new_empty((8,), dtype=torch.promote_types(dtype, mask_dtype))
        yield structure_loss_backward, (grad_output, [logits], mask, 31, published, [1.0], NONE)

"""BASNet's hybrid loss in Triton: csrc/math/bce_ssim_iou_loss.h has the arithmetic, sod_ops/triton/_similarity.py the rest.

The mask's averages along rows are taken for the first head and kept for the others.
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
from sod_ops.triton._similarity import Similarity, averages_down, derivative_by_own
from sod_ops.triton.cross_entropy import cross_entropy_derivative, cross_entropy_of
from sod_ops.triton.focal_loss import double

_NUMBERS = ("bce_weight", "ssim_weight", "iou_weight", "smooth")


@triton.jit(do_not_specialize=(*SIZES, *HEAD_STEPS, *MASK_STEPS))
def hybrid_sums_kernel(
    probabilities,  # [B, 1, H, W] at their steps, like mask
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
    """This program's sums of cross entropy, of p y and of p + y."""
    dtype: tl.constexpr = parts.dtype.element_ty
    sample, row, column, inside = tile_of(height, width, BLOCK_R, BLOCK_C)
    p = load_tile(probabilities, sample, row, column, inside, x_n_step, x_h_step, x_w_step, dtype)
    y = load_tile(mask, sample, row, column, inside, y_n_step, y_h_step, y_w_step, dtype)
    part = parts + tl.program_id(0).to(tl.int64) * 3
    # Beyond the map everything is 0, and so is all that it adds.
    tl.store(part, tl.sum(tl.sum(cross_entropy_of(p, y), 1), 0))
    tl.store(part + 1, tl.sum(tl.sum(p * y, 1), 0))
    tl.store(part + 2, tl.sum(tl.sum(p + y, 1), 0))


@triton.jit(do_not_specialize=("pixels", "count", "factor", *_NUMBERS, "g_step"))
def hybrid_terms_kernel(
    parts,  # [samples, count, 3]
    indices,  # [samples, count]
    grad_output,  # one number or, at its step, one for each sample; or None: as if of ones
    terms,  # [samples], or None
    coefficients,  # [samples, 4], or None
    pixels: tl.int64,
    count: tl.int32,
    factor: tl.float64,
    bce_weight: tl.float64,
    ssim_weight: tl.float64,
    iou_weight: tl.float64,
    smooth: tl.float64,
    g_step: tl.int64,
    BLOCK: tl.constexpr,
):
    """A sample's term of the loss of one head, and the coefficients of its derivative."""
    b = tl.program_id(0).to(tl.int64)
    size = pixels.to(tl.float64)
    first = b * count
    scale = double(factor)
    intersection = sum_of_parts(parts + 1, first, count, 3, BLOCK)
    both = intersection + double(smooth)
    either = sum_of_parts(parts + 2, first, count, 3, BLOCK) - intersection + double(smooth)
    nothing = either == 0.0
    divisor = tl.where(nothing, 1.0, either)
    if terms is not None:
        cross_entropy = sum_of_parts(parts, first, count, 3, BLOCK) / size
        index = sum_of_parts(indices, first, count, 1, BLOCK) / size
        overlap = tl.where(nothing, 0.0, 1.0 - both / divisor)
        value = double(bce_weight) * cross_entropy + double(ssim_weight) * (1.0 - index)
        tl.store(terms + b, scale * (value + double(iou_weight) * overlap))
    if coefficients is not None:
        if grad_output is not None:
            scale *= tl.load(grad_output + b * g_step).to(tl.float64)
        of_overlap = tl.where(nothing, 0.0, scale * double(iou_weight) / (divisor * divisor))
        place = coefficients + b * 4
        tl.store(place, scale * double(bce_weight) / size)
        tl.store(place + 1, -of_overlap * (either + both))
        tl.store(place + 2, of_overlap * both)
        tl.store(place + 3, -scale * double(ssim_weight) / size)


@triton.jit(do_not_specialize=(*SIZES, "half", "map_step", *HEAD_STEPS, *MASK_STEPS, *GRADIENT_STEPS))
def hybrid_gradient_kernel(
    averages,  # of derivatives along rows, as Similarity leaves them
    weights,  # [2 half + 1]
    height: tl.int64,
    width: tl.int64,
    half: tl.int64,
    map_step: tl.int64,
    probabilities,  # [B, 1, H, W] at their steps, like mask and gradient
    mask,
    coefficients,  # [B, 4]
    gradient,
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
    """The derivatives at one tile's pixels."""
    dtype: tl.constexpr = averages.dtype.element_ty
    sample, row, column, inside = tile_of(height, width, BLOCK_R, BLOCK_C)
    by_mean, by_squares, by_product, _ = averages_down(
        averages, weights, sample, row, column, height, width, half, map_step, False
    )
    p = load_tile(probabilities, sample, row, column, inside, x_n_step, x_h_step, x_w_step, dtype)
    y = load_tile(mask, sample, row, column, inside, y_n_step, y_h_step, y_w_step, dtype)
    of_sample = coefficients + sample * 4
    value = tl.load(of_sample).to(dtype) * cross_entropy_derivative(p, y)
    value += tl.load(of_sample + 1).to(dtype) * y + tl.load(of_sample + 2).to(dtype)
    value += tl.load(of_sample + 3).to(dtype) * derivative_by_own(by_mean, by_squares, by_product, p, y)
    store(gradient + sample * g_n_step + row * g_h_step + column * g_w_step, value, inside)


def bce_ssim_iou_loss(
    probabilities: Sequence[Tensor],
    mask: Tensor,
    bce_weight: float,
    ssim_weight: float,
    iou_weight: float,
    smooth: float,
    window_size: int,
    sigma: float,
    weights: Sequence[float],
    reduction: int,
    with_gradient: bool,
) -> tuple[Tensor, list[Tensor]]:
    """The loss and, for a mean or a sum with ``with_gradient``, its gradient by each head."""
    loss, gradients = empty_results(probabilities, mask, reduction, with_gradient)
    if mask.numel() == 0:
        # No pixels: 0 / 0. The mean of no samples is NaN too.
        return loss.fill_(float("nan") if mask.shape[0] or reduction == MEAN else 0.0), gradients
    terms = mask.new_empty((len(probabilities), mask.shape[0]), dtype=torch.float64)
    numbers = (bce_weight, ssim_weight, iou_weight, smooth)
    _run(probabilities, mask, numbers, window_size, sigma, weights, reduction, None, terms, gradients)
    reduce_terms(terms, loss, reduction)
    return loss, gradients


def bce_ssim_iou_loss_backward(
    grad_output: Tensor,
    probabilities: Sequence[Tensor],
    mask: Tensor,
    bce_weight: float,
    ssim_weight: float,
    iou_weight: float,
    smooth: float,
    window_size: int,
    sigma: float,
    weights: Sequence[float],
    reduction: int,
) -> list[Tensor]:
    """The gradient by each head."""
    gradients = [torch.empty_like(head) for head in probabilities]
    if mask.numel() > 0:
        numbers = (bce_weight, ssim_weight, iou_weight, smooth)
        _run(probabilities, mask, numbers, window_size, sigma, weights, reduction, grad_output, None, gradients)
    return gradients


def _run(
    probabilities: Sequence[Tensor],
    mask: Tensor,
    numbers: tuple[float, float, float, float],
    window_size: int,
    sigma: float,
    head_weights: Sequence[float],
    reduction: int,
    grad_output: Tensor | None,
    terms: Tensor | None,
    gradients: list[Tensor],
) -> None:
    """Writes the terms of every head's loss and the gradients, whichever have a place to go."""
    samples, _, height, width = mask.shape
    dtype = accumulator(probabilities, mask)
    similarity = Similarity(mask, window_size, sigma, dtype, derivatives=3 if gradients else 0)
    constants = similarity.constants
    g_step = grad_step(grad_output, reduction)
    for first, count in similarity.groups():
        group = slice(first, first + count)
        y = as_bytes(mask)[group]
        grad = grad_output if grad_output is None or reduction != NONE else grad_output[group]
        parts, indices = (mask.new_empty((count * similarity.per_plane, n), dtype=dtype) for n in (3, 1))
        coefficients = mask.new_empty((count, 4), dtype=torch.float64) if gradients else None
        grid = (count * similarity.per_plane,)
        for index, (head, weight) in enumerate(zip(probabilities, head_weights, strict=True)):
            p = head[group]
            similarity.run(p, y, 0, count, indices, with_y=index == 0)
            with device_guard(mask):
                hybrid_sums_kernel[grid](p, y, parts, height, width, *steps(p), *steps(y), **constants)
                hybrid_terms_kernel[(count,)](
                    parts, indices, grad, None if terms is None else terms[index, group], coefficients,
                    height * width, similarity.per_plane, weight / (samples if reduction == MEAN else 1), *numbers,
                    g_step, BLOCK=SUM_BLOCK,
                )  # fmt: skip
                if coefficients is not None:
                    gradient = gradients[index][group]
                    hybrid_gradient_kernel[grid](
                        similarity.averages, *similarity.axis(0), similarity.map_step, p, y, coefficients, gradient,
                        *steps(p), *steps(y), *steps(gradient), **constants,
                    )  # fmt: skip


def ahead_of_time_cases() -> Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Launcher calls, on the meta device, whose launches together need every variant that is worth compiling ahead."""
    for dtype, mask_dtype in (
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.uint8),
    ):
        probabilities = torch.empty((4, 1, 256, 256), dtype=dtype, device="meta")
        mask = probabilities.new_empty(probabilities.shape, dtype=mask_dtype)
        options = (1.0, 1.0, 1.0, 0.0, 11, 1.5, [1.0, 1.0])
        yield bce_ssim_iou_loss, ([probabilities] * 2, mask, *options, MEAN, True)
        yield bce_ssim_iou_loss, ([probabilities] * 2, mask, *options, NONE, False)
        grad_output = probabilities.new_empty((4,), dtype=torch.promote_types(dtype, mask_dtype))
        yield bce_ssim_iou_loss_backward, (grad_output, [probabilities] * 2, mask, *options, NONE)

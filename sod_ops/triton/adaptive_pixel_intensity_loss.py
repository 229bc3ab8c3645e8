"""The adaptive pixel intensity loss in Triton: csrc/math/adaptive_pixel_intensity_loss.h has the arithmetic.

The pixels' weights take seven launches and two maps, whatever the number of heads; then each head takes one for its sums,
one for its term and one for its gradient, and the loss one.
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
    reduce_terms,
    steps,
    sum_of_parts,
    tile_of,
)
from sod_ops.triton._planes import device_guard
from sod_ops.triton._rows import SUM_BLOCK, store
from sod_ops.triton.cross_entropy import cross_entropy_derivative, cross_entropy_of

_WINDOWS = (3, 15, 31)


@triton.jit(do_not_specialize=(*SIZES, "half", "segments", "per_group", "programs", "scale", *MASK_STEPS))
def intensity_distance_kernel(
    sums,  # [B, 1, H, W], dense
    mask,  # [B, 1, H, W] at their steps
    weights,  # like sums
    parts,  # [programs], where LAST
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
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Adds one window's distances to the map ``weights``; after the LAST it holds the weights, ``parts`` their sums."""
    sample, column, t, row, inside = tile_down(width, half, segments, per_group, programs, BLOCK_K, BLOCK_C)
    average = averages_down(sums, scale, sample, column, t, row, inside, height, width, half)
    inside &= row < height
    y = load_tile(mask, sample, row, column, inside, y_n_step, y_h_step, y_w_step, sums.dtype.element_ty)
    place = weights + (sample * height + row) * width + column
    value = tl.abs(average - y)
    if not FIRST:
        value += tl.load(place, mask=inside, other=0.0)
    if LAST:
        value = 1.0 + 0.5 * value * y
        tl.store(parts + tl.program_id(0), tl.sum(tl.sum(tl.where(inside, value, 0.0), 1), 0))
    tl.store(place, value, mask=inside)


@triton.jit(do_not_specialize=("count",))
def intensity_totals_kernel(
    parts,  # [samples, count]
    totals,  # [samples]
    count: tl.int32,
    BLOCK: tl.constexpr,
):
    """The sum of each sample's weights."""
    b = tl.program_id(0).to(tl.int64)
    tl.store(totals + b, sum_of_parts(parts, b * count, count, 1, BLOCK))


@triton.jit(do_not_specialize=(*SIZES, *HEAD_STEPS, *MASK_STEPS))
def intensity_sums_kernel(
    probabilities,  # [B, 1, H, W] at their steps, like mask
    mask,
    weights,  # dense
    parts,  # [programs, 4]
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
    """This program's sums of cross entropy and absolute error (weighted; as PUBLISHED, not), of w p y and of w (p + y)."""
    dtype: tl.constexpr = weights.dtype.element_ty
    sample, row, column, inside = tile_of(height, width, BLOCK_R, BLOCK_C)
    p = load_tile(probabilities, sample, row, column, inside, x_n_step, x_h_step, x_w_step, dtype)
    y = load_tile(mask, sample, row, column, inside, y_n_step, y_h_step, y_w_step, dtype)
    w = load_tile(weights, sample, row, column, inside, height * width, width, 1, dtype)
    # Beyond the map everything is 0, and so is all that it adds.
    cross_entropy = cross_entropy_of(p, y)
    error = tl.abs(p - y)
    if not PUBLISHED:
        cross_entropy *= w
        error *= w
    part = parts + tl.program_id(0).to(tl.int64) * 4
    tl.store(part, tl.sum(tl.sum(cross_entropy, 1), 0))
    tl.store(part + 1, tl.sum(tl.sum(error, 1), 0))
    tl.store(part + 2, tl.sum(tl.sum(w * p * y, 1), 0))
    tl.store(part + 3, tl.sum(tl.sum(w * (p + y), 1), 0))


@triton.jit(do_not_specialize=("samples", "pixels", "count", "weight", "g_step"))
def intensity_terms_kernel(
    parts,  # [samples, count, 4]
    totals,  # [samples]
    grad_output,  # one number or, at its step, one for each sample; or None: as if of ones
    terms,  # [samples], or None
    coefficients,  # [samples, 6], or None
    samples: tl.int64,
    pixels: tl.int64,
    count: tl.int32,
    weight: tl.float64,
    g_step: tl.int64,
    MEAN: tl.constexpr,
    PUBLISHED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A sample's term of the loss of one head, and the coefficients of its derivative."""
    b = tl.program_id(0).to(tl.int64)
    size = pixels.to(tl.float64)
    everything = size * samples.to(tl.float64)
    factor = 0.7 * (weight + tl.full((), 0.0, tl.float64))
    if MEAN:
        factor = factor / samples.to(tl.float64)
    total = tl.load(totals + b)
    first = b * count
    norm = tl.where(total > size, total - size, size)
    intersection = sum_of_parts(parts + 2, first, count, 4, BLOCK) + 1.0
    rest = sum_of_parts(parts + 3, first, count, 4, BLOCK) - intersection + 2.0
    if terms is not None:
        if PUBLISHED:
            all_parts = count * samples.to(tl.int32)
            cross_entropy = total * (sum_of_parts(parts, 0, all_parts, 4, BLOCK) / everything)
            error = total * (sum_of_parts(parts + 1, 0, all_parts, 4, BLOCK) / everything)
        else:
            cross_entropy = sum_of_parts(parts, first, count, 4, BLOCK)
            error = sum_of_parts(parts + 1, first, count, 4, BLOCK)
        value = cross_entropy / (total + 0.5 * size) + 1.0 - intersection / rest + error / norm
        tl.store(terms + b, factor * value)
    if coefficients is not None:
        gradient = factor
        if grad_output is not None:
            gradient = factor * tl.load(grad_output + b * g_step).to(tl.float64)
        place = coefficients + b * 6
        if PUBLISHED:
            cross_entropies = tl.zeros([BLOCK], dtype=tl.float64)
            errors = tl.zeros([BLOCK], dtype=tl.float64)
            for start in range(0, samples.to(tl.int32), BLOCK):
                i = start + tl.arange(0, BLOCK)
                there = i < samples
                weights = tl.load(totals + i, mask=there, other=0.0)
                shares = factor * weights / everything
                if grad_output is not None:
                    shares *= tl.load(grad_output + i * g_step, mask=there, other=0.0).to(tl.float64)
                cross_entropies += shares / (weights + 0.5 * size)
                errors += shares / tl.where(weights > size, weights - size, size)
            tl.store(place, factor * 0.0)
            tl.store(place + 1, tl.sum(cross_entropies, 0))
            tl.store(place + 2, factor * 0.0)
            tl.store(place + 3, tl.sum(errors, 0))
        else:
            tl.store(place, gradient / (total + 0.5 * size))
            tl.store(place + 1, factor * 0.0)
            tl.store(place + 2, gradient / norm)
            tl.store(place + 3, factor * 0.0)
        tl.store(place + 4, -gradient * (rest + intersection) / (rest * rest))
        tl.store(place + 5, gradient * intersection / (rest * rest))


@triton.jit(do_not_specialize=(*SIZES, *HEAD_STEPS, *MASK_STEPS, *GRADIENT_STEPS))
def intensity_gradient_kernel(
    probabilities,  # [B, 1, H, W] at their steps, like mask and gradient
    mask,
    weights,  # dense
    coefficients,  # [B, 6]
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
    """The derivatives at one tile's pixels."""
    dtype: tl.constexpr = weights.dtype.element_ty
    sample, row, column, inside = tile_of(height, width, BLOCK_R, BLOCK_C)
    p = load_tile(probabilities, sample, row, column, inside, x_n_step, x_h_step, x_w_step, dtype)
    y = load_tile(mask, sample, row, column, inside, y_n_step, y_h_step, y_w_step, dtype)
    w = load_tile(weights, sample, row, column, inside, height * width, width, 1, dtype)
    of_sample = coefficients + sample * 6
    cross_entropy = tl.load(of_sample).to(dtype) * w + tl.load(of_sample + 1).to(dtype)
    error = tl.load(of_sample + 2).to(dtype) * w + tl.load(of_sample + 3).to(dtype)
    overlap = tl.load(of_sample + 4).to(dtype) * y + tl.load(of_sample + 5).to(dtype)
    difference = p - y
    sign = tl.where(difference > 0.0, 1.0, tl.where(difference < 0.0, -1.0, 0.0)).to(dtype)
    value = cross_entropy * cross_entropy_derivative(p, y) + error * sign + w * overlap
    store(gradient + sample * g_n_step + row * g_h_step + column * g_w_step, value, inside)


def adaptive_pixel_intensity_loss(
    probabilities: Sequence[Tensor],
    mask: Tensor,
    as_published: bool,
    weights: Sequence[float],
    reduction: int,
    with_gradient: bool,
) -> tuple[Tensor, list[Tensor]]:
    """The loss and, for a mean or a sum with ``with_gradient``, its gradient by each head."""
    loss, gradients = empty_results(probabilities, mask, reduction, with_gradient)
    if mask.numel() == 0:
        # No pixels: 0 / 0. The mean of no samples is NaN too.
        return loss.fill_(float("nan") if mask.shape[0] or reduction == MEAN else 0.0), gradients
    samples = mask.shape[0]
    terms = mask.new_empty((len(probabilities), samples), dtype=torch.float64)
    _run(probabilities, mask, as_published, weights, reduction, None, terms, gradients)
    reduce_terms(terms, loss, reduction)
    return loss, gradients


def adaptive_pixel_intensity_loss_backward(
    grad_output: Tensor,
    probabilities: Sequence[Tensor],
    mask: Tensor,
    as_published: bool,
    weights: Sequence[float],
    reduction: int,
) -> list[Tensor]:
    """The gradient by each head."""
    gradients = [torch.empty_like(head) for head in probabilities]
    if mask.numel() > 0:
        _run(probabilities, mask, as_published, weights, reduction, grad_output, None, gradients)
    return gradients


def _run(
    probabilities: Sequence[Tensor],
    mask: Tensor,
    as_published: bool,
    head_weights: Sequence[float],
    reduction: int,
    grad_output: Tensor | None,
    terms: Tensor | None,
    gradients: list[Tensor],
) -> None:
    """Writes the terms of every head's loss and the gradients, whichever have a place to go."""
    samples, _, height, width = mask.shape
    dtype = accumulator(probabilities, mask)
    y = as_bytes(mask)
    weights, totals = _weights(y, dtype)
    tiles = Tiles(height, width)
    parts = mask.new_empty((samples * tiles.per_sample, 4), dtype=dtype)
    coefficients = mask.new_empty((samples, 6), dtype=torch.float64) if gradients else None
    g_step = grad_step(grad_output, reduction)
    grid = (samples * tiles.per_sample,)
    with device_guard(mask):
        for index, (head, weight) in enumerate(zip(probabilities, head_weights, strict=True)):
            intensity_sums_kernel[grid](
                head, y, weights, parts, height, width, *steps(head), *steps(y),
                PUBLISHED=as_published, **tiles.constants,
            )  # fmt: skip
            intensity_terms_kernel[(samples,)](
                parts, totals, grad_output, None if terms is None else terms[index], coefficients,
                samples, height * width, tiles.per_sample, weight, g_step,
                MEAN=reduction == MEAN, PUBLISHED=as_published, BLOCK=SUM_BLOCK,
            )  # fmt: skip
            if coefficients is not None:
                gradient = gradients[index]
                intensity_gradient_kernel[grid](
                    head, y, weights, coefficients, gradient, height, width, *steps(head), *steps(y), *steps(gradient),
                    **tiles.constants,
                )  # fmt: skip


def _weights(mask: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The pixels' weights, and their sum in each sample."""
    samples = mask.shape[0]
    sums, weights = (mask.new_empty(mask.shape, dtype=dtype) for _ in range(2))
    totals = mask.new_empty((samples,), dtype=torch.float64)
    with device_guard(mask):
        for kernel_size in _WINDOWS:
            windows = Windows(mask.shape, kernel_size, by_plane=True)
            windows.sum_across(mask, sums)
            last = kernel_size == _WINDOWS[-1]
            parts = mask.new_empty(windows.grid if last else (0,), dtype=dtype)
            intensity_distance_kernel[windows.grid](
                sums, mask, weights, parts, *windows.down, *steps(mask),
                FIRST=kernel_size == _WINDOWS[0], LAST=last, **windows.constants,
            )  # fmt: skip
        intensity_totals_kernel[(samples,)](parts, totals, windows.programs, BLOCK=SUM_BLOCK)
    return weights, totals


def ahead_of_time_cases() -> Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Launcher calls, on the meta device, whose launches together need every variant that is worth compiling ahead."""
    for dtype, mask_dtype, published in (
        (torch.float32, torch.float32, False),
        (torch.float64, torch.float64, True),
        (torch.bfloat16, torch.float32, True),
        (torch.float16, torch.uint8, False),
    ):
        probabilities = torch.empty((8, 1, 320, 320), dtype=dtype, device="meta")
        mask = probabilities.new_empty(probabilities.shape, dtype=mask_dtype)
        yield adaptive_pixel_intensity_loss, ([probabilities], mask, published, [1.0], MEAN, True)
        yield adaptive_pixel_intensity_loss, ([probabilities], mask, published, [1.0], NONE, False)
        grad_output = probabilities.new_empty((8,), dtype=torch.promote_types(dtype, mask_dtype))
        yield adaptive_pixel_intensity_loss_backward, (grad_output, [probabilities], mask, published, [1.0], NONE)

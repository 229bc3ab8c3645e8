"""Softmax focal loss in Triton: sod_ops/reference/softmax_focal_loss.py has the formula, focal_loss.py the arithmetic.

One launch; before it one that counts the targets where the loss is a mean, and after it one that adds up the programs' sums
where it is a mean or a sum.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: N803 (compile-time constants in capitals, as everywhere in Triton)

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sod_ops._rows import as_rows
from sod_ops.triton._planes import ceil_div, device_guard, power_of_two
from sod_ops.triton._rows import SUM_BLOCK, store, sum_kernel
from sod_ops.triton.focal_loss import double, focus_of, softmax_focal

_OP = "softmax_focal_loss"
_MEAN = 1  # in the order of REDUCTIONS in sod_ops/reference/sigmoid_focal_loss.py

# Logits to a program of 128 threads. Where a position has more classes than a tile, they are taken a tile at a time.
_TILE = 2048
_DOUBLE_TILE = 512
_LOOP_TILE = 1024  # then, in float32: the sums that run along take registers
_COUNT_BLOCK = 1024  # targets that a program counts at a time
_MOST_COUNTS = 256  # programs that count

# Compiling for particular sizes or weights would mean compiling at every new shape or weight.
_SIZES = ("rows", "columns", "classes")
_STEPS = (
    *("t_row_step", "t_column_step", "x_row_step", "x_column_step", "x_class_step"),
    *("d_row_step", "d_column_step", "d_class_step", "g_row_step", "g_column_step", "alpha_step"),
)


@triton.jit(do_not_specialize=("rows", "columns", "row_step", "column_step", "ignore_index"))
def count_kernel(
    targets,
    counts,  # [programs]: how many of each program's targets are not ignored
    rows: tl.int64,
    columns: tl.int64,
    row_step: tl.int64,
    column_step: tl.int64,
    ignore_index: tl.int64,
    BLOCK: tl.constexpr,
):
    """Counts targets that are not ignored."""
    total = rows * columns
    found = tl.zeros([BLOCK], dtype=tl.int64)
    for start in range(tl.program_id(0).to(tl.int64) * BLOCK, total, tl.num_programs(0).to(tl.int64) * BLOCK):
        i = start + tl.arange(0, BLOCK)
        place = (i // columns) * row_step + (i % columns) * column_step
        target = tl.load(targets + place, mask=i < total, other=0).to(tl.int64)
        found += ((i < total) & (target != ignore_index)).to(tl.int64)
    tl.store(counts + tl.program_id(0), tl.sum(found, 0))


@triton.jit
def logits(inputs, place, k, x_class_step, inside, classes, dtype: tl.constexpr, UNIT_CLASS: tl.constexpr):
    """The logits of these positions and classes; those of no class are the least."""
    step = k if UNIT_CLASS else k * x_class_step
    return tl.load(inputs + place + step, mask=inside & (k < classes), other=float("-inf")).to(dtype)


@triton.jit(do_not_specialize=(*_SIZES, *_STEPS, "scale", "gamma", "ignore_index"))
def softmax_focal_loss_kernel(
    inputs,
    targets,
    alpha,  # [classes], or None: as if of ones
    grad_output,  # of each position, or one number where SCALAR, or None: as if of ones
    counts,  # [COUNTS]: together, the divisor of a mean; or None
    loss,  # dense, or None
    sums,  # [programs], or None
    gradient,  # or None
    rows: tl.int64,
    columns: tl.int64,
    classes: tl.int64,
    t_row_step: tl.int64,
    t_column_step: tl.int64,
    x_row_step: tl.int64,
    x_column_step: tl.int64,
    x_class_step: tl.int64,
    d_row_step: tl.int64,
    d_column_step: tl.int64,
    d_class_step: tl.int64,
    g_row_step: tl.int64,
    g_column_step: tl.int64,
    alpha_step: tl.int64,
    scale: tl.float64,
    gamma: tl.float64,
    ignore_index: tl.int64,
    FOCUS: tl.constexpr,
    SCALAR: tl.constexpr,
    COUNTS: tl.constexpr,
    UNIT_POSITION: tl.constexpr,
    UNIT_CLASS: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The losses of BLOCK_P positions, their sum, and grad_output times their derivatives; whichever have a place to go.

    UNIT_POSITION: neighbouring positions of a class lie side by side; UNIT_CLASS: neighbouring classes of a position do.
    WHOLE: a tile holds all classes, and the logits are read once.
    """
    dtype: tl.constexpr = tl.float64 if inputs.dtype.element_ty == tl.float64 else tl.float32
    across = tl.cdiv(columns, BLOCK_P)
    row = (tl.program_id(0) // across).to(tl.int64)
    column = (tl.program_id(0) % across).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    there = column < columns
    inside = there[:, None]
    k = tl.arange(0, BLOCK_K)[None, :].to(tl.int64)
    x_place = row * x_row_step + (column if UNIT_POSITION else column * x_column_step)[:, None]

    target = tl.load(targets + row * t_row_step + column * t_column_step, mask=there, other=0).to(tl.int64)
    ignored = (target == ignore_index) | (column >= columns)
    known = (target >= 0) & (target < classes)
    chosen = target[:, None]

    if WHOLE:
        x = logits(inputs, x_place, k, x_class_step, inside, classes, dtype, UNIT_CLASS)
        largest = tl.max(x, 1)
        e = tl.exp(x - largest[:, None])
        others = tl.sum(tl.where((k == chosen) | (k >= classes), 0.0, e), 1)
    else:
        most = tl.full([BLOCK_P, BLOCK_K], float("-inf"), dtype)
        for start in range(0, classes, BLOCK_K):
            x = logits(inputs, x_place, start + k, x_class_step, inside, classes, dtype, UNIT_CLASS)
            most = tl.maximum(most, x)
        largest = tl.max(most, 1)
        parts = tl.zeros([BLOCK_P, BLOCK_K], dtype)
        for start in range(0, classes, BLOCK_K):
            x = logits(inputs, x_place, start + k, x_class_step, inside, classes, dtype, UNIT_CLASS)
            e = tl.exp(x - largest[:, None])
            parts += tl.where((start + k == chosen) | (start + k >= classes), 0.0, e)
        others = tl.sum(parts, 1)

    # A target that is no class reads nothing and makes everything here NaN.
    class_there = there & known & (target != ignore_index)
    at = row * x_row_step + (column if UNIT_POSITION else column * x_column_step) + target * x_class_step
    logit = tl.load(inputs + at, mask=class_there, other=float("nan")).to(dtype)
    weight = double(scale)
    if counts is not None:
        counted = tl.sum(tl.load(counts + tl.arange(0, COUNTS)), 0).to(tl.float64)
        weight = weight / counted
    if SCALAR:
        weight *= tl.load(grad_output).to(tl.float64)
    weights = tl.full([BLOCK_P], 1.0, dtype) * weight.to(dtype)
    if alpha is not None:
        weights *= tl.load(alpha + target * alpha_step, mask=class_there, other=0.0).to(dtype)
    value, gain, share, factor = softmax_focal(largest, logit, others, weights, double(gamma).to(dtype), FOCUS)
    value = tl.where(ignored, 0.0, value)
    if loss is not None:
        store(loss + row * columns + column, value, there)
    if sums is not None:
        total = tl.sum(value, 0)
        if counts is not None:
            total = tl.where(counted > 0.0, total, float("nan"))  # the mean of nothing
        tl.store(sums + tl.program_id(0), total)
    if gradient is not None:
        if grad_output is not None and not SCALAR:
            g_place = row * g_row_step + column * g_column_step
            gain *= tl.load(grad_output + g_place, mask=there, other=0.0).to(dtype)
        each = (gain * factor)[:, None]
        at_target = (-gain * share)[:, None]
        hidden = ignored[:, None]
        d_place = row * d_row_step + (column if UNIT_POSITION else column * d_column_step)[:, None]
        if WHOLE:
            slope = tl.where(hidden, 0.0, tl.where(k == chosen, at_target, each * e))
            place = d_place + (k if UNIT_CLASS else k * d_class_step)
            store(gradient + place, slope, inside & (k < classes))
        else:
            for start in range(0, classes, BLOCK_K):
                x = logits(inputs, x_place, start + k, x_class_step, inside, classes, dtype, UNIT_CLASS)
                e = tl.exp(x - largest[:, None])
                slope = tl.where(hidden, 0.0, tl.where(start + k == chosen, at_target, each * e))
                place = d_place + (start + k if UNIT_CLASS else (start + k) * d_class_step)
                store(gradient + place, slope, inside & (start + k < classes))


def softmax_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: Tensor | None,
    scale: float,
    gamma: float,
    ignore_index: int,
    reduction: int,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """The loss and, for a mean or a sum with ``with_gradient``, its gradient by inputs, otherwise an empty tensor."""
    options = _Options(alpha, scale, gamma, ignore_index, reduction)
    if reduction == 0:
        loss = torch.empty_like(targets, dtype=inputs.dtype)
        _launch(inputs, targets, options, loss=loss)
        return loss, inputs.new_empty((0,))
    loss = inputs.new_empty(())
    gradient = torch.empty_like(inputs) if with_gradient else inputs.new_empty((0,))
    if targets.numel() == 0:
        return loss.fill_(float("nan") if reduction == _MEAN else 0.0), gradient
    sums = _launch(inputs, targets, options, gradient=gradient if with_gradient else None, summed=True)
    with device_guard(inputs):
        sum_kernel[(1,)](sums, loss, sums.numel(), BLOCK=SUM_BLOCK)
    return loss, gradient


def softmax_focal_loss_backward(
    grad_output: Tensor,
    inputs: Tensor,
    targets: Tensor,
    alpha: Tensor | None,
    scale: float,
    gamma: float,
    ignore_index: int,
    reduction: int,
) -> Tensor:
    """The gradient by inputs: grad_output (one number for a mean or a sum) times the derivative."""
    gradient = torch.empty_like(inputs)
    _launch(inputs, targets, _Options(alpha, scale, gamma, ignore_index, reduction), grad_output, gradient=gradient)
    return gradient


class _Options(NamedTuple):
    alpha: Tensor | None
    scale: float
    gamma: float
    ignore_index: int
    reduction: int


def _launch(
    inputs: Tensor,
    targets: Tensor,
    options: _Options,
    grad_output: Tensor | None = None,
    *,
    loss: Tensor | None = None,
    gradient: Tensor | None = None,
    summed: bool = False,
) -> Tensor:
    """Launches the kernel, and the count before it, and returns the programs' sums where they are wanted."""
    scalar = grad_output is not None and options.reduction != 0
    dense = inputs if gradient is None else gradient
    walked = targets if grad_output is None or scalar else grad_output
    found = as_rows(targets, inputs.select(1, 0), dense.select(1, 0), walked)
    if found is None:
        raise ValueError(f"{_OP}: the tensors must lie in memory as rows and columns at fixed steps")
    rows, columns, (t, x, d, g) = found
    classes, is_double = inputs.shape[1], inputs.dtype == torch.float64
    tile = _DOUBLE_TILE if is_double else _TILE if classes <= _TILE else _LOOP_TILE
    block_k = min(power_of_two(classes), tile)
    block_p = min(power_of_two(max(1, columns)), tile // block_k)
    programs = rows * ceil_div(columns, block_p)
    sums = inputs.new_empty((programs if summed else 0,), dtype=torch.float64 if is_double else torch.float32)
    if programs == 0:
        return sums
    x_class, d_class = inputs.stride(1), dense.stride(1)
    with device_guard(inputs):
        counts = None
        if options.reduction == _MEAN:
            counting = min(_MOST_COUNTS, power_of_two(ceil_div(rows * columns, _COUNT_BLOCK)))
            counts = targets.new_empty((counting,), dtype=torch.int64)
            count_kernel[(counting,)](targets, counts, rows, columns, *t, options.ignore_index, BLOCK=_COUNT_BLOCK)
        softmax_focal_loss_kernel[(programs,)](
            inputs, targets, options.alpha, grad_output, counts, loss, sums if summed else None, gradient,
            rows, columns, classes, *t, *x, x_class, *d, d_class, *g,
            0 if options.alpha is None else options.alpha.stride(0), options.scale, options.gamma, options.ignore_index,
            FOCUS=focus_of(options.gamma), SCALAR=scalar, COUNTS=1 if counts is None else counts.numel(),
            UNIT_POSITION=x.column == d.column == 1, UNIT_CLASS=x_class == d_class == 1, WHOLE=block_k >= classes,
            BLOCK_P=block_p, BLOCK_K=block_k,
        )  # fmt: skip
    return sums


def ahead_of_time_cases() -> Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Launcher calls, on the meta device, whose launches together need every variant that is worth compiling ahead."""
    float32, float64, bfloat16, float16 = torch.float32, torch.float64, torch.bfloat16, torch.float16

    def calls(
        inputs: Tensor, gamma: float, alpha: Tensor | None = None, targets: torch.dtype = torch.int64
    ) -> Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]:
        classes = inputs.new_empty((*inputs.shape[:1], *inputs.shape[2:]), dtype=targets)
        yield softmax_focal_loss, (inputs, classes, alpha, 1.0, gamma, -100, _MEAN, True)
        yield softmax_focal_loss, (inputs, classes, alpha, 1.0, gamma, -100, 0, False)
        loss = inputs.new_empty(classes.shape)
        yield softmax_focal_loss_backward, (loss, inputs, classes, alpha, 1.0, gamma, -100, 0)

    # Rows, planes and channels_last; more classes than a tile; each way to take the power; dtypes.
    for shape in ((4096, 80), (2, 21, 64, 64), (64, 5000), (4096, 2)):
        yield from calls(torch.empty(shape, device="meta"), 2.0)
    for gamma in (0.0, 1.0, 1.5):
        yield from calls(torch.empty((2, 21, 64, 64), device="meta"), gamma)
    channels_last = torch.empty((2, 21, 64, 64), device="meta", memory_format=torch.channels_last)
    yield from calls(channels_last, 2.0, torch.empty((21,), device="meta"), torch.uint8)
    yield from calls(channels_last[:, :20], 2.0)
    for dtype in (float64, bfloat16, float16):
        inputs = torch.empty((4096, 1000), dtype=dtype, device="meta")
        yield from calls(inputs, 1.5, torch.empty((1000,), dtype=float32, device="meta"))
        loss = inputs.new_empty(())
        targets = inputs.new_empty((4096,), dtype=torch.int64)
        yield softmax_focal_loss_backward, (loss, inputs, targets, None, 1.0, 1.5, -100, _MEAN)
    yield from calls(torch.empty((64, 5000), dtype=float64, device="meta"), 1.5)

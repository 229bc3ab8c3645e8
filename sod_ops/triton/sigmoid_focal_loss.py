"""Sigmoid focal loss in Triton: sod_ops/reference/sigmoid_focal_loss.py has the formula, focal_loss.py the arithmetic.

One launch, and a second that adds up the programs' sums where the loss is a mean or a sum.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: N803 (compile-time constants in capitals, as everywhere in Triton)

from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sod_ops.triton._planes import device_guard
from sod_ops.triton._rows import SUM_BLOCK, offsets, plan_rows, store, sum_kernel, tile
from sod_ops.triton.focal_loss import double, focus_of, sigmoid_focal

_OP = "sigmoid_focal_loss"
_MEAN = 1  # in the order of REDUCTIONS in sod_ops/reference/sigmoid_focal_loss.py

# Compiling for particular sizes or weights would mean compiling at every new shape or weight.
_NUMBERS = (
    *("rows", "columns", "x_row_step", "x_column_step", "y_row_step", "y_column_step", "g_row_step", "g_column_step"),
    *("positive", "negative", "gamma"),
)


@triton.jit(do_not_specialize=_NUMBERS)
def sigmoid_focal_loss_kernel(
    inputs,  # rows and columns at their steps, like targets
    targets,
    grad_output,  # the same, or one number where SCALAR, or None: as if of ones
    loss,  # dense, or None
    sums,  # [programs], or None
    gradient,  # dense, or None
    rows: tl.int64,
    columns: tl.int64,
    x_row_step: tl.int64,
    x_column_step: tl.int64,
    y_row_step: tl.int64,
    y_column_step: tl.int64,
    g_row_step: tl.int64,
    g_column_step: tl.int64,
    positive: tl.float64,
    negative: tl.float64,
    gamma: tl.float64,
    FOCUS: tl.constexpr,
    SCALAR: tl.constexpr,
    DOUBLE: tl.constexpr,
    DENSE: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The losses of one tile, their sum, and grad_output times their derivatives; whichever have a place to go.

    Computes in float32, in float64 where DOUBLE.
    """
    dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    row, column, inside, place = tile(rows, columns, ALIGNMENT, BLOCK_R, BLOCK_C)
    x_place = offsets(row, column, x_row_step, x_column_step, DENSE, ALIGNMENT)
    y_place = offsets(row, column, y_row_step, y_column_step, DENSE, ALIGNMENT)
    x = tl.load(inputs + x_place, mask=inside, other=0.0).to(dtype)
    y = tl.load(targets + y_place, mask=inside, other=0).to(dtype)
    positive = double(positive)
    negative = double(negative)
    if SCALAR:
        factor = tl.load(grad_output).to(tl.float64)
        positive *= factor
        negative *= factor
    value, derivative = sigmoid_focal(x, y, positive.to(dtype), negative.to(dtype), double(gamma).to(dtype), FOCUS)
    if loss is not None:
        store(loss + place, value, inside)
    if sums is not None:
        tl.store(sums + tl.program_id(0), tl.sum(tl.sum(tl.where(inside, value, 0.0), 1), 0))
    if gradient is not None:
        if grad_output is not None and not SCALAR:
            g_place = offsets(row, column, g_row_step, g_column_step, DENSE, ALIGNMENT)
            derivative *= tl.load(grad_output + g_place, mask=inside, other=0.0).to(dtype)
        store(gradient + place, derivative, inside)


def sigmoid_focal_loss(
    inputs: Tensor, targets: Tensor, alpha: float, gamma: float, reduction: int, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    """The loss and, for a mean or a sum with ``with_gradient``, its gradient by inputs, otherwise an empty tensor."""
    dtype = torch.promote_types(inputs.dtype, targets.dtype)
    if reduction == 0:
        loss = torch.empty_like(inputs, dtype=dtype)
        _Launch(inputs, targets, alpha, gamma)(loss=loss)
        return loss, inputs.new_empty((0,))
    loss = inputs.new_empty((), dtype=dtype)
    gradient = torch.empty_like(inputs) if with_gradient else inputs.new_empty((0,))
    if inputs.numel() == 0:
        return loss.fill_(float("nan") if reduction == _MEAN else 0.0), gradient
    launch = _Launch(inputs, targets, alpha, gamma, reduction)
    sums = inputs.new_empty((launch.walk.programs,), dtype=torch.float64 if launch.double else torch.float32)
    launch(sums=sums, gradient=gradient if with_gradient else None)
    with device_guard(inputs):
        sum_kernel[(1,)](sums, loss, launch.walk.programs, BLOCK=SUM_BLOCK)
    return loss, gradient


def sigmoid_focal_loss_backward(
    grad_output: Tensor, inputs: Tensor, targets: Tensor, alpha: float, gamma: float, reduction: int
) -> Tensor:
    """The gradient by inputs: grad_output (one number for a mean or a sum) times the derivative."""
    gradient = torch.empty_like(inputs)
    _Launch(inputs, targets, alpha, gamma, reduction, grad_output)(gradient=gradient)
    return gradient


class _Launch:
    """A launch of the kernel on these tensors; what it shall write comes with the call."""

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        alpha: float,
        gamma: float,
        reduction: int = 0,
        grad_output: Tensor | None = None,
    ) -> None:
        self.double = torch.float64 in (inputs.dtype, targets.dtype)
        self._tensors = inputs, targets.view(torch.uint8) if targets.dtype == torch.bool else targets, grad_output
        self._scalar = grad_output is not None and reduction != 0
        walked = inputs if grad_output is None or self._scalar else grad_output
        self.walk = plan_rows(_OP, inputs, targets, walked, double=self.double)
        factor = 1 / inputs.numel() if reduction == _MEAN and inputs.numel() > 0 else 1.0
        weights = (alpha, 1 - alpha) if alpha >= 0 else (1.0, 1.0)
        self._numbers = weights[0] * factor, weights[1] * factor, gamma

    def __call__(
        self, *, loss: Tensor | None = None, sums: Tensor | None = None, gradient: Tensor | None = None
    ) -> None:
        inputs, targets, grad_output = self._tensors
        if inputs.numel() == 0:
            return
        with device_guard(inputs):
            sigmoid_focal_loss_kernel[(self.walk.programs,)](
                inputs, targets, grad_output, loss, sums, gradient, *self.walk.sizes, *self.walk.steps, *self._numbers,
                FOCUS=focus_of(self._numbers[2]), SCALAR=self._scalar, DOUBLE=self.double, **self.walk.constants,
            )  # fmt: skip


def ahead_of_time_cases() -> Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Launcher calls, on the meta device, whose launches together need every variant that is worth compiling ahead."""
    float32, float64, bfloat16, float16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
    shape = (8, 1, 320, 320)

    def calls(inputs: Tensor, dtype: torch.dtype, gamma: float) -> Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]:
        targets = inputs.new_empty(inputs.shape, dtype=dtype)
        loss = inputs.new_empty(inputs.shape, dtype=torch.promote_types(inputs.dtype, dtype))
        yield sigmoid_focal_loss, (inputs, targets, 0.25, gamma, _MEAN, True)
        yield sigmoid_focal_loss_backward, (loss, inputs, targets, 0.25, gamma, 0)

    # Each way to take the power, in the dtype that takes most registers too; then dtypes.
    for dtype, gamma in [*((float32, g) for g in (0.0, 1.0, 2.0, 1.5)), (float64, 1.5), (bfloat16, 2.0)]:
        inputs = torch.empty(shape, dtype=dtype, device="meta")
        yield from calls(inputs, dtype, gamma)
        yield sigmoid_focal_loss, (inputs, inputs, 0.25, gamma, 0, False)
    for dtype, target_dtype in ((float32, torch.bool), (bfloat16, float32), (float16, torch.int64)):
        inputs = torch.empty(shape, dtype=dtype, device="meta")
        yield from calls(inputs, target_dtype, 2.0)
        yield sigmoid_focal_loss_backward, (inputs.new_empty(()), inputs, inputs, 0.25, 2.0, _MEAN)
    # A channel of several, a size that nothing divides, a column of a matrix.
    for sliced in (
        torch.empty((8, 3, 320, 320), device="meta")[:, :1],
        torch.empty(999983, device="meta"),
        torch.empty((4096, 80), device="meta")[:, 0],
    ):
        yield from calls(sliced, float32, 2.0)

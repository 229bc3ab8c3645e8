"""The CPU's operators for branches that are multiplied where they are added to a convolution's output.

``sod_ops::pyramid_conv2d`` takes a branch's products with the kernel's taps; these take the branch and its part of the
weight, and the products, nine times the branch, never go through memory.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from sod_ops.ops._maps import dense
from sod_ops.ops._operators import reference_gradients, register
from sod_ops.reference import pyramid_conv2d as reference


def add_branches(
    y: Tensor | None,
    bias: Tensor | None,
    branches: list[Tensor],
    weights: list[Tensor],
    size: tuple[int, int],
    align_corners: bool,
    nearest: bool,
) -> Tensor:
    """``y``, or ``bias`` at every pixel, or 0, plus the convolutions over ``branches`` upsampled to ``size``."""
    operator = torch.ops.sod_ops.pyramid_conv2d_branches.default
    result: Tensor = operator(y, bias, branches, weights, *size, align_corners, nearest)
    return result


def gradients_of_branches(
    grad_output: Tensor, branches: list[Tensor], weights: list[Tensor], align_corners: bool, nearest: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients of the branches and of their weights."""
    operator = torch.ops.sod_ops.pyramid_conv2d_branches_backward.default
    found = operator(grad_output, branches, weights, align_corners, nearest)
    return found[: len(branches)], found[len(branches) :]


def _fake_forward(
    y: Tensor | None,
    bias: Tensor | None,
    branches: list[Tensor],
    weights: list[Tensor],
    height: int,
    width: int,
    align_corners: bool,
    nearest: bool,
) -> Tensor:
    if y is not None:
        return torch.empty_like(y)
    return branches[0].new_empty((branches[0].shape[0], weights[0].shape[0], height, width))


def _fake_backward(
    grad_output: Tensor, branches: list[Tensor], weights: list[Tensor], align_corners: bool, nearest: bool
) -> list[Tensor]:
    return [*map(torch.empty_like, branches), *(weight.new_empty(weight.shape) for weight in weights)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, bias, branches, weights, _, _, ctx.align_corners, ctx.nearest = inputs
    ctx.with_bias = bias is not None
    ctx.save_for_backward(*branches, *weights)


def _reference(size: tuple[int, int], align_corners: bool, mode: str, *tensors: Tensor) -> Tensor:
    branches, weights = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
    padding = weights[0].shape[2] // 2
    return reference.pyramid_conv2d(
        None, branches, torch.cat(weights, 1), padding=padding, align_corners=align_corners, mode=mode, size=size
    )


def _gradients(ctx: Any, backward: Any, grad_output: Tensor) -> tuple[Any, ...]:
    tensors = ctx.saved_tensors
    count = len(tensors) // 2
    if torch.is_grad_enabled():
        mode = "nearest" if ctx.nearest else "bilinear"
        formula = partial(_reference, (grad_output.shape[2], grad_output.shape[3]), ctx.align_corners, mode)
        found = list(reference_gradients(formula, tensors, grad_output))
    else:
        found = backward(
            dense(grad_output), list(tensors[:count]), list(tensors[count:]), ctx.align_corners, ctx.nearest
        )
    grad_y = grad_output if ctx.needs_input_grad[0] else None
    grad_bias = grad_output.sum((0, 2, 3)) if ctx.with_bias else None
    return grad_y, grad_bias, found[:count], found[count:], None, None, None, None


register(
    "pyramid_conv2d_branches",
    forward=_fake_forward,
    backward=_fake_backward,
    save=_save,
    gradients=_gradients,
    triton=False,
)

"""The pairwise complete IoU: the public function, its checks and its autograd."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sod_ops.backends import Kernels
from sod_ops.ops import _checks
from sod_ops.ops._operators import below_autograd, reference_gradients, register, transforms_active
from sod_ops.reference import complete_box_iou as reference

_OP = "complete_box_iou"


def complete_box_iou(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    r"""Complete IoU of every box of one set with every box of another.

    .. math::
        \frac{I}{U} - \frac{R}{D + \epsilon} - \alpha v, \qquad
        v = \frac{4}{\pi^2} \left( \arctan\frac{w_1}{h_1} - \arctan\frac{w_2}{h_2} \right)^2, \qquad
        \alpha = \frac{v}{1 - I / U + v + \epsilon}

    with the areas I that both boxes cover and U that either covers, R the squared distance of their centres and D the
    squared diagonal of the smallest box around both; alpha is a constant in the gradient. It is torchvision's function.
    Nothing of the size of all pairs is held in memory but the result.

    Where two coordinates are equal, the gradient is shared half and half, as PyTorch does. Value and gradients are finite
    where torchvision's are NaN: where U is 0 the IoU is 0 without a gradient; a box of height 0 has the angle pi/2 and the
    gradient's limit from heights above 0; a box with neither width nor height has no aspect ratio, v and its gradient are 0.

    Args:
        boxes1: ``[N, 4]``, (x1, y1, x2, y2) with x1 <= x2 and y1 <= y2 in any unit of length; float32, float64, bfloat16 or
            float16. Slices of wider rows such as ``predictions[:, :4]`` are read in place.
        boxes2: ``[M, 4]``, of the same dtype, on the same device.
        eps: what is added to the denominators but U, above 0.

    Returns:
        ``[N, M]``; float64 for float64 boxes, otherwise float32, which it is computed in. Both tensors get gradients.

    Raises:
        TypeError: an argument is not a tensor or has a dtype or type that does not fit.
        ValueError: a shape, a device or ``eps`` does not fit.

    Source:
        Zheng et al.: Distance-IoU Loss, AAAI 2020, equation 10.
    """
    try:
        if type(eps) is not float:
            _checks.check_positive(_OP, "eps", eps)
        return _call(boxes1, boxes2, eps)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        refusal = error
    # Only a call that failed pays for finding out which argument is at fault.
    _check(boxes1, boxes2, eps)
    raise refusal


def _call(boxes1: Tensor, boxes2: Tensor, eps: float) -> Tensor:
    device_type = "cpu" if boxes1.is_cpu else boxes1.device.type
    compiling = torch.compiler.is_compiling()
    if transforms_active():
        kernels = None
    else:
        kernels = _select.traced(device_type) if compiling else _select(device_type)
    if kernels is None or compiling or not kernels.check_arguments:
        _check(boxes1, boxes2, eps)
    if kernels is None:
        return reference.complete_box_iou(boxes1, boxes2, eps)
    inputs = (
        boxes1 if boxes1.is_contiguous() else _in_supported_layout(boxes1),
        boxes2 if boxes2.is_contiguous() else _in_supported_layout(boxes2),
        eps,
    )
    if compiling:
        return kernels.forward(*inputs)
    if torch.is_grad_enabled() and (boxes1.requires_grad or boxes2.requires_grad):
        return _CompleteBoxIou.apply(kernels, *inputs)
    with below_autograd():
        return kernels.forward(*inputs)


class _CompleteBoxIou(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: Kernels, *inputs: Any) -> Tensor:
        ctx.kernels = kernels
        _save(ctx, inputs, None)
        with below_autograd():
            return kernels.forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            return None, *_gradients(ctx, ctx.kernels.backward, grad_output)
        with below_autograd():
            return None, *_gradients(ctx, ctx.kernels.backward, grad_output)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor | None) -> None:
    boxes1, boxes2, ctx.eps = inputs
    ctx.save_for_backward(boxes1, boxes2)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, backward: Callable[..., tuple[Tensor, Tensor]], grad_output: Tensor | None) -> tuple[Any, ...]:
    if grad_output is None:
        return None, None, None
    boxes1, boxes2 = ctx.saved_tensors
    if torch.is_grad_enabled():
        function = partial(reference.complete_box_iou, eps=ctx.eps)
        return *reference_gradients(function, (boxes1, boxes2), grad_output), None
    first, second = ctx.needs_input_grad[-3:-1]
    if grad_output.stride(1) not in (0, 1):
        grad_output = grad_output.contiguous()
    grad_boxes1, grad_boxes2 = backward(grad_output, boxes1, boxes2, ctx.eps, first, second)
    return grad_boxes1 if first else None, grad_boxes2 if second else None, None


def _fake_forward(boxes1: Tensor, boxes2: Tensor, eps: float) -> Tensor:
    # Dispatch brings a call here where any tensor is on the meta device.
    _checks.check_same_device(_OP, "boxes1", boxes1.device, [("boxes2", boxes2)])
    dtype = torch.float64 if boxes1.dtype == torch.float64 else torch.float32
    return boxes1.new_empty((boxes1.shape[0], boxes2.shape[0]), dtype=dtype)


def _fake_backward(
    grad_output: Tensor, boxes1: Tensor, boxes2: Tensor, eps: float, first: bool, second: bool
) -> tuple[Tensor, Tensor]:
    """Returns the gradients of boxes1 and boxes2; one that is not wanted is empty."""
    return boxes1.new_empty(boxes1.shape if first else (0,)), boxes2.new_empty(boxes2.shape if second else (0,))


_select = register(
    _OP, forward=_fake_forward, backward=_fake_backward, save=_save, gradients=_gradients, native=("cpu", "cuda")
)


def _check(boxes1: Tensor, boxes2: Tensor, eps: float) -> None:
    for argument, boxes in (("boxes1", boxes1), ("boxes2", boxes2)):
        _checks.check_boxes(_OP, argument, boxes, single=False)
    _checks.check_same_device(_OP, "boxes1", boxes1.device, [("boxes2", boxes2)])
    if boxes2.dtype != boxes1.dtype:
        _checks.bad_type(_OP, "boxes2", f"{boxes1.dtype} as boxes1 is", boxes2.dtype)
    _checks.check_positive(_OP, "eps", eps)


def _in_supported_layout(boxes: Tensor) -> Tensor:
    """``boxes`` itself where the kernels read them in place: the four coordinates lie side by side."""
    return boxes if boxes.stride(-1) == 1 else boxes.contiguous()

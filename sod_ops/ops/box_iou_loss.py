"""The losses of generalized, distance and complete IoU: the public functions, their checks and their autograd."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sod_ops.backends import Kernels
from sod_ops.ops import _checks
from sod_ops.ops._operators import below_autograd, reference_gradients, register, transforms_active
from sod_ops.ops._reductions import REDUCTION_INDEX
from sod_ops.reference import box_iou_loss as reference
from sod_ops.reference.sigmoid_focal_loss import REDUCTIONS

_REFERENCES: dict[str, Callable[..., Tensor]] = {
    **reference.LOSSES,
    **{f"padded_{name}": partial(loss, padded=True) for name, loss in reference.LOSSES.items()},
}
_LOSS_INDEX = {name: index for index, name in enumerate(_REFERENCES)}
_LOSS_NAMES = tuple(_REFERENCES)


def generalized_box_iou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Tensor:
    r"""Generalized IoU loss of pairs of boxes: 1 minus the IoU, plus the part of the enclosing box that neither covers.

    .. math:: 1 - \frac{I}{U + \epsilon} + \frac{C - U}{C + \epsilon}

    with the areas I that both boxes cover, U that either covers and C of the smallest box around both. It is
    torchvision's function. Where two coordinates are equal, as between identical boxes, the gradient is shared half and
    half, as PyTorch does. Value and gradients are finite for boxes of no size too.

    Args:
        boxes1: ``[N, 4]`` or ``[4]``, (x1, y1, x2, y2) with x1 <= x2 and y1 <= y2 in any unit of length; float32, float64,
            bfloat16 or float16. Slices of wider rows such as ``predictions[:, :4]`` are read in place.
        boxes2: the same shape and dtype, on the same device.
        reduction: ``"none"``, ``"mean"`` (0 for no boxes) or ``"sum"``.
        eps: what is added to the denominators, above 0.

    Returns:
        ``[N]`` (a scalar for boxes of shape ``[4]``), or a scalar with a reduction; float64 for float64 boxes, otherwise
        float32, which it is computed in. Both tensors get gradients.

    Raises:
        TypeError: an argument is not a tensor or has a dtype or type that does not fit.
        ValueError: a shape, a device, ``reduction`` or ``eps`` does not fit. Shapes never broadcast.

    Source:
        Rezatofighi et al.: Generalized Intersection over Union, CVPR 2019.
    """
    return _loss("generalized_box_iou_loss", boxes1, boxes2, reduction, eps)


def distance_box_iou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Tensor:
    r"""Distance IoU loss of pairs of boxes: 1 minus the IoU, plus the squared distance of the centres in relative terms.

    .. math:: 1 - \frac{I}{U + \epsilon} + \frac{R}{D + \epsilon}

    with the areas I that both boxes cover and U that either covers, R the squared distance of the centres and D the squared
    diagonal of the smallest box around both. It is torchvision's function. Where two coordinates are equal, as between
    identical boxes, the gradient is shared half and half, as PyTorch does. Value and gradients are finite for boxes of no
    size too.

    Args:
        boxes1: ``[N, 4]`` or ``[4]``, (x1, y1, x2, y2) with x1 <= x2 and y1 <= y2 in any unit of length; float32, float64,
            bfloat16 or float16. Slices of wider rows such as ``predictions[:, :4]`` are read in place.
        boxes2: the same shape and dtype, on the same device.
        reduction: ``"none"``, ``"mean"`` (0 for no boxes) or ``"sum"``.
        eps: what is added to the denominators, above 0.

    Returns:
        ``[N]`` (a scalar for boxes of shape ``[4]``), or a scalar with a reduction; float64 for float64 boxes, otherwise
        float32, which it is computed in. Both tensors get gradients.

    Raises:
        TypeError: an argument is not a tensor or has a dtype or type that does not fit.
        ValueError: a shape, a device, ``reduction`` or ``eps`` does not fit. Shapes never broadcast.

    Source:
        Zheng et al.: Distance-IoU Loss, AAAI 2020, equations 6 and 7.
    """
    return _loss("distance_box_iou_loss", boxes1, boxes2, reduction, eps)


def complete_box_iou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Tensor:
    r"""Complete IoU loss of pairs of boxes: the distance IoU loss and a penalty where aspect ratios differ.

    .. math::
        1 - \frac{I}{U + 10^{-7}} + \frac{R}{D + 10^{-7}} + \alpha v, \qquad
        v = \frac{4}{\pi^2} \left( \arctan\frac{w_2}{h_2} - \arctan\frac{w_1}{h_1} \right)^2, \qquad
        \alpha = \frac{v}{1 - \mathrm{IoU} + v + \epsilon}

    with I, U, R and D as in :func:`distance_box_iou_loss`. It is torchvision's function, where also the caller's ``eps``
    reaches only alpha, which is a constant in the gradient. Where two coordinates are equal, as between identical boxes, the
    gradient is shared half and half, as PyTorch does.

    Value and gradients are finite where torchvision's are NaN. A box of height 0 has the angle pi/2 and the gradient's limit
    from heights above 0. A box with neither width nor height (its squared diagonal is 0 in the type of the computation) has
    no aspect ratio: v and its gradient are 0.

    Args:
        boxes1: ``[N, 4]`` or ``[4]``, (x1, y1, x2, y2) with x1 <= x2 and y1 <= y2 in any unit of length; float32, float64,
            bfloat16 or float16. Slices of wider rows such as ``predictions[:, :4]`` are read in place.
        boxes2: the same shape and dtype, on the same device.
        reduction: ``"none"``, ``"mean"`` (0 for no boxes) or ``"sum"``.
        eps: what is added to the denominator of alpha, above 0.

    Returns:
        ``[N]`` (a scalar for boxes of shape ``[4]``), or a scalar with a reduction; float64 for float64 boxes, otherwise
        float32, which it is computed in. Both tensors get gradients.

    Raises:
        TypeError: an argument is not a tensor or has a dtype or type that does not fit.
        ValueError: a shape, a device, ``reduction`` or ``eps`` does not fit. Shapes never broadcast.

    Source:
        Zheng et al.: Distance-IoU Loss, AAAI 2020, equations 8 to 11.
    """
    return _loss("complete_box_iou_loss", boxes1, boxes2, reduction, eps)


def padded_box_iou_loss(
    loss: str, boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7
) -> Tensor:
    """The loss named ``loss`` as ultralytics adds ``eps``, which :mod:`sod_ops.patch.ultralytics` is for: not public."""
    return _loss(f"padded_{loss}", boxes1, boxes2, reduction, eps)


def _loss(op: str, boxes1: Tensor, boxes2: Tensor, reduction: str, eps: float) -> Tensor:
    try:
        if type(eps) is not float:
            _checks.check_positive(op, "eps", eps)
        return _call(op, boxes1, boxes2, REDUCTION_INDEX[reduction], eps)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        refusal = error
    # Only a call that failed pays for finding out which argument is at fault.
    _check(op, boxes1, boxes2, reduction, eps)
    raise refusal


def _call(op: str, boxes1: Tensor, boxes2: Tensor, reduction: int, eps: float) -> Tensor:
    device_type = "cpu" if boxes1.is_cpu else boxes1.device.type
    compiling = torch.compiler.is_compiling()
    if transforms_active():
        kernels = None
    else:
        kernels = _select.traced(device_type) if compiling else _select(device_type)
    if kernels is None or compiling or not kernels.check_arguments:
        _check(op, boxes1, boxes2, REDUCTIONS[reduction], eps)
    if kernels is None:
        return _REFERENCES[op](boxes1, boxes2, REDUCTIONS[reduction], eps)
    differentiable = torch.is_grad_enabled()
    first, second = differentiable and boxes1.requires_grad, differentiable and boxes2.requires_grad
    inputs = (
        boxes1 if boxes1.is_contiguous() else _in_supported_layout(boxes1),
        boxes2 if boxes2.is_contiguous() else _in_supported_layout(boxes2),
        _LOSS_INDEX[op],
        reduction,
        eps,
        first,
        second,
    )
    if compiling:
        return kernels.forward(*inputs)[0]
    if first or second:
        return _BoxIouLoss.apply(kernels, *inputs)
    with below_autograd():
        return kernels.forward(*inputs)[0]


class _BoxIouLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: Kernels, *inputs: Any) -> Tensor:
        with below_autograd():
            loss, *gradients = kernels.forward(*inputs)
        ctx.kernels = kernels
        boxes1, boxes2, *ctx.options = inputs
        # Outside of what autograd saves: the first backward takes them, to scale them in place and give them away; a later
        # one, which retain_graph=True allows, computes them afresh.
        ctx.gradients = gradients if _keeps_gradients(boxes1, ctx.options[1]) else None
        ctx.save_for_backward(boxes1, boxes2)
        ctx.set_materialize_grads(False)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> tuple[Any, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if grad_output is None or torch.is_grad_enabled():
            return None, *_gradients(ctx, ctx.kernels.backward, grad_output)
        if gradients is None:
            with below_autograd():
                return None, *_gradients(ctx, ctx.kernels.backward, grad_output)
        first, second = _wanted(gradients, ctx.options)
        factor = grad_output.item() if grad_output.is_cpu else grad_output
        if factor is grad_output or factor != 1:
            for gradient in (first, second):
                if gradient is not None:
                    gradient.mul_(factor)
        return None, first, second, None, None, None, None, None


def _save(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, Tensor, Tensor]) -> None:
    boxes1, boxes2, *ctx.options = inputs
    ctx.save_for_backward(boxes1, boxes2, *outputs[1:])
    ctx.set_materialize_grads(False)


def _gradients(
    ctx: Any, backward: Callable[..., tuple[Tensor, Tensor]], grad_output: Tensor | None, *_: Tensor | None
) -> tuple[Any, ...]:
    if grad_output is None:
        return (None,) * 7
    boxes1, boxes2, *kept = ctx.saved_tensors
    loss, reduction, eps, first, second = ctx.options
    if torch.is_grad_enabled():
        function = partial(_REFERENCES[_LOSS_NAMES[loss]], reduction=REDUCTIONS[reduction], eps=eps)
        return *reference_gradients(function, (boxes1, boxes2), grad_output), *(None,) * 5
    gradients: Sequence[Tensor]
    if kept and _keeps_gradients(boxes1, reduction):
        gradients = [gradient * grad_output for gradient in kept]
    else:
        if grad_output.stride() not in ((), (0,), (1,)):
            grad_output = grad_output.contiguous()
        gradients = backward(grad_output, boxes1, boxes2, loss, reduction, eps, first, second)
    return *_wanted(gradients, ctx.options), *(None,) * 5


def _wanted(gradients: Sequence[Tensor], options: list[Any]) -> tuple[Tensor | None, ...]:
    """The gradients that the forward was told to expect; the kernels give empty ones in place of the others."""
    return tuple(gradient if want else None for gradient, want in zip(gradients, options[-2:], strict=True))


def _keeps_gradients(boxes: Tensor, reduction: int) -> bool:
    """Whether the forward computes gradients too: csrc/box_iou_loss.h says why not always."""
    return reduction != 0 and boxes.dtype in (torch.float32, torch.float64)


def _fake_forward(
    boxes1: Tensor, boxes2: Tensor, loss: int, reduction: int, eps: float, first: bool, second: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``first`` and ``second`` say which gradients will be wanted.

    Returns the loss and, where it keeps them, the gradients of boxes1 and boxes2, otherwise empty tensors.
    """
    # Dispatch brings a call here where any tensor is on the meta device.
    _checks.check_same_device("box_iou_loss", "boxes1", boxes1.device, [("boxes2", boxes2)])
    dtype = torch.float64 if boxes1.dtype == torch.float64 else torch.float32
    keeps = _keeps_gradients(boxes1, reduction)
    return (
        boxes1.new_empty(boxes1.shape[:-1] if reduction == 0 else (), dtype=dtype),
        _empty_gradient(boxes1, keeps and first),
        _empty_gradient(boxes2, keeps and second),
    )


def _fake_backward(
    grad_output: Tensor,
    boxes1: Tensor,
    boxes2: Tensor,
    loss: int,
    reduction: int,
    eps: float,
    first: bool,
    second: bool,
) -> tuple[Tensor, Tensor]:
    """Returns the gradients of boxes1 and boxes2; one that is not wanted is empty."""
    return _empty_gradient(boxes1, first), _empty_gradient(boxes2, second)


def _empty_gradient(boxes: Tensor, wanted: bool) -> Tensor:
    return boxes.new_empty(boxes.shape if wanted else (0,))


_select = register(
    "box_iou_loss",
    forward=_fake_forward,
    backward=_fake_backward,
    save=_save,
    gradients=_gradients,
    native=("cpu", "cuda"),
)


def check_options(op: str, reduction: str, eps: float) -> None:
    """ValueError or TypeError for what neither the functions nor their modules take."""
    _checks.check_choice(op, "reduction", reduction, REDUCTIONS)
    _checks.check_positive(op, "eps", eps)


def _check(op: str, boxes1: Tensor, boxes2: Tensor, reduction: str, eps: float) -> None:
    for argument, boxes in (("boxes1", boxes1), ("boxes2", boxes2)):
        _checks.check_boxes(op, argument, boxes, single=True)
    _checks.check_same_device(op, "boxes1", boxes1.device, [("boxes2", boxes2)])
    if boxes2.dtype != boxes1.dtype:
        _checks.bad_type(op, "boxes2", f"{boxes1.dtype} as boxes1 is", boxes2.dtype)
    if boxes2.dim() != boxes1.dim() or boxes2.shape[0] != boxes1.shape[0]:
        expected = f"of the shape of boxes1 ({_checks.shape_of(boxes1)})"
        _checks.bad_value(op, "boxes2", expected, _checks.shape_of(boxes2))
    check_options(op, reduction, eps)


def _in_supported_layout(boxes: Tensor) -> Tensor:
    """``boxes`` itself where the kernels read them in place: the four coordinates lie side by side."""
    return boxes if boxes.stride(-1) == 1 else boxes.contiguous()

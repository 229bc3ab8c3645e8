"""Sigmoid focal loss: the public function, its checks and its autograd."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sod_ops._rows import as_rows
from sod_ops.backends import Kernels
from sod_ops.ops import _checks
from sod_ops.ops._operators import below_autograd, reference_gradients, register, transforms_active
from sod_ops.ops._reductions import REDUCTION_INDEX
from sod_ops.ops._stored_gradient import scaled, stores_gradient, take_gradient
from sod_ops.reference import sigmoid_focal_loss as reference

_OP = "sigmoid_focal_loss"


def sigmoid_focal_loss(
    inputs: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0, reduction: str = "none"
) -> Tensor:
    r"""Focal loss of independent binary predictions; signature, results and errors as in torchvision.

    .. math:: \alpha_t\, (1 - p_t)^\gamma\, c, \qquad p_t = p y + (1 - p)(1 - y), \quad
        \alpha_t = \alpha y + (1 - \alpha)(1 - y)

    with the probability :math:`p = \mathrm{sigmoid}(x)` of the logit :math:`x`, its target :math:`y` and their cross
    entropy :math:`c`. It is computed in float32 (in float64 where either tensor is float64) without overflow or
    cancellation at any finite logit.

    Args:
        inputs: logits of any shape, float32, float64, bfloat16 or float16.
        targets: of the same shape, 0 for the negative class, 1 for the positive, or between them (soft targets): floating,
            bool, uint8, int8, int16, int32 or int64, read as they are. Values outside [0, 1] are not looked for.
        alpha: weight of the positive class in [0, 1]; the negative class has ``1 - alpha``. -1 turns weights off.
        gamma: exponent, 0 or more; 0, 1 and 2 take one exponential for each element, others two more functions.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Slices such as ``out[:, :1]``, channels_last tensors and expanded targets are read in place.

    Returns:
        The loss of each element, or their mean (NaN for no elements) or sum, in the dtype that ``inputs`` and floating
        ``targets`` promote to, otherwise in that of ``inputs``.

    The gradient by ``inputs`` has their dtype and, where they are dense, their strides. For ``gamma < 1`` it is 0, its
    limit, where :math:`1 - p_t` underflows; torchvision's is NaN there. A gradient by ``targets`` is computed by the plain
    PyTorch reference, and so is a double backward.

    Raises:
        TypeError: an argument is not a tensor or not a number, or has a dtype that does not fit.
        ValueError: shapes differ (nothing is broadcast), devices differ, or ``alpha``, ``gamma`` or ``reduction`` is none of
            the above.

    Source:
        Lin, Goyal, Girshick, He, Dollar: Focal Loss for Dense Object Detection, ICCV 2017, equations 4 and 5.
    """
    try:
        if type(alpha) is not float:
            alpha = _checks.check_number(_OP, "alpha", alpha)
        if type(gamma) is not float:
            gamma = _checks.check_number(_OP, "gamma", gamma)
        return _call(inputs, targets, alpha, gamma, REDUCTION_INDEX[reduction])
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        refusal = error
    # Only a call that failed pays for finding out which argument is at fault.
    _check(inputs, targets, alpha, gamma, reduction)
    raise refusal


def _call(inputs: Tensor, targets: Tensor, alpha: float, gamma: float, reduction: int) -> Tensor:
    device_type = "cpu" if inputs.is_cpu else inputs.device.type
    compiling = torch.compiler.is_compiling()
    differentiable = torch.is_grad_enabled() and (inputs.requires_grad or targets.requires_grad)
    if transforms_active() or (compiling and differentiable and targets.requires_grad):
        kernels = None
    else:
        kernels = _select.traced(device_type) if compiling else _select(device_type)
    if kernels is None or compiling or not kernels.check_arguments:
        _check(inputs, targets, alpha, gamma, reference.REDUCTIONS[reduction])
    if kernels is None:
        return _reference(alpha, gamma, reduction)(inputs, targets)
    if not (inputs.is_contiguous() and targets.is_contiguous()):
        inputs, targets = _readable(inputs, targets)
    if compiling:
        stored = differentiable and stores_gradient(inputs, reduction)
        return kernels.forward(inputs, targets, alpha, gamma, reduction, stored)[0]
    if differentiable:
        return _SigmoidFocalLoss.apply(kernels, inputs, targets, alpha, gamma, reduction)
    with below_autograd():
        return kernels.forward(inputs, targets, alpha, gamma, reduction, False)[0]


def _reference(alpha: float, gamma: float, reduction: int) -> Callable[..., Tensor]:
    return partial(reference.sigmoid_focal_loss, alpha=alpha, gamma=gamma, reduction=reference.REDUCTIONS[reduction])


class _SigmoidFocalLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kernels: Kernels, inputs: Tensor, targets: Tensor, alpha: float, gamma: float, reduction: int
    ) -> Tensor:
        stored = stores_gradient(inputs, reduction) and not targets.requires_grad
        with below_autograd():
            loss, gradient = kernels.forward(inputs, targets, alpha, gamma, reduction, stored)
        ctx.kernels = kernels
        ctx.gradient = gradient if stored else None
        _save(ctx, (inputs, targets, alpha, gamma, reduction, False), (loss, gradient))
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> tuple[Any, ...]:
        if ctx.gradient is None or grad_output is None or torch.is_grad_enabled():
            return None, *_gradients(ctx, ctx.kernels.backward, grad_output)[:5]
        return None, take_gradient(ctx, ctx.kernels, grad_output), None, None, None, None


def _save(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, Tensor]) -> None:
    logits, targets, ctx.alpha, ctx.gamma, ctx.reduction, stored = inputs
    ctx.save_for_backward(logits, targets, outputs[1] if stored and ctx.reduction else None)
    ctx.set_materialize_grads(False)


def _gradients(
    ctx: Any, backward: Callable[..., Tensor], grad_output: Tensor | None, _: Tensor | None = None
) -> tuple[Any, ...]:
    if grad_output is None:
        return (None,) * 6
    inputs, targets, stored = ctx.saved_tensors
    if torch.is_grad_enabled() or targets.requires_grad:
        function = _reference(ctx.alpha, ctx.gamma, ctx.reduction)
        return *reference_gradients(function, (inputs, targets), grad_output), None, None, None, None
    if stored is not None:
        gradient = scaled(stored, grad_output)
    else:
        if not (ctx.reduction or (inputs.is_contiguous() and targets.is_contiguous() and grad_output.is_contiguous())):
            grad_output = _as_readable(grad_output, inputs, targets)
        gradient = backward(grad_output, inputs, targets, ctx.alpha, ctx.gamma, ctx.reduction)
    return gradient, None, None, None, None, None


def _fake_forward(
    inputs: Tensor, targets: Tensor, alpha: float, gamma: float, reduction: int, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Returns the loss and, for a mean or a sum with ``with_gradient``, its gradient by inputs, otherwise nothing."""
    # Dispatch brings a call here where any tensor is on the meta device.
    _checks.check_same_device(_OP, "inputs", inputs.device, (("targets", targets),))
    dtype = torch.promote_types(inputs.dtype, targets.dtype)
    if reduction == 0:
        return torch.empty_like(inputs, dtype=dtype), inputs.new_empty((0,))
    gradient = torch.empty_like(inputs) if with_gradient else inputs.new_empty((0,))
    return inputs.new_empty((), dtype=dtype), gradient


def _fake_backward(
    grad_output: Tensor, inputs: Tensor, targets: Tensor, alpha: float, gamma: float, reduction: int
) -> Tensor:
    """Returns the gradient of inputs."""
    return torch.empty_like(inputs)


_select = register(
    _OP, forward=_fake_forward, backward=_fake_backward, save=_save, gradients=_gradients, native=("cpu", "cuda")
)


def check_focal_options(op: str, alpha: float, gamma: float, reduction: str) -> None:
    """ValueError or TypeError for what neither the function nor its module takes."""
    if not 0 <= _checks.check_number(op, "alpha", alpha) <= 1 and alpha != -1:
        _checks.bad_value(op, "alpha", "in [0, 1], or -1 to weigh nothing", alpha)
    gamma = _checks.check_number(op, "gamma", gamma)
    if not 0 <= gamma < math.inf:
        _checks.bad_value(op, "gamma", "a finite number, 0 or more", gamma)
    _checks.check_choice(op, "reduction", reduction, reference.REDUCTIONS)


def _check(inputs: Tensor, targets: Tensor, alpha: float, gamma: float, reduction: str) -> None:
    _checks.check_tensor(_OP, "inputs", inputs)
    _checks.check_tensor(_OP, "targets", targets)
    check_focal_options(_OP, alpha, gamma, reduction)
    _checks.check_floating(_OP, "inputs", inputs)
    if targets.dtype not in _checks.READABLE:
        _checks.bad_type(_OP, "targets", "floating, bool, uint8 or a signed integer", targets.dtype)
    _checks.check_same_device(_OP, "inputs", inputs.device, (("targets", targets),))
    _checks.check_loss_shapes(_OP, "inputs", inputs, "targets", targets)


def _readable(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Both as they are where the kernels read them in place, otherwise what cannot be read so copied."""
    if inputs.shape == targets.shape and as_rows(inputs, targets) is None:
        if as_rows(inputs) is None:
            inputs = inputs.clone()
        if as_rows(inputs, targets) is None:
            targets = torch.empty_like(inputs, dtype=targets.dtype).copy_(targets)
    return inputs, targets


def _as_readable(grad_output: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    """``grad_output`` as it is where the kernels walk it in place beside the others, otherwise laid out like the result."""
    if as_rows(inputs, targets, grad_output) is not None:
        return grad_output
    return torch.empty_like(inputs, dtype=grad_output.dtype).copy_(grad_output)

"""Softmax focal loss: the public function, its checks and its autograd."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sod_ops._rows import as_rows
from sod_ops.backends import Kernels
from sod_ops.ops import _checks
from sod_ops.ops._operators import below_autograd, reference_gradients, register, transforms_active
from sod_ops.ops._reductions import REDUCTION_INDEX
from sod_ops.ops._stored_gradient import scaled, stores_gradient, take_gradient
from sod_ops.reference import softmax_focal_loss as reference
from sod_ops.reference.sigmoid_focal_loss import REDUCTIONS

_OP = "softmax_focal_loss"
_TARGETS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def softmax_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float | Tensor | None = None,
    gamma: float = 2.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    r"""Focal loss of one class among many; for ``gamma`` 0 and no ``alpha``, the cross entropy.

    .. math:: \alpha_t\, (1 - p_t)^\gamma\, (-\log p_t), \qquad p = \mathrm{softmax}(x)

    with the probability :math:`p_t` of the target's class. It is computed in float32 (in float64 for float64) without
    overflow or cancellation at any finite logit.

    Args:
        inputs: logits ``[N, K, ...]`` of K classes, float32, float64, bfloat16 or float16.
        targets: classes ``[N, ...]``, 0 to K - 1: uint8, int8, int16, int32 or int64.
        alpha: weight of every class, a floating tensor ``[K]``; or one number, 0 or more, for all classes; or None: 1.
        gamma: exponent, 0 or more.
        ignore_index: positions with this target have no loss and no gradient and do not count in the mean, whatever their
            logits. It may be a class, too.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``. The mean is over all positions but the ignored, whatever their
            weights; ``torch.nn.functional.cross_entropy`` divides by the sum of weights instead.

    Contiguous and channels_last logits are read in place, and slices of them.

    Returns:
        The loss of each position ``[N, ...]``, or their mean (NaN where none counts) or sum, in the dtype of ``inputs``.

    The gradient by ``inputs`` has, where they are dense, their strides. For ``gamma < 1`` it is 0, its limit, where
    :math:`1 - p_t` underflows. A gradient by ``alpha`` is computed by the plain PyTorch reference, and so is a double
    backward.

    Raises:
        TypeError: an argument is not a tensor or not a number, or has a dtype that does not fit.
        ValueError: shapes or devices differ, ``alpha``, ``gamma`` or ``reduction`` is none of the above, or, on the CPU, a
            target is neither a class nor ``ignore_index``. On a GPU, where looking would mean waiting, such a target makes
            the loss and the gradient of its position NaN, and with it a mean or a sum; nothing is read out of bounds. So
            does it in code compiled for Triton's interpreter; compiled C++ code raises a RuntimeError.

    Source:
        Lin, Goyal, Girshick, He, Dollar: Focal Loss for Dense Object Detection, ICCV 2017, equation 5, with the softmax in
        place of the sigmoid.
    """
    try:
        if type(gamma) is not float:
            gamma = _checks.check_number(_OP, "gamma", gamma)
        weights, scale = (None, 1.0) if alpha is None else _weights(alpha)
        return _call(inputs, targets, weights, scale, gamma, ignore_index, REDUCTION_INDEX[reduction])
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        refusal = error
    # Only a call that failed pays for finding out which argument is at fault.
    _check(inputs, targets, alpha, gamma, ignore_index, reduction)
    raise refusal


def _weights(alpha: float | Tensor) -> tuple[Tensor | None, float]:
    """The weight of every class, and of all of them."""
    return (alpha, 1.0) if isinstance(alpha, Tensor) else (None, _checks.check_number(_OP, "alpha", alpha))


def _call(
    inputs: Tensor,
    targets: Tensor,
    alpha: Tensor | None,
    scale: float,
    gamma: float,
    ignore_index: int,
    reduction: int,
) -> Tensor:
    device_type = "cpu" if inputs.is_cpu else inputs.device.type
    compiling = torch.compiler.is_compiling()
    weighted = alpha is not None and alpha.requires_grad
    differentiable = torch.is_grad_enabled() and (inputs.requires_grad or weighted)
    if transforms_active() or (compiling and differentiable and weighted):
        kernels = None
    else:
        kernels = _select.traced(device_type) if compiling else _select(device_type)
    if kernels is None or compiling or not kernels.check_arguments:
        _check(inputs, targets, scale if alpha is None else alpha, gamma, ignore_index, REDUCTIONS[reduction])
    if kernels is None:
        return _reference(scale, gamma, ignore_index, reduction)(inputs, targets, alpha)
    if not (inputs.is_contiguous() and targets.is_contiguous()):
        inputs, targets = _readable(inputs, targets)
    if compiling:
        stored = differentiable and stores_gradient(inputs, reduction)
        return kernels.forward(inputs, targets, alpha, scale, gamma, ignore_index, reduction, stored)[0]
    if differentiable:
        return _SoftmaxFocalLoss.apply(kernels, inputs, targets, alpha, scale, gamma, ignore_index, reduction)
    with below_autograd():
        return kernels.forward(inputs, targets, alpha, scale, gamma, ignore_index, reduction, False)[0]


def _reference(scale: float, gamma: float, ignore_index: int, reduction: int) -> Callable[..., Tensor]:
    """The reference as a function of inputs, targets and alpha."""
    options: dict[str, Any] = {"gamma": gamma, "ignore_index": ignore_index, "reduction": REDUCTIONS[reduction]}

    def function(inputs: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        weights = alpha if alpha is not None else None if scale == 1.0 else scale
        return reference.softmax_focal_loss(inputs, targets, weights, **options)

    return function


class _SoftmaxFocalLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        kernels: Kernels,
        inputs: Tensor,
        targets: Tensor,
        alpha: Tensor | None,
        scale: float,
        gamma: float,
        ignore_index: int,
        reduction: int,
    ) -> Tensor:
        stored = stores_gradient(inputs, reduction) and not (alpha is not None and alpha.requires_grad)
        with below_autograd():
            loss, gradient = kernels.forward(inputs, targets, alpha, scale, gamma, ignore_index, reduction, stored)
        ctx.kernels = kernels
        ctx.gradient = gradient if stored else None
        _save(ctx, (inputs, targets, alpha, scale, gamma, ignore_index, reduction, False), (loss, gradient))
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> tuple[Any, ...]:
        if ctx.gradient is None or grad_output is None or torch.is_grad_enabled():
            return None, *_gradients(ctx, ctx.kernels.backward, grad_output)[:7]
        return None, take_gradient(ctx, ctx.kernels, grad_output), *(None,) * 6


def _save(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, Tensor]) -> None:
    logits, targets, alpha, *ctx.options, stored = inputs
    ctx.save_for_backward(logits, targets, alpha, outputs[1] if stored and ctx.options[-1] else None)
    ctx.set_materialize_grads(False)


def _gradients(
    ctx: Any, backward: Callable[..., Tensor], grad_output: Tensor | None, _: Tensor | None = None
) -> tuple[Any, ...]:
    if grad_output is None:
        return (None,) * 8
    inputs, targets, alpha, stored = ctx.saved_tensors
    reduction = ctx.options[-1]
    if torch.is_grad_enabled() or (alpha is not None and alpha.requires_grad):
        found = reference_gradients(_reference(*ctx.options), (inputs, targets, alpha), grad_output)
        return *found, *(None,) * 5
    if stored is not None:
        gradient = scaled(stored, grad_output)
    else:
        if not (reduction or (inputs.is_contiguous() and targets.is_contiguous() and grad_output.is_contiguous())):
            grad_output = _as_readable(grad_output, inputs, targets)
        gradient = backward(grad_output, inputs, targets, alpha, *ctx.options)
    return gradient, *(None,) * 7


def _fake_forward(
    inputs: Tensor,
    targets: Tensor,
    alpha: Tensor | None,
    scale: float,
    gamma: float,
    ignore_index: int,
    reduction: int,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Returns the loss and, for a mean or a sum with ``with_gradient``, its gradient by inputs, otherwise nothing."""
    # Dispatch brings a call here where any tensor is on the meta device.
    _checks.check_same_device(_OP, "inputs", inputs.device, (("targets", targets), ("alpha", alpha)))
    if reduction == 0:
        return torch.empty_like(targets, dtype=inputs.dtype), inputs.new_empty((0,))
    gradient = torch.empty_like(inputs) if with_gradient else inputs.new_empty((0,))
    return inputs.new_empty(()), gradient


def _fake_backward(
    grad_output: Tensor,
    inputs: Tensor,
    targets: Tensor,
    alpha: Tensor | None,
    scale: float,
    gamma: float,
    ignore_index: int,
    reduction: int,
) -> Tensor:
    """Returns the gradient of inputs."""
    return torch.empty_like(inputs)


_select = register(
    _OP, forward=_fake_forward, backward=_fake_backward, save=_save, gradients=_gradients, native=("cpu", "cuda")
)


def check_softmax_focal_options(op: str, alpha: object, gamma: float, ignore_index: int, reduction: str) -> None:
    """ValueError or TypeError for what neither the function nor its module takes."""
    if isinstance(alpha, Tensor):
        _checks.check_tensor(op, "alpha", alpha)
        _checks.check_floating(op, "alpha", alpha)
        if alpha.dim() != 1:
            _checks.bad_value(op, "alpha", "of shape [K], a weight for each class", _checks.shape_of(alpha))
    elif alpha is not None and not 0 <= _checks.check_number(op, "alpha", alpha) < math.inf:
        _checks.bad_value(op, "alpha", "None, a finite number, 0 or more, or a tensor [K]", alpha)
    gamma = _checks.check_number(op, "gamma", gamma)
    if not 0 <= gamma < math.inf:
        _checks.bad_value(op, "gamma", "a finite number, 0 or more", gamma)
    if not isinstance(ignore_index, (int, torch.SymInt)) or isinstance(ignore_index, bool):
        _checks.bad_type(op, "ignore_index", "an integer", f"{ignore_index!r} ({type(ignore_index).__name__})")
    _checks.check_choice(op, "reduction", reduction, REDUCTIONS)


def _check(
    inputs: Tensor, targets: Tensor, alpha: float | Tensor | None, gamma: float, ignore_index: int, reduction: str
) -> None:
    _checks.check_tensor(_OP, "inputs", inputs)
    _checks.check_tensor(_OP, "targets", targets)
    check_softmax_focal_options(_OP, alpha, gamma, ignore_index, reduction)
    _checks.check_floating(_OP, "inputs", inputs)
    if targets.dtype not in _TARGETS:
        _checks.bad_type(_OP, "targets", "uint8 or a signed integer", targets.dtype)
    if inputs.dim() < 2 or inputs.shape[1] < 1:
        _checks.bad_value(_OP, "inputs", "[N, K, ...] with at least one class", _checks.shape_of(inputs))
    weights = alpha if isinstance(alpha, Tensor) else None
    _checks.check_same_device(_OP, "inputs", inputs.device, (("targets", targets), ("alpha", weights)))
    expected = [*inputs.shape[:1], *inputs.shape[2:]]
    if list(targets.shape) != expected:
        hint = (
            ": take the channel away with targets[:, 0]"
            if list(targets.shape) == [*expected[:1], 1, *expected[1:]]
            else ""
        )
        wanted = f"of the shape of inputs without the classes, {expected}"
        _checks.bad_value(_OP, "targets", wanted, f"{_checks.shape_of(targets)}; a loss never broadcasts{hint}")
    if weights is not None and weights.shape[0] != inputs.shape[1]:
        _checks.bad_value(
            _OP, "alpha", f"of shape [{inputs.shape[1]}], a weight for each class", _checks.shape_of(weights)
        )
    if inputs.is_cpu and not torch.compiler.is_compiling() and not transforms_active():
        _check_classes(targets, inputs.shape[1], ignore_index)


def _check_classes(targets: Tensor, classes: int, ignore_index: int) -> None:
    strange = targets[(targets != ignore_index) & ((targets < 0) | (targets >= classes))]
    if strange.numel():
        expected = f"a class, 0 to {classes - 1}, or ignore_index, {ignore_index}, at every position"
        _checks.bad_value(_OP, "targets", expected, f"{int(strange[0])} ({strange.numel()} such targets)")


def _walks(inputs: Tensor, targets: Tensor, *others: Tensor) -> bool:
    """Whether the kernels walk these in place, and the gradient of inputs."""
    gradient = torch.empty_like(inputs, device="meta")
    return as_rows(targets, inputs.select(1, 0), gradient.select(1, 0), *others) is not None


def _readable(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Both as they are where the kernels read them in place, otherwise what cannot be read so copied."""
    if inputs.dim() < 2 or inputs.shape[:1] + inputs.shape[2:] != targets.shape or inputs.shape[1] == 0:
        return inputs, targets  # which the operator refuses
    if not _walks(inputs, targets):
        targets = targets.contiguous()
        if not _walks(inputs, targets):
            inputs = inputs.contiguous()
    return inputs, targets


def _as_readable(grad_output: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    """``grad_output`` as it is where the kernels walk it in place beside the others, otherwise laid out like targets."""
    if _walks(inputs, targets, grad_output):
        return grad_output
    return torch.empty_like(targets, dtype=grad_output.dtype).copy_(grad_output)

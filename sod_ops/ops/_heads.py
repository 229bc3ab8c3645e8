"""Losses of several heads against one mask: how they are called, and their autograd.

Their operators have the signatures ``(heads, mask, *options, weights, reduction, with_gradient) -> (loss, gradients)`` and
``(grad_output, heads, mask, *options, weights, reduction) -> gradients``; their references ``(heads, mask, *options,
weights, reduction)``, with the reduction by name. A mean or a sum stores its gradients (sod_ops/ops/_stored_gradient.py).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sod_ops.backends import Kernels, Selector
from sod_ops.ops import _checks
from sod_ops.ops._operators import below_autograd, reference_gradients, register, transforms_active
from sod_ops.ops._reductions import REDUCTION_INDEX
from sod_ops.ops._stored_gradient import scale_in_place, scaled, stores_gradient
from sod_ops.reference.sigmoid_focal_loss import REDUCTIONS


class HeadsLoss:
    """One of these losses.

    Args:
        name: the op's stem.
        reference: its definition.
        forward: the forward operator's fake kernel; its annotations are the operator's schema.
        backward: the same for the backward operator.
        native: the backends that the compiled part has kernels for.
    """

    def __init__(
        self,
        name: str,
        *,
        reference: Callable[..., Tensor],
        forward: Callable[..., Any],
        backward: Callable[..., Any],
        native: Sequence[str],
    ) -> None:
        self._reference = reference
        self.select: Selector = register(
            name, forward=forward, backward=backward, save=self._save, gradients=self._gradients, native=native
        )

    def __call__(
        self,
        op: str,
        argument: str,
        value: Tensor | Sequence[Tensor],
        mask: Tensor,
        options: Callable[[], tuple[Any, ...]],
        weights: Sequence[float] | None,
        reduction: str,
        check_options: Callable[[], None],
        *,
        exact: bool,
    ) -> Tensor:
        """What the public functions do with their arguments.

        Args:
            op: the public function, and ``argument`` its first argument's name, for messages.
            value: a head, or several.
            options: gives the operator's options, from arguments that may turn out not to fit.
            check_options: raises for bad options; heads, mask and weights are checked here.
            exact: whether the options have the very types that the operator takes; otherwise they are checked first.
        """

        def check() -> None:
            heads = heads_of(op, argument, value)
            check_heads(op, argument, heads, mask)
            weights_of(op, weights, len(heads))
            check_options()

        try:
            heads = [value] if isinstance(value, Tensor) else list(value)
            of_heads = [1.0] * len(heads) if weights is None else [float(weight) for weight in weights]
            if not exact or isinstance(weights, Tensor):
                check()
            return self._call(heads, mask, options(), of_heads, REDUCTION_INDEX[reduction], check)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            refusal = error
        # Only a call that failed pays for finding out which argument is at fault.
        check()
        raise refusal

    def _call(
        self,
        heads: Sequence[Tensor],
        mask: Tensor,
        options: tuple[Any, ...],
        weights: Sequence[float],
        reduction: int,
        check: Callable[[], None],
    ) -> Tensor:
        """The loss; ``check`` raises for bad arguments, and is called where the kernels don't refuse them themselves."""
        device_type = "cpu" if mask.is_cpu else mask.device.type
        compiling = torch.compiler.is_compiling()
        differentiable = torch.is_grad_enabled() and (mask.requires_grad or any(h.requires_grad for h in heads))
        if transforms_active() or (compiling and differentiable and mask.requires_grad):
            kernels = None
        else:
            kernels = self.select.traced(device_type) if compiling else self.select(device_type)
        if kernels is None or compiling or not kernels.check_arguments:
            check()
        if kernels is None:
            return self._reference(heads, mask, *options, weights, REDUCTIONS[reduction])
        if compiling:
            stored = differentiable and stores_gradient(heads[0], reduction)
            return kernels.forward(heads, mask, *options, weights, reduction, stored)[0]
        if differentiable:
            return _HeadsLoss.apply(self, kernels, mask, options, weights, reduction, *heads)
        with below_autograd():
            return kernels.forward(heads, mask, *options, weights, reduction, False)[0]

    def _save(self, ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, list[Tensor]]) -> None:
        heads, mask, *options, ctx.weights, ctx.reduction, stored = inputs
        ctx.options, ctx.count = tuple(options), len(heads)
        ctx.save_for_backward(*heads, mask, *(outputs[1] if stored and ctx.reduction else ()))
        ctx.set_materialize_grads(False)

    def _gradients(
        self, ctx: Any, backward: Callable[..., list[Tensor]], grad_output: Tensor | None, *_: Any
    ) -> tuple[Any, ...]:
        """The gradients of an operator's arguments."""
        rest = (None,) * (len(ctx.options) + 3)
        if grad_output is None:
            return [None] * ctx.count, None, *rest
        heads, mask, stored = (
            ctx.saved_tensors[: ctx.count],
            ctx.saved_tensors[ctx.count],
            ctx.saved_tensors[ctx.count + 1 :],
        )
        if torch.is_grad_enabled() or mask.requires_grad:
            *of_heads, of_mask = reference_gradients(
                lambda *tensors: self._reference(
                    tensors[:-1], tensors[-1], *ctx.options, ctx.weights, REDUCTIONS[ctx.reduction]
                ),
                (*heads, mask),
                grad_output,
            )
            return of_heads, of_mask, *rest
        if stored:
            return [scaled(gradient, grad_output) for gradient in stored], None, *rest
        return backward(grad_output, heads, mask, *ctx.options, ctx.weights, ctx.reduction), None, *rest


class _HeadsLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        loss: HeadsLoss,
        kernels: Kernels,
        mask: Tensor,
        options: tuple[Any, ...],
        weights: Sequence[float],
        reduction: int,
        *heads: Tensor,
    ) -> Tensor:
        stored = stores_gradient(heads[0], reduction) and not mask.requires_grad
        with below_autograd():
            value, gradients = kernels.forward(heads, mask, *options, weights, reduction, stored)
        ctx.loss, ctx.kernels = loss, kernels
        # Outside of what autograd saves: the first backward takes them, to scale them in place and give them away.
        ctx.gradients = gradients if stored else None
        loss._save(ctx, (heads, mask, *options, weights, reduction, False), (value, gradients))
        return value

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> tuple[Any, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None or grad_output is None or torch.is_grad_enabled():
            of_heads, of_mask, *_ = ctx.loss._gradients(ctx, ctx.kernels.backward, grad_output)
            return None, None, of_mask, None, None, None, *of_heads
        scale_in_place(ctx.kernels, gradients, grad_output)
        return (None,) * 6 + tuple(gradients)


def empty_results(
    op: str, heads: Sequence[Tensor], mask: Tensor, reduction: int, with_gradient: bool
) -> tuple[Tensor, list[Tensor]]:
    """What the forward operators return, as their fake kernels do."""
    # Dispatch brings a call here where any tensor is on the meta device.
    _checks.check_same_device(op, "mask", mask.device, (("logits", head) for head in heads))
    dtype = torch.promote_types(heads[0].dtype, mask.dtype)
    loss = mask.new_empty(() if reduction else mask.shape[:1], dtype=dtype)
    return loss, [torch.empty_like(head) for head in heads] if with_gradient and reduction else []


def heads_of(op: str, argument: str, value: Any) -> list[Tensor]:
    """``value``, a tensor or a sequence of them, as a list."""
    if isinstance(value, Tensor):
        return [value]
    if not isinstance(value, (list, tuple)):
        _checks.bad_type(op, argument, "a Tensor or a list or tuple of them", type(value).__name__)
    return list(value)


def weights_of(op: str, value: Any, count: int) -> list[float]:
    """A weight for each of ``count`` heads: 1 where ``value`` is None."""
    if value is None:
        return [1.0] * count
    if isinstance(value, (str, bytes, Tensor)) or not hasattr(value, "__iter__"):
        _checks.bad_type(op, "weights", "a sequence of numbers, one for each head", f"{value!r}")
    weights = [_checks.check_number(op, "weights", weight) for weight in value]
    if len(weights) != count:
        _checks.bad_value(op, "weights", f"a number for each of {count} heads", f"{len(weights)}")
    return weights


def check_heads(op: str, argument: str, heads: list[Tensor], mask: Any) -> None:
    """Raises unless every head has the mask's shape [B, 1, H, W] and device, and all have one floating dtype."""
    _checks.check_tensor(op, "mask", mask)
    if not heads:
        _checks.bad_value(op, argument, "a head or more", "none")
    for index, head in enumerate(heads):
        name = argument if len(heads) == 1 else f"{argument}[{index}]"
        _checks.check_tensor(op, name, head)
        _checks.check_floating(op, name, head)
        if head.dtype != heads[0].dtype:
            _checks.bad_type(op, name, f"{heads[0].dtype} as {argument}[0] is", head.dtype)
        _checks.check_same_device(op, "mask", mask.device, ((name, head),))
        _check_size(op, name, head, mask)
        _checks.check_loss_shapes(op, name, head, "mask", mask)
    if mask.dtype not in _checks.READABLE:
        _checks.bad_type(op, "mask", "floating, bool, uint8 or a signed integer", mask.dtype)
    if mask.dim() != 4 or mask.shape[1] != 1:
        hint = "; take a channel with a slice, out[:, :1]" if mask.dim() == 4 else ""
        _checks.bad_value(op, "mask", "of shape [B, 1, H, W]", _checks.shape_of(mask) + hint)


def check_probabilities(op: str, value: Tensor | Sequence[Tensor]) -> None:
    """ValueError where a probability on the CPU is outside [0, 1]; elsewhere looking would wait for the device."""
    for head in heads_of(op, "probabilities", value):
        if head.is_cpu and head.numel() and not (head.min() >= 0 and head.max() <= 1):
            _checks.bad_value(op, "probabilities", "in [0, 1]", f"{head.min().item():g} to {head.max().item():g}")


def _check_size(op: str, name: str, head: Tensor, mask: Tensor) -> None:
    if head.dim() == mask.dim() == 4 and head.shape[:2] == mask.shape[:2] and head.shape != mask.shape:
        size = f"{mask.shape[-2]}x{mask.shape[-1]}"
        expected = f"of the size of mask, {size}: upsample it first"
        _checks.bad_value(op, name, expected, f"{head.shape[-2]}x{head.shape[-1]}")

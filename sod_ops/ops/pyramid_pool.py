"""Pyramid pooling: the public function, its checks and its autograd."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sod_ops.backends import Kernels
from sod_ops.ops import _checks
from sod_ops.ops._maps import beside_gradient, in_supported_layout, lies_in_planes
from sod_ops.ops._operators import below_autograd, reference_gradients, register, transforms_active
from sod_ops.reference.pyramid_pool import pyramid_pool as reference

_OP = "pyramid_pool"


def pyramid_pool(x: Tensor, bins: Sequence[int] = (1, 2, 3, 6)) -> tuple[Tensor, ...]:
    r"""Pyramid pooling: the means of ``x`` over grids of 1 x 1, 2 x 2, ... bins, in one pass over ``x``.

    Each result is that of ``torch.nn.functional.adaptive_avg_pool2d``, of which bins overlap where H or W is not
    divisible. Sums are taken in float32 (float64 for float64). The gradient is gathered: it is bitwise the same from
    run to run.

    Args:
        x: ``[N, C, H, W]``, float32, float64, bfloat16 or float16; C, H and W at least 1. Contiguous and channels_last
            tensors, and slices of their batch or channels, are read in place.
        bins: how many bins each level has along H and along W: any positive integers, also above H or W.

    Returns:
        For every ``s`` of ``bins`` a tensor ``[N, C, s, s]``, in the dtype and memory format of ``x``.

    Raises:
        TypeError: ``x`` is not a floating tensor, ``bins`` not a sequence of integers.
        ValueError: the shape of ``x`` does not fit, ``bins`` is empty or holds a number below 1.

    Source:
        Zhao et al.: Pyramid Scene Parsing Network, CVPR 2017, section 3.2.
    """
    return _levels(x, bins, pass_on=False)


def pool_and_pass_on(x: Tensor, bins: Sequence[int]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """``x`` for those who read it beside its levels, and the levels: :func:`pyramid_pool` in eager mode adds the gradient of
    that ``x`` to its own in the one pass that it takes anyway, where autograd would read and write both once more."""
    x, *levels = _levels(x, bins, pass_on=True)
    return x, tuple(levels)


def _levels(x: Tensor, bins: Sequence[int], *, pass_on: bool) -> tuple[Tensor, ...]:
    """The levels, behind ``x`` itself if that is passed on."""
    try:
        return _call(x, bins, pass_on)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        refusal = error
    # Only a call that failed pays for finding out which argument is at fault.
    _check(x, bins)
    raise refusal


def _call(x: Tensor, bins: Sequence[int], pass_on: bool) -> tuple[Tensor, ...]:
    check_bins(_OP, bins)
    device_type = "cpu" if x.is_cpu else x.device.type
    compiling = torch.compiler.is_compiling()
    if transforms_active():
        kernels = None
    else:
        kernels = _select.traced(device_type) if compiling else _select(device_type)
    if kernels is None or compiling or not kernels.check_arguments:
        _check(x, bins)
    passed = (x,) if pass_on else ()
    if kernels is None:
        return *passed, *reference(x, bins)
    source = in_supported_layout(x)
    if compiling:
        return *passed, *kernels.forward(source, bins)
    if torch.is_grad_enabled() and x.requires_grad:
        return _PyramidPool.apply(kernels, source, bins, pass_on)
    with below_autograd():
        return *passed, *kernels.forward(source, bins)


class _PyramidPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: Kernels, x: Tensor, bins: Sequence[int], pass_on: bool) -> tuple[Tensor, ...]:
        with below_autograd():
            outputs = kernels.forward(x, bins)
        ctx.kernels = kernels
        ctx.pass_on = pass_on
        # A gradient of x that is not there would be a map of zeros.
        ctx.set_materialize_grads(False)
        _save(ctx, (x, bins), outputs)
        return (x, *outputs) if pass_on else tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Any, ...]:
        other, levels = (grad_outputs[0], grad_outputs[1:]) if ctx.pass_on else (None, grad_outputs)
        like = next((grad for grad in levels if grad is not None), None)
        if like is None:
            return None, other, None, None
        grads = [
            like.new_zeros((*ctx.shape[:2], size, size)) if grad is None else grad
            for grad, size in zip(levels, ctx.bins, strict=True)
        ]
        if torch.is_grad_enabled():
            grad_x, _ = _gradients(ctx, ctx.kernels.backward, grads)
            return None, grad_x if other is None else grad_x + other, None, None
        with below_autograd():
            grad_x, _ = _gradients(ctx, ctx.kernels.backward, grads, other)
        return None, grad_x, None, None


def _save(ctx: Any, inputs: tuple[Any, ...], outputs: Sequence[Tensor]) -> None:
    # Means are linear: their gradient needs nothing of x but its shape.
    x, ctx.bins = inputs
    ctx.shape = x.shape
    ctx.channels_last = not lies_in_planes(x)


def _gradients(
    ctx: Any, backward: Callable[..., Tensor], grad_outputs: Sequence[Tensor], other: Tensor | None = None
) -> tuple[Any, None]:
    if torch.is_grad_enabled():
        x = grad_outputs[0].new_zeros(()).expand(ctx.shape).requires_grad_()
        (grad_x,) = reference_gradients(partial(reference, bins=ctx.bins), (x,), tuple(grad_outputs))
        return grad_x, None
    memory_format = torch.channels_last if ctx.channels_last else torch.contiguous_format
    grads = [grad.contiguous(memory_format=memory_format) for grad in grad_outputs]
    if other is not None:
        other = beside_gradient(other, ctx.channels_last)
    return backward(grads, ctx.bins, *ctx.shape[2:], ctx.channels_last, other), None


def _fake_forward(x: Tensor, bins: Sequence[int]) -> list[Tensor]:
    memory_format = torch.contiguous_format if lies_in_planes(x) else torch.channels_last
    return [
        torch.empty((*x.shape[:2], size, size), dtype=x.dtype, device=x.device, memory_format=memory_format)
        for size in bins
    ]


def _fake_backward(
    grads: Sequence[Tensor],
    bins: Sequence[int],
    height: int,
    width: int,
    channels_last: bool,
    other: Tensor | None = None,
) -> Tensor:
    """The gradient of x [N, C, height, width] from those of the levels, all in the memory format of x, and, where it has
    another one, the sum of both."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    first = grads[0]
    return torch.empty(
        (*first.shape[:2], height, width), dtype=first.dtype, device=first.device, memory_format=memory_format
    )


_select = register(_OP, forward=_fake_forward, backward=_fake_backward, save=_save, gradients=_gradients)


def check_bins(op: str, bins: Any) -> None:
    """Raises unless ``bins`` is a sequence of positive integers."""
    if not isinstance(bins, (tuple, list, torch.Size)):
        _checks.bad_type(op, "bins", "a sequence of integers", f"{bins!r} ({type(bins).__name__})")
    if not bins:
        _checks.bad_value(op, "bins", "at least one integer", bins)
    for size in bins:
        if not isinstance(size, int) or isinstance(size, bool):
            _checks.bad_type(op, "bins", "integers", f"{size!r} ({type(size).__name__}) among {bins}")
        if size < 1:
            _checks.bad_value(op, "bins", "integers of at least 1", bins)


def _check(x: Tensor, bins: Sequence[int]) -> None:
    _checks.check_map(_OP, "x", x)
    check_bins(_OP, bins)

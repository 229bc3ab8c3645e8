"""The mean and the maximum over space: the public function, its checks and its autograd."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sod_ops.backends import Kernels
from sod_ops.ops import _checks
from sod_ops.ops._maps import beside_gradient, in_supported_layout, lies_in_planes
from sod_ops.ops._operators import below_autograd, register, transforms_active
from sod_ops.reference import global_pool as reference

_OP = "global_pool"


def global_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    r"""The mean and the maximum of every channel over its pixels, in one pass over ``x``.

    .. math:: a_{n,c} = \frac{1}{H W} \sum_{i,j} x_{n,c,i,j}, \quad m_{n,c} = \max_{i,j} x_{n,c,i,j}

    They are ``adaptive_avg_pool2d(x, 1)`` and ``adaptive_max_pool2d(x, 1)``. Sums are taken in float32 (float64 for
    float64). Where several pixels share the maximum, its gradient goes to the first, row by row, as that of
    ``torch.max(x.flatten(2), 2)`` does; a NaN is the maximum. The backward needs nothing of ``x`` but the pixel of each
    maximum.

    Args:
        x: ``[N, C, H, W]`` with H and W at least 1, float32, float64, bfloat16 or float16. Contiguous and channels_last
            tensors, and slices of their batch or channels, are read in place.

    Returns:
        The mean and the maximum, both ``[N, C, 1, 1]`` in the dtype of ``x``.

    Raises:
        TypeError: ``x`` is not a dense floating tensor.
        ValueError: ``x`` is not ``[N, C, H, W]``, or H or W is 0.

    Source:
        Woo, Park, Lee, Kweon: CBAM: Convolutional Block Attention Module, ECCV 2018, section 3.1.
    """
    mean, maximum = _pool(x, pass_on=False)
    return mean, maximum


def global_pool_and_pass_on(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``x`` for who reads it next, and :func:`global_pool` of it: in eager mode the gradient of that ``x`` is added in the
    one pass that writes the pooling's, where autograd would read and write both once more."""
    x, mean, maximum = _pool(x, pass_on=True)
    return x, mean, maximum


def _pool(x: Tensor, *, pass_on: bool) -> tuple[Tensor, ...]:
    """The results, behind ``x`` itself if that is passed on."""
    try:
        return _call(x, pass_on)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        refusal = error
    # Only a call that failed pays for finding out what is at fault.
    _check(x)
    raise refusal


def _call(x: Tensor, pass_on: bool) -> tuple[Tensor, ...]:
    device_type = "cpu" if x.is_cpu else x.device.type
    compiling = torch.compiler.is_compiling()
    if transforms_active():
        kernels = None
    else:
        kernels = _select.traced(device_type) if compiling else _select(device_type)
    if kernels is None or compiling or not kernels.check_arguments:
        _check(x)
    passed = (x,) if pass_on else ()
    if kernels is None:
        return *passed, *reference.global_pool(x)
    source = in_supported_layout(x)
    if compiling:
        return *passed, *kernels.forward(source)[:2]
    if torch.is_grad_enabled() and x.requires_grad:
        return _GlobalPool.apply(kernels, source, pass_on)
    with below_autograd():
        return *passed, *kernels.forward(source)[:2]


class _GlobalPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: Kernels, x: Tensor, pass_on: bool) -> tuple[Tensor, ...]:
        with below_autograd():
            outputs = kernels.forward(x)
        ctx.kernels = kernels
        # A gradient of x that is not there would be a map of zeros.
        ctx.set_materialize_grads(False)
        _save(ctx, (x,), outputs)
        return (x, *outputs[:2]) if pass_on else tuple(outputs[:2])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Any, ...]:
        *others, grad_mean, grad_maximum = grad_outputs
        other = others[0] if others else None
        like = grad_maximum if grad_mean is None else grad_mean
        if like is None:
            return None, other, None
        grads = [torch.zeros_like(like) if grad is None else grad for grad in (grad_mean, grad_maximum)]
        if torch.is_grad_enabled():
            (grad_x,) = _gradients(ctx, ctx.kernels.backward, *grads)
            return None, grad_x if other is None else grad_x + other, None
        with below_autograd():
            return None, *_gradients(ctx, ctx.kernels.backward, grads[0], grads[1], other=other), None


def _save(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, Tensor, Tensor]) -> None:
    (x,) = inputs
    ctx.size = tuple(x.shape[2:])
    ctx.channels_last = not lies_in_planes(x)
    ctx.save_for_backward(outputs[2])


def _gradients(
    ctx: Any,
    backward: Callable[..., Tensor],
    grad_mean: Tensor,
    grad_maximum: Tensor,
    _: Tensor | None = None,
    other: Tensor | None = None,
) -> tuple[Tensor]:
    (indices,) = ctx.saved_tensors
    if torch.is_grad_enabled():
        return (reference.global_pool_backward(grad_mean, grad_maximum, indices, *ctx.size),)
    if other is not None:
        other = beside_gradient(other, ctx.channels_last)
    return (backward(grad_mean.contiguous(), grad_maximum.contiguous(), indices, *ctx.size, ctx.channels_last, other),)


def _fake_forward(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the mean, the maximum, and the pixel of each maximum, [N, C] in int64."""
    samples, channels = x.shape[:2]
    mean = x.new_empty((samples, channels, 1, 1))
    return mean, torch.empty_like(mean), x.new_empty((samples, channels), dtype=torch.int64)


def _fake_backward(
    grad_mean: Tensor,
    grad_maximum: Tensor,
    indices: Tensor,
    height: int,
    width: int,
    channels_last: bool,
    other: Tensor | None = None,
) -> Tensor:
    """The gradient of x [N, C, height, width], and, where it has another one, the sum of both."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(
        (*indices.shape, height, width), dtype=grad_mean.dtype, device=grad_mean.device, memory_format=memory_format
    )


_select = register(_OP, forward=_fake_forward, backward=_fake_backward, save=_save, gradients=_gradients)


def _check(x: Tensor) -> None:
    _checks.check_map(_OP, "x", x, not_empty="H and W")

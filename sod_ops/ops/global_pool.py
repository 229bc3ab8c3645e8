"""The mean and the maximum over space: the public function, its checks and its autograd."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sod_ops.backends import Kernels
from sod_ops.ops import _checks
from sod_ops.ops._maps import in_supported_layout, lies_in_planes
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
    try:
        return _call(x)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        refusal = error
    # Only a call that failed pays for finding out what is at fault.
    _check(x)
    raise refusal


def _call(x: Tensor) -> tuple[Tensor, Tensor]:
    device_type = "cpu" if x.is_cpu else x.device.type
    compiling = torch.compiler.is_compiling()
    if transforms_active():
        kernels = None
    else:
        kernels = _select.traced(device_type) if compiling else _select(device_type)
    if kernels is None or compiling or not kernels.check_arguments:
        _check(x)
    if kernels is None:
        return reference.global_pool(x)
    x = in_supported_layout(x)
    if compiling:
        mean, maximum, _ = kernels.forward(x)
        return mean, maximum
    if torch.is_grad_enabled() and x.requires_grad:
        return _GlobalPool.apply(kernels, x)
    with below_autograd():
        mean, maximum, _ = kernels.forward(x)
    return mean, maximum


class _GlobalPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: Kernels, x: Tensor) -> tuple[Tensor, Tensor]:
        with below_autograd():
            outputs = kernels.forward(x)
        ctx.kernels = kernels
        _save(ctx, (x,), outputs)
        return outputs[0], outputs[1]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            return None, *_gradients(ctx, ctx.kernels.backward, *grad_outputs)
        with below_autograd():
            return None, *_gradients(ctx, ctx.kernels.backward, *grad_outputs)


def _save(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, Tensor, Tensor]) -> None:
    (x,) = inputs
    ctx.size = tuple(x.shape[2:])
    ctx.channels_last = not lies_in_planes(x)
    ctx.save_for_backward(outputs[2])


def _gradients(
    ctx: Any, backward: Callable[..., Tensor], grad_mean: Tensor, grad_maximum: Tensor, _: Tensor | None = None
) -> tuple[Tensor | None]:
    (indices,) = ctx.saved_tensors
    if torch.is_grad_enabled():
        return (reference.global_pool_backward(grad_mean, grad_maximum, indices, *ctx.size),)
    return (backward(grad_mean.contiguous(), grad_maximum.contiguous(), indices, *ctx.size, ctx.channels_last),)


def _fake_forward(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the mean, the maximum, and the pixel of each maximum, [N, C] in int64."""
    samples, channels = x.shape[:2]
    mean = x.new_empty((samples, channels, 1, 1))
    return mean, torch.empty_like(mean), x.new_empty((samples, channels), dtype=torch.int64)


def _fake_backward(
    grad_mean: Tensor, grad_maximum: Tensor, indices: Tensor, height: int, width: int, channels_last: bool
) -> Tensor:
    """The gradient of x [N, C, height, width]."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(
        (*indices.shape, height, width), dtype=grad_mean.dtype, device=grad_mean.device, memory_format=memory_format
    )


_select = register(_OP, forward=_fake_forward, backward=_fake_backward, save=_save, gradients=_gradients)


def _check(x: Tensor) -> None:
    _checks.check_map(_OP, "x", x, not_empty="H and W")

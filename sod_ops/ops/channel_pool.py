"""The mean and the maximum over channels: the public function, its checks and its autograd."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sod_ops.backends import Kernels
from sod_ops.ops import _checks
from sod_ops.ops._maps import in_supported_layout, lies_in_planes
from sod_ops.ops._operators import below_autograd, register, transforms_active
from sod_ops.reference import channel_pool as reference

_OP = "channel_pool"


def channel_pool(x: Tensor) -> Tensor:
    r"""The mean and the maximum of every pixel over its channels, in one pass over ``x``.

    .. math:: y_{n,0,i,j} = \frac{1}{C} \sum_c x_{n,c,i,j}, \quad y_{n,1,i,j} = \max_c x_{n,c,i,j}

    The mean is channel 0 of the result, the maximum channel 1. (CBAM's published code has them the other way round:
    ``weight.flip(1)`` makes its convolution's weight fit.) Sums are taken in float32 (float64 for float64). Where several
    channels share the maximum, its gradient goes to the first, as that of ``torch.max(x, 1)`` does; a NaN is the maximum.
    The backward needs nothing of ``x`` but the channel of each maximum.

    Args:
        x: ``[N, C, H, W]`` with C at least 1, float32, float64, bfloat16 or float16. Contiguous and channels_last tensors,
            and slices of their batch or channels, are read in place.

    Returns:
        ``[N, 2, H, W]``, in the dtype and memory format of ``x``.

    Raises:
        TypeError: ``x`` is not a dense floating tensor.
        ValueError: ``x`` is not ``[N, C, H, W]``, or C is 0.

    Source:
        Woo, Park, Lee, Kweon: CBAM: Convolutional Block Attention Module, ECCV 2018, section 3.2.
    """
    try:
        return _call(x)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        refusal = error
    # Only a call that failed pays for finding out what is at fault.
    _check(x)
    raise refusal


def _call(x: Tensor) -> Tensor:
    device_type = "cpu" if x.is_cpu else x.device.type
    compiling = torch.compiler.is_compiling()
    if transforms_active():
        kernels = None
    else:
        kernels = _select.traced(device_type) if compiling else _select(device_type)
    if kernels is None or compiling or not kernels.check_arguments:
        _check(x)
    if kernels is None:
        return reference.channel_pool(x)
    x = in_supported_layout(x)
    if compiling:
        return kernels.forward(x)[0]
    if torch.is_grad_enabled() and x.requires_grad:
        return _ChannelPool.apply(kernels, x)
    with below_autograd():
        return kernels.forward(x)[0]


class _ChannelPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: Kernels, x: Tensor) -> Tensor:
        with below_autograd():
            outputs = kernels.forward(x)
        ctx.kernels = kernels
        _save(ctx, (x,), outputs)
        return outputs[0]

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            return None, *_gradients(ctx, ctx.kernels.backward, grad_output)
        with below_autograd():
            return None, *_gradients(ctx, ctx.kernels.backward, grad_output)


def _save(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, Tensor]) -> None:
    (x,) = inputs
    ctx.channels = x.shape[1]
    ctx.channels_last = not lies_in_planes(x)
    ctx.save_for_backward(outputs[1])


def _gradients(
    ctx: Any, backward: Callable[..., Tensor], grad_output: Tensor, _: Tensor | None = None
) -> tuple[Tensor | None]:
    (indices,) = ctx.saved_tensors
    if torch.is_grad_enabled():
        return (reference.channel_pool_backward(grad_output, indices, ctx.channels),)
    memory_format = torch.channels_last if ctx.channels_last else torch.contiguous_format
    return (backward(grad_output.contiguous(memory_format=memory_format), indices, ctx.channels, ctx.channels_last),)


def _fake_forward(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the result and the channel of each pixel's maximum, [N, 1, H, W] in int32."""
    samples, _, height, width = x.shape
    memory_format = torch.contiguous_format if lies_in_planes(x) else torch.channels_last
    y = torch.empty((samples, 2, height, width), dtype=x.dtype, device=x.device, memory_format=memory_format)
    return y, x.new_empty((samples, 1, height, width), dtype=torch.int32)


def _fake_backward(grad_output: Tensor, indices: Tensor, channels: int, channels_last: bool) -> Tensor:
    """The gradient of x, from that of the result in the memory format of x."""
    samples, _, height, width = grad_output.shape
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(
        (samples, channels, height, width), dtype=grad_output.dtype, device=grad_output.device,
        memory_format=memory_format,
    )  # fmt: skip


_select = register(_OP, forward=_fake_forward, backward=_fake_backward, save=_save, gradients=_gradients)


def _check(x: Tensor) -> None:
    _checks.check_map(_OP, "x", x, not_empty="C")

"""The mean and the maximum over channels: the public function, its checks and its autograd."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sod_ops.backends import Kernels
from sod_ops.ops import _checks
from sod_ops.ops._maps import beside_gradient, in_supported_layout, lies_in_planes
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
    return _pool(x, pass_on=False)[-1]


def channel_pool_and_pass_on(x: Tensor) -> tuple[Tensor, Tensor]:
    """``x`` for who reads it next, and :func:`channel_pool` of it: in eager mode the gradient of that ``x`` is added in the
    one pass that writes the pooling's, where autograd would read and write both once more."""
    x, y = _pool(x, pass_on=True)
    return x, y


def _pool(x: Tensor, *, pass_on: bool) -> tuple[Tensor, ...]:
    """The result, behind ``x`` itself if that is passed on."""
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
        return *passed, reference.channel_pool(x)
    source = in_supported_layout(x)
    if compiling:
        return *passed, kernels.forward(source)[0]
    if torch.is_grad_enabled() and x.requires_grad:
        return _ChannelPool.apply(kernels, source, pass_on)
    with below_autograd():
        return *passed, kernels.forward(source)[0]


class _ChannelPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: Kernels, x: Tensor, pass_on: bool) -> tuple[Tensor, ...]:
        with below_autograd():
            outputs = kernels.forward(x)
        ctx.kernels = kernels
        # A gradient of x that is not there would be a map of zeros.
        ctx.set_materialize_grads(False)
        _save(ctx, (x,), outputs)
        return (x, outputs[0]) if pass_on else (outputs[0],)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Any, ...]:
        *others, grad_output = grad_outputs
        other = others[0] if others else None
        if grad_output is None:
            return None, other, None
        if torch.is_grad_enabled():
            (grad_x,) = _gradients(ctx, ctx.kernels.backward, grad_output)
            return None, grad_x if other is None else grad_x + other, None
        with below_autograd():
            return None, *_gradients(ctx, ctx.kernels.backward, grad_output, other=other), None


def _save(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, Tensor]) -> None:
    (x,) = inputs
    ctx.channels = x.shape[1]
    ctx.channels_last = not lies_in_planes(x)
    ctx.save_for_backward(outputs[1])


def _gradients(
    ctx: Any,
    backward: Callable[..., Tensor],
    grad_output: Tensor,
    _: Tensor | None = None,
    other: Tensor | None = None,
) -> tuple[Tensor]:
    (indices,) = ctx.saved_tensors
    if torch.is_grad_enabled():
        return (reference.channel_pool_backward(grad_output, indices, ctx.channels),)
    memory_format = torch.channels_last if ctx.channels_last else torch.contiguous_format
    grad_output = grad_output.contiguous(memory_format=memory_format)
    if other is not None:
        other = beside_gradient(other, ctx.channels_last)
    return (backward(grad_output, indices, ctx.channels, ctx.channels_last, other),)


def _fake_forward(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the result and the channel of each pixel's maximum, [N, 1, H, W] in int32."""
    samples, _, height, width = x.shape
    memory_format = torch.contiguous_format if lies_in_planes(x) else torch.channels_last
    y = torch.empty((samples, 2, height, width), dtype=x.dtype, device=x.device, memory_format=memory_format)
    return y, x.new_empty((samples, 1, height, width), dtype=torch.int32)


def _fake_backward(
    grad_output: Tensor, indices: Tensor, channels: int, channels_last: bool, other: Tensor | None = None
) -> Tensor:
    """The gradient of x, from that of the result in the memory format of x, and, where it has another one, their sum."""
    samples, _, height, width = grad_output.shape
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(
        (samples, channels, height, width), dtype=grad_output.dtype, device=grad_output.device,
        memory_format=memory_format,
    )  # fmt: skip


_select = register(_OP, forward=_fake_forward, backward=_fake_backward, save=_save, gradients=_gradients)


def _check(x: Tensor) -> None:
    _checks.check_map(_OP, "x", x, not_empty="C")

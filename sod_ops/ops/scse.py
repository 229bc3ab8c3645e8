"""Concurrent spatial and channel squeeze and excitation: the public function, its checks and its autograd.

The operator below it is what both gates are computed from, the channels' means and the pixels' projections; the small
matrices between those and the gates are PyTorch's convolutions, and the scaling is gate.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sod_ops.backends import Kernels
from sod_ops.ops import _checks
from sod_ops.ops._maps import beside_gradient, in_supported_layout, lies_in_planes
from sod_ops.ops._operators import below_autograd, reference_gradients, register, transforms_active
from sod_ops.ops.gate import gate
from sod_ops.reference import scse as reference

_OP = "scse"


def scse(
    x: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor | None,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    spatial_weight: Tensor,
    spatial_bias: Tensor | None,
) -> Tensor:
    r"""Concurrent spatial and channel squeeze and excitation: a map scaled by the sum of two gates, in one pass.

    .. math:: y = x \, (\sigma(W_2\, \mathrm{relu}(W_1\, \overline{x} + b_1) + b_2) + \sigma(w * x + b))

    The means and the convolution of ``x`` are taken in one pass, the scaling is :func:`sod_ops.gate`; the backward takes two
    passes over ``x``. Sums are taken in float32 (float64 for float64).

    Args:
        x: ``[N, C, H, W]``, float32, float64, bfloat16 or float16; C, H and W at least 1.
        reduce_weight: ``[R, C, 1, 1]``.
        reduce_bias: ``[R]`` or None.
        expand_weight: ``[C, R, 1, 1]``.
        expand_bias: ``[C]`` or None.
        spatial_weight: ``[1, C, 1, 1]``.
        spatial_bias: ``[1]`` or None.

    The parameters have the dtype of ``x``, but under autocast, which casts what convolutions take.

    Returns:
        ``[N, C, H, W]``, in the dtype and memory format of ``x``.

    Raises:
        TypeError: an argument is not a floating tensor, or has another dtype than ``x``.
        ValueError: a shape or a device does not fit.

    Source:
        Roy, Navab, Wachinger: Concurrent Spatial and Channel Squeeze & Excitation in Fully Convolutional Networks, MICCAI
        2018; segmentation_models_pytorch's SCSEModule.
    """
    parameters = (reduce_weight, reduce_bias, expand_weight, expand_bias, spatial_weight, spatial_bias)
    try:
        return _call(x, *parameters)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        refusal = error
    # Only a call that failed pays for finding out which argument is at fault.
    _check(x, *parameters)
    raise refusal


def _call(
    x: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor | None,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    spatial_weight: Tensor,
    spatial_bias: Tensor | None,
) -> Tensor:
    device_type = "cpu" if x.is_cpu else x.device.type
    compiling = torch.compiler.is_compiling()
    kernels = None
    if not transforms_active():
        kernels = _select.traced(device_type) if compiling else _select(device_type)
    unlike = spatial_weight.dtype != x.dtype or (spatial_bias is not None and spatial_bias.dtype != x.dtype)
    if kernels is None or compiling or not kernels.check_arguments or unlike:
        _check(x, reduce_weight, reduce_bias, expand_weight, expand_bias, spatial_weight, spatial_bias)
    if kernels is None:
        return reference.scse(x, reduce_weight, reduce_bias, expand_weight, expand_bias, spatial_weight, spatial_bias)
    x, means, projection = _squeeze(kernels, in_supported_layout(x), spatial_weight.to(x.dtype).contiguous())
    hidden = F.relu(F.conv2d(means, reduce_weight, reduce_bias))
    channel = F.conv2d(hidden, expand_weight, expand_bias)
    if spatial_bias is not None:
        projection = projection + spatial_bias.view(1, 1, 1, 1)
    return gate(x, channel, projection, sum_of="gates")


def _squeeze(kernels: Kernels, x: Tensor, spatial_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x for the scaling, and what its gates are computed from."""
    if torch.compiler.is_compiling():
        return x, *kernels.forward(x, spatial_weight)
    if torch.is_grad_enabled() and (x.requires_grad or spatial_weight.requires_grad):
        return _Squeeze.apply(kernels, x, spatial_weight)
    with below_autograd():
        return x, *kernels.forward(x, spatial_weight)


class _Squeeze(torch.autograd.Function):
    """Passes x on to the scaling, whose gradient of it the backward adds to its own in the one pass that writes that."""

    @staticmethod
    def forward(ctx: Any, kernels: Kernels, x: Tensor, spatial_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with below_autograd():
            means, projection = kernels.forward(x, spatial_weight)
        ctx.kernels = kernels
        _save(ctx, (x, spatial_weight), (means, projection))
        # A gradient of x that is not there would be a map of zeros.
        ctx.set_materialize_grads(False)
        return x, means, projection

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Any, ...]:
        other, *grads = grad_outputs
        if grads[0] is None and grads[1] is None:
            return None, other, None
        if torch.is_grad_enabled():
            grad_x, grad_weight = _gradients(ctx, ctx.kernels.backward, grads[0], grads[1])
            return None, grad_x if other is None or grad_x is None else grad_x + other, grad_weight
        with below_autograd():
            return None, *_gradients(ctx, ctx.kernels.backward, grads[0], grads[1], other=other)


def _save(ctx: Any, inputs: tuple[Any, ...], _: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(
    ctx: Any,
    backward: Callable[..., tuple[Tensor, Tensor]],
    grad_means: Tensor | None,
    grad_projection: Tensor | None,
    other: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    x, spatial_weight = ctx.saved_tensors
    samples, channels, height, width = x.shape
    if grad_means is None:
        grad_means = x.new_zeros((samples, channels, 1, 1))
    if grad_projection is None:
        dtype = torch.promote_types(x.dtype, torch.float32)
        grad_projection = x.new_zeros((samples, 1, height, width), dtype=dtype)
    if torch.is_grad_enabled():
        grad_x, grad_weight = reference_gradients(reference.squeeze, (x, spatial_weight), (grad_means, grad_projection))
        return grad_x, grad_weight
    if other is not None:
        other = beside_gradient(other, not lies_in_planes(x))
    return backward(grad_means.contiguous(), grad_projection.contiguous(), x, spatial_weight, other)


def _fake_forward(x: Tensor, spatial_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the means [N, C, 1, 1] in the dtype of x and the projections [N, 1, H, W] in that of the sums."""
    samples, channels, height, width = x.shape
    dtype = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty((samples, channels, 1, 1)), x.new_empty((samples, 1, height, width), dtype=dtype)


def _fake_backward(
    grad_means: Tensor, grad_projection: Tensor, x: Tensor, spatial_weight: Tensor, other: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the weight; where x has another one, the first is the sum of both."""
    memory_format = torch.contiguous_format if lies_in_planes(x) else torch.channels_last
    return torch.empty_like(x, memory_format=memory_format), torch.empty_like(spatial_weight)


_select = register(_OP, forward=_fake_forward, backward=_fake_backward, save=_save, gradients=_gradients)


def _check(
    x: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor | None,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    spatial_weight: Tensor,
    spatial_bias: Tensor | None,
) -> None:
    _checks.check_map(_OP, "x", x)
    channels = x.shape[1]
    _checks.check_tensor(_OP, "reduce_weight", reduce_weight)
    reduced = reduce_weight.shape[0] if reduce_weight.dim() else 0
    parameters: tuple[tuple[str, Tensor | None, tuple[int, ...]], ...] = (
        ("reduce_weight", reduce_weight, (reduced, channels, 1, 1)),
        ("reduce_bias", reduce_bias, (reduced,)),
        ("expand_weight", expand_weight, (channels, reduced, 1, 1)),
        ("expand_bias", expand_bias, (channels,)),
        ("spatial_weight", spatial_weight, (1, channels, 1, 1)),
        ("spatial_bias", spatial_bias, (1,)),
    )
    for argument, value, shape in parameters:
        _checks.check_parameter(_OP, argument, value, shape, x, optional=argument.endswith("bias"))

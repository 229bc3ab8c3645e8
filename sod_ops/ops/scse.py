"""Concurrent spatial and channel squeeze and excitation: a composite of PyTorch's convolutions and of gate."""

import torch.nn.functional as F
from torch import Tensor

from sod_ops.ops import _checks
from sod_ops.ops.gate import gate

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

    The mean and the 1x1 convolutions are PyTorch's, the scaling is :func:`sod_ops.gate`, forward and backward.

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
    _check(x, reduce_weight, reduce_bias, expand_weight, expand_bias, spatial_weight, spatial_bias)
    means = x.mean((2, 3), keepdim=True)
    hidden = F.relu(F.conv2d(means, reduce_weight, reduce_bias))
    channel = F.conv2d(hidden, expand_weight, expand_bias)
    return gate(x, channel, F.conv2d(x, spatial_weight, spatial_bias), sum_of="gates")


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

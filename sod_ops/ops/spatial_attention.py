"""Spatial attention: a composite of channel_pool, PyTorch's convolution and gate."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sod_ops.ops import _checks
from sod_ops.ops.channel_pool import channel_pool_and_pass_on
from sod_ops.ops.gate import gate

_OP = "spatial_attention"


def spatial_attention(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, max_first: bool = False) -> Tensor:
    r"""CBAM's spatial attention: every pixel scaled by a gate that is convolved from its mean and its maximum.

    .. math:: y = x \, \sigma(w * [\mathrm{mean}_c\, x, \mathrm{max}_c\, x] + b)

    The pooling is :func:`sod_ops.channel_pool`, whose backward adds the gradient that the scaling gives, and the scaling
    :func:`sod_ops.gate`; the convolution of two channels is PyTorch's.

    Args:
        x: ``[N, C, H, W]``, float32, float64, bfloat16 or float16; C, H and W at least 1.
        weight: ``[1, 2, K, L]`` with K and L odd (CBAM's are 7); its input channels are the mean and the maximum, in this
            order. The map is padded with zeros. A batch norm behind the convolution is for the caller to fold in, or
            :class:`sod_ops.nn.CBAM` has it.
        bias: ``[1]`` or None.
        max_first: the weight's input channels are the maximum and the mean, as in CBAM's published code and weights.

    The parameters have the dtype of ``x``, but under autocast, which casts what convolutions take.

    Returns:
        ``[N, C, H, W]``, in the dtype and memory format of ``x``.

    Raises:
        TypeError: an argument is not a floating tensor, has another dtype than ``x``, or ``max_first`` is not a bool.
        ValueError: a shape or a device does not fit.

    Source:
        Woo, Park, Lee, Kweon: CBAM: Convolutional Block Attention Module, ECCV 2018, equation 3.
    """
    _check(x, weight, bias, max_first)
    if max_first:
        weight = weight.flip(1)
    padding = (weight.shape[2] // 2, weight.shape[3] // 2)
    x, pooled = channel_pool_and_pass_on(x)
    return gate(x, F.conv2d(for_convolution(pooled), weight, bias, padding=padding))


def for_convolution(pooled: Tensor) -> Tensor:
    """The pooled map as PyTorch convolves it fastest: on a CPU, two planes take it three times as long as pairs."""
    return pooled.contiguous(memory_format=torch.channels_last) if pooled.is_cpu else pooled


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, max_first: bool) -> None:
    _checks.check_map(_OP, "x", x)
    _checks.check_bool(_OP, "max_first", max_first)
    _checks.check_tensor(_OP, "weight", weight)
    if weight.dim() != 4 or weight.shape[:2] != (1, 2) or weight.shape[2] % 2 == 0 or weight.shape[3] % 2 == 0:
        _checks.bad_value(_OP, "weight", "of shape [1, 2, K, L] with K and L odd", _checks.shape_of(weight))
    _checks.check_parameter(_OP, "weight", weight, tuple(weight.shape), x)
    _checks.check_parameter(_OP, "bias", bias, (1,), x, optional=True)

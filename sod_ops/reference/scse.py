"""Concurrent spatial and channel squeeze and excitation, as it is defined.

    c = sigmoid(expand_weight relu(reduce_weight m + reduce_bias) + expand_bias),  m = mean of x over H and W    [N, C, 1, 1]
    s = sigmoid(1x1 convolution of x with spatial_weight and spatial_bias)                                      [N, 1, H, W]
    y = x c + x s = x (c + s)

Roy, Navab, Wachinger: Concurrent Spatial and Channel Squeeze & Excitation in Fully Convolutional Networks, MICCAI 2018; the
form of segmentation_models_pytorch's SCSEModule.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def scse(
    x: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor | None,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    spatial_weight: Tensor,
    spatial_bias: Tensor | None,
) -> Tensor:
    """Arguments and result as :func:`sod_ops.scse`; nothing is checked here."""
    means = x.mean((2, 3), keepdim=True)
    hidden = F.relu(F.conv2d(means, reduce_weight, reduce_bias))
    channel = torch.sigmoid(F.conv2d(hidden, expand_weight, expand_bias))
    spatial = torch.sigmoid(F.conv2d(x, spatial_weight, spatial_bias))
    return x * channel + x * spatial


def squeeze(x: Tensor, spatial_weight: Tensor) -> tuple[Tensor, Tensor]:
    """What both gates are computed from: m, and the convolution of x without bias, in the type that sums are taken in."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return x.mean((2, 3), keepdim=True), F.conv2d(x.to(dtype), spatial_weight.to(dtype))

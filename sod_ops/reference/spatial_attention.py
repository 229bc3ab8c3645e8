"""Spatial attention, as it is defined.

    y = x sigmoid(convolution of channel_pool(x) with weight and bias)

The weight's first input channel is for the mean over channels, its second for the maximum; an odd kernel, zero-padded to the
size of x.

Woo, Park, Lee, Kweon: CBAM: Convolutional Block Attention Module, ECCV 2018, equation 3.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sod_ops.reference.channel_pool import channel_pool


def spatial_attention(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, max_first: bool = False) -> Tensor:
    """Arguments and result as :func:`sod_ops.spatial_attention`; nothing is checked here."""
    if max_first:
        weight = weight.flip(1)
    padding = (weight.shape[2] // 2, weight.shape[3] // 2)
    return x * torch.sigmoid(F.conv2d(channel_pool(x), weight, bias, padding=padding))

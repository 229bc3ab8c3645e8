"""Pooling over channels, as it is defined.

    y[n, 0, i, j] = mean of x[n, c, i, j] over c
    y[n, 1, i, j] = maximum of x[n, c, i, j] over c

The gradient of a maximum goes to the first channel that has it. A NaN is larger than any number, as in torch.max.

Woo, Park, Lee, Kweon: CBAM: Convolutional Block Attention Module, ECCV 2018, section 3.2, where the maximum comes last in
the text and first in the published code.
"""

import torch
from torch import Tensor


def channel_pool(x: Tensor) -> Tensor:
    """Arguments and result as :func:`sod_ops.channel_pool`; nothing is checked here."""
    return torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True).values], 1)


def channel_pool_backward(grad_output: Tensor, indices: Tensor, channels: int) -> Tensor:
    """The gradient of x from that of the result and the channels [N, 1, H, W] of the maxima: linear in the former."""
    samples, _, height, width = grad_output.shape
    of_mean = (grad_output[:, :1] / channels).expand(samples, channels, height, width)
    return of_mean.scatter_add(1, indices.long(), grad_output[:, 1:])

"""Pooling over space, as it is defined.

    mean[n, c] = mean of x[n, c, i, j] over i and j
    maximum[n, c] = maximum of x[n, c, i, j] over i and j

The gradient of a maximum goes to the first pixel that has it, row by row. A NaN is larger than any number, as in torch.max.

Woo, Park, Lee, Kweon: CBAM: Convolutional Block Attention Module, ECCV 2018, section 3.1.
"""

from torch import Tensor


def global_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """Arguments and result as :func:`sod_ops.global_pool`; nothing is checked here."""
    return x.mean((2, 3), keepdim=True), x.flatten(2).max(2).values[:, :, None, None]


def global_pool_backward(grad_mean: Tensor, grad_maximum: Tensor, indices: Tensor, height: int, width: int) -> Tensor:
    """The gradient of x from those of the results and the pixels [N, C] of the maxima: linear in the former."""
    samples, channels = indices.shape
    of_mean = (grad_mean / (height * width)).view(samples, channels, 1).expand(samples, channels, height * width)
    x = of_mean.scatter_add(2, indices[:, :, None], grad_maximum.view(samples, channels, 1))
    return x.view(samples, channels, height, width)

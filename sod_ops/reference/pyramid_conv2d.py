"""A convolution over a map and upsampled branches, concatenated, in plain PyTorch.

    y = conv2d(cat[x, up(b_1), ..., up(b_n)], weight) + bias

with up() the interpolation of a branch to the size of x. Interpolation is linear, so what a branch adds to y is a sum over
the kernel's taps of its product with that tap, taken at the branch's own size, then interpolated and shifted:

    y[Y, X] = conv2d(x, weight_x)[Y, X] + bias + sum over n, ky, kx of up(weight_n[ky, kx] b_n)[Y + ky - p, X + kx - p]

where positions outside of the map add nothing. :func:`pyramid_conv2d` is the definition; :func:`add_products` is the last
sum of the second form, which the kernels compute.

Source: Zhao et al.: Pyramid Scene Parsing Network, CVPR 2017 (the head); Xiao et al.: Unified Perceptual Parsing, ECCV 2018
(the fusion of several maps); Ronneberger et al.: U-Net, MICCAI 2015 (one branch).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

MODES = ("bilinear", "nearest")


def pyramid_conv2d(
    x: Tensor | None,
    branches: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    padding: int = 1,
    align_corners: bool = False,
    x_first: bool = True,
    mode: str = "bilinear",
    size: tuple[int, int] | None = None,
) -> Tensor:
    """See :func:`sod_ops.pyramid_conv2d`."""
    output_size = size if x is None else x.shape[2:]
    assert output_size is not None  # what sod_ops.pyramid_conv2d has checked
    height, width = output_size
    maps = [upsample(branch, height, width, align_corners, mode == "nearest") for branch in branches]
    if x is not None:
        maps = [x, *maps] if x_first else [*maps, x]
    return functional.conv2d(torch.cat(maps, 1), weight, bias, padding=padding)


def add_products(y: Tensor, products: Sequence[Tensor], align_corners: bool, nearest: bool) -> Tensor:
    """``y [N, C, H, W]`` plus the interpolated and shifted ``products``, each ``[N, h, w, taps, C]``."""
    height, width = y.shape[2:]
    total = y.to(products[0].dtype) if products else y
    for product in products:
        taps = product.shape[3]
        kernel = 3 if taps == 9 else 1
        pad = kernel // 2
        for tap in range(taps):
            up = upsample(product[:, :, :, tap].permute(0, 3, 1, 2), height, width, align_corners, nearest)
            ky, kx = divmod(tap, kernel)
            total = total + functional.pad(up, (pad - kx, kx - pad, pad - ky, ky - pad))
    return total.to(y.dtype)


def upsample(branch: Tensor, height: int, width: int, align_corners: bool, nearest: bool) -> Tensor:
    """``branch`` at the size of the output."""
    if nearest:
        return functional.interpolate(branch, size=(height, width), mode="nearest")
    return functional.interpolate(branch, size=(height, width), mode="bilinear", align_corners=align_corners)

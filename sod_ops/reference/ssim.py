"""The structural similarity, as it is defined.

    index = (2 mx my + C1) (2 sxy + C2) / ((mx^2 + my^2 + C1) (sx + sy + C2)),   C1 = 0.01^2,  C2 = 0.03^2
    mx = G(x),  my = G(y),  sx = G(x^2) - mx^2,  sy = G(y^2) - my^2,  sxy = G(x y) - mx my

with the average G over a Gaussian window around every pixel, beyond the image zeros, which count. The similarity of two
samples is the mean over their pixels and channels. Wang, Bovik, Sheikh, Simoncelli: Image Quality Assessment, 2004, for
images in [0, 1]; the window and the padding are those of pytorch_ssim, which BASNet's code and many others contain.

The window is the product of its two axes' parts, so that its average is taken along one axis after the other. In two bytes
the variances, differences of nearly equal numbers, would be noise beside C2: everything is taken in float32 or float64.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sod_ops.reference.sigmoid_focal_loss import reduce

C1, C2 = 0.01**2, 0.03**2


def ssim(x: Tensor, y: Tensor, window_size: int, sigma: float, reduction: str) -> Tensor:
    """Arguments and result as :func:`sod_ops.ssim`; nothing is checked here."""
    index = similarity(x, y, window_size, sigma)
    return reduce(index.mean((1, 2, 3)), reduction).to(torch.promote_types(x.dtype, y.dtype))


def similarity(x: Tensor, y: Tensor, window_size: int, sigma: float) -> Tensor:
    """The index of every pixel, in float32, in float64 where a tensor is float64."""
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    x, y = x.to(dtype), y.to(dtype)
    mx, my, xx, yy, xy = (gaussian_filter(m, window_size, sigma) for m in (x, y, x * x, y * y, x * y))
    sx, sy, sxy = xx - mx * mx, yy - my * my, xy - mx * my
    return (2 * mx * my + C1) * (2 * sxy + C2) / ((mx * mx + my * my + C1) * (sx + sy + C2))


def gaussian_filter(x: Tensor, window_size: int, sigma: float) -> Tensor:
    """The zero-padded averages of ``x [N, C, H, W]`` over windows of ``window_size`` pixels along either axis."""
    if x.numel() == 0:
        return x.clone()
    distance = torch.arange(window_size, dtype=torch.float64, device=x.device) - window_size // 2
    weights = torch.exp(-((distance / sigma) ** 2) / 2)
    weights = (weights / weights.sum()).to(x.dtype)
    for axis in (-2, -1):
        # A window that reaches beyond the image on both sides is cut off where it does.
        half = min(window_size // 2, x.shape[axis] - 1)
        taps = weights[window_size // 2 - half : window_size // 2 + half + 1]
        padding = (half, half) if axis == -1 else (0, 0, half, half)
        # No convolution: autocast would take it in two bytes.
        x = (F.pad(x, padding).unfold(axis, len(taps), 1) * taps).sum(-1)
    return x

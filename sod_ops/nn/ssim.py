"""The structural similarity with its options kept."""

import torch
from torch import Tensor

from sod_ops.ops.ssim import check_ssim_options, ssim


class SSIM(torch.nn.Module):
    """Structural similarity of images in [0, 1]: :func:`sod_ops.ssim` with its options kept. A loss is 1 minus this.

    Args:
        window_size: the window's height and width in pixels: odd.
        sigma: the standard deviation of the Gaussian in pixels, above 0.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Input and output:
        Two tensors ``[N, C, H, W]``; a number, or ``[N]`` for ``"none"``.

    Raises:
        TypeError: an option is not of the types named above.
        ValueError: one of them is out of its range.

    Source:
        Wang, Bovik, Sheikh, Simoncelli: Image Quality Assessment: From Error Visibility to Structural Similarity, 2004.
    """

    def __init__(self, window_size: int = 11, sigma: float = 1.5, reduction: str = "mean") -> None:
        super().__init__()
        check_ssim_options("SSIM", window_size, sigma, reduction)
        self.window_size = window_size
        self.sigma = sigma
        self.reduction = reduction

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return ssim(x, y, self.window_size, self.sigma, self.reduction)

    def extra_repr(self) -> str:
        return f"window_size={self.window_size}, sigma={self.sigma}, reduction={self.reduction!r}"

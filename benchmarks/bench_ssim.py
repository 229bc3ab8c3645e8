"""The structural similarity against the published code's formula, torch.compile, and separable convolutions.

The formula takes five convolutions with the two-dimensional window; a peer that takes each along one axis after the other
is what care alone gains. The floor reads both images once; backward writes a gradient for each.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import sod_ops
from benchmarks.contest import FORWARD, HOST, Case
from sod_ops.reference.ssim import C1, C2
from sod_ops.reference.ssim import ssim as reference

AVERAGE = 2 * 2 * 11  # operations a pixel of a window of 11 along both axes


def gaussian(device: torch.device, window_size: int = 11, sigma: float = 1.5) -> Tensor:
    """The window along one axis."""
    offsets = torch.arange(window_size, device=device) - window_size // 2
    taps = torch.exp(-(offsets**2) / (2 * sigma**2))
    return taps / taps.sum()


def formula(x: Tensor, y: Tensor, filtered: Callable[[Tensor], Tensor]) -> Tensor:
    """As people write it, with a function that takes averages over windows."""
    mx, my = filtered(x), filtered(y)
    sx = filtered(x * x) - mx * mx
    sy = filtered(y * y) - my * my
    sxy = filtered(x * y) - mx * my
    return (((2 * mx * my + C1) * (2 * sxy + C2)) / ((mx * mx + my * my + C1) * (sx + sy + C2))).mean()


def published(x: Tensor, y: Tensor) -> Tensor:
    """With the convolution that the published code has."""
    taps, channels = gaussian(x.device), x.shape[1]
    window = taps.outer(taps).expand(channels, 1, -1, -1)
    return formula(x, y, partial(F.conv2d, weight=window, padding=window.shape[-1] // 2, groups=channels))


def along_axes(image: Tensor) -> Tensor:
    """Averages over windows by a convolution along each axis."""
    taps, channels = gaussian(image.device), image.shape[1]
    half = len(taps) // 2
    down = taps.view(-1, 1).expand(channels, 1, -1, -1)
    image = F.conv2d(image, down, padding=(half, 0), groups=channels)
    return F.conv2d(image, down.transpose(2, 3), padding=(0, half), groups=channels)


@dataclass(frozen=True)
class Ssim(Case):
    """``shape`` is [N, C, H, W]."""

    shape: tuple[int, int, int, int]
    headline: bool = False

    peer_name = "separable"

    @property
    def name(self) -> str:
        return "x".join(map(str, self.shape))

    def inputs(self, device: str) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(0)
        x = torch.rand(self.shape, generator=generator, device=device)
        y = (x + 0.5 * torch.rand(self.shape, generator=generator, device=device)) / 1.5
        return x.requires_grad_(), y.requires_grad_()

    def reference(self, *inputs: Tensor) -> Tensor:
        return reference(inputs[0], inputs[1], 11, 1.5, "mean")

    def eager(self) -> Callable[..., Tensor]:
        return published

    def ours(self) -> Callable[..., Tensor]:
        return sod_ops.ssim

    def peer(self, *inputs: Tensor) -> Callable[[], Tensor]:
        return partial(formula, inputs[0], inputs[1], along_axes)

    def floor_bytes(self, mode: str) -> int:
        return (2 if mode == FORWARD else 4) * torch.Size(self.shape).numel() * 4

    def operations(self, mode: str) -> int:
        """Five averages over windows, one axis after the other, and as many of the derivatives by them."""
        return (1 if mode == FORWARD else 2) * 5 * AVERAGE * torch.Size(self.shape).numel()


_CASES = [Ssim((4, 1, 256, 256), headline=True), Ssim((2, 3, 256, 256), headline=True), Ssim((1, 1, 256, 256))]

CASES = {"cpu": _CASES, "cuda": [*_CASES, Ssim((16, 1, 1024, 1024), headline=True)]}


def test_ssim(case: Ssim, mode: str, contest: Callable[[Case, str], None]) -> None:
    contest(case, mode)


def test_host_time(contest: Callable[[Case, str], None]) -> None:
    contest(Ssim((1, 1, 4, 4)), HOST)

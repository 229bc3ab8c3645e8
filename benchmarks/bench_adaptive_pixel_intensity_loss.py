"""The adaptive pixel intensity loss against PyTorch's formula, torch.compile, and the formula written with care.

Written with care, the averages come from two poolings, one along each axis. The floor reads the probabilities and the mask
once; backward writes the gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import sod_ops
from benchmarks.contest import FORWARD, HOST, Case
from sod_ops.reference.adaptive_pixel_intensity_loss import WINDOWS
from sod_ops.reference.adaptive_pixel_intensity_loss import adaptive_pixel_intensity_loss as reference


def _average(mask: Tensor, window: int) -> Tensor:
    return F.avg_pool2d(mask, window, stride=1, padding=window // 2)


def _separable_average(mask: Tensor, window: int) -> Tensor:
    along_columns = F.avg_pool2d(mask, (window, 1), stride=1, padding=(window // 2, 0))
    return F.avg_pool2d(along_columns, (1, window), stride=1, padding=(0, window // 2))


def _loss(p: Tensor, mask: Tensor, average: Callable[[Tensor, int], Tensor]) -> Tensor:
    """The loss as people write it."""
    w1, w2, w3 = (torch.abs(average(mask, window) - mask) for window in WINDOWS)
    omega = 1 + 0.5 * (w1 + w2 + w3) * mask
    bce = F.binary_cross_entropy(p, mask, reduction="none")
    abce = (omega * bce).sum((2, 3)) / (omega + 0.5).sum((2, 3))
    intersection = (p * mask * omega).sum((2, 3))
    union = ((p + mask) * omega).sum((2, 3))
    aiou = 1 - (intersection + 1) / (union - intersection + 1)
    amae = (omega * torch.abs(p - mask)).sum((2, 3)) / (omega - 1).sum((2, 3))
    return (0.7 * (abce + aiou + amae)).mean()


@dataclass(frozen=True)
class AdaptivePixelIntensityLoss(Case):
    """Probabilities and mask [B, 1, H, W]."""

    shape: tuple[int, int, int, int]
    headline: bool = False

    peer_name = "two poolings"

    @property
    def name(self) -> str:
        return "x".join(map(str, self.shape))

    def inputs(self, device: str) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(0)
        p = torch.rand(self.shape, generator=generator, device=device)
        # Blobs, as objects are.
        coarse = torch.rand((*self.shape[:2], 8, 8), generator=generator, device=device)
        mask = (F.interpolate(coarse, self.shape[2:], mode="bilinear") > 0.5).float()
        return p.clamp_(0.01, 0.99).requires_grad_(), mask

    def reference(self, *inputs: Tensor) -> Tensor:
        return reference(inputs[:1], inputs[1], False, [1.0], "mean")

    def eager(self) -> Callable[..., Tensor]:
        def eager_loss(p: Tensor, mask: Tensor) -> Tensor:
            return _loss(p, mask, _average)

        return eager_loss

    def ours(self) -> Callable[..., Tensor]:
        return sod_ops.adaptive_pixel_intensity_loss

    def peer(self, *inputs: Tensor) -> Callable[[], Tensor]:
        p, mask = inputs
        return lambda: _loss(p, mask, _separable_average)

    def floor_bytes(self, mode: str) -> int:
        maps = 2 if mode == FORWARD else 3
        return maps * torch.Size(self.shape).numel() * 4


_CASES = [
    AdaptivePixelIntensityLoss((8, 1, 320, 320), headline=True),
    AdaptivePixelIntensityLoss((1, 1, 320, 320)),
]

CASES = {"cpu": _CASES, "cuda": [*_CASES, AdaptivePixelIntensityLoss((16, 1, 1024, 1024), headline=True)]}


def test_adaptive_pixel_intensity_loss(case: Case, mode: str, contest: Callable[[Case, str], None]) -> None:
    contest(case, mode)


def test_host_time(contest: Callable[[Case, str], None]) -> None:
    contest(AdaptivePixelIntensityLoss((1, 1, 4, 4)), HOST)

"""BASNet's hybrid loss against the published code's formula, torch.compile, and the formula written with care.

The formula is called for every head, as training code does, and takes five convolutions with a two-dimensional window for
each. Written with care, they go along one axis after the other, and the mask's are taken once. The floor reads every head
and the mask once; backward writes a gradient for each head.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import sod_ops
from benchmarks.bench_ssim import AVERAGE, along_axes, published
from benchmarks.contest import FORWARD, HOST, Case
from sod_ops.reference.bce_ssim_iou_loss import bce_ssim_iou_loss as reference
from sod_ops.reference.ssim import C1, C2


def _iou_loss(p: Tensor, mask: Tensor) -> Tensor:
    both = (p * mask).sum((1, 2, 3))
    return (1 - both / (p.sum((1, 2, 3)) + mask.sum((1, 2, 3)) - both)).mean()


def _of_head(p: Tensor, mask: Tensor) -> Tensor:
    """One head's loss as people write it."""
    return F.binary_cross_entropy(p, mask) + 1 - published(p, mask) + _iou_loss(p, mask)


def _careful(heads: list[Tensor], mask: Tensor) -> Tensor:
    my, yy = along_axes(mask), along_axes(mask * mask)
    losses = []
    for p in heads:
        mx, xx, xy = along_axes(p), along_axes(p * p), along_axes(p * mask)
        variances, covariance = xx - mx * mx + yy - my * my, xy - mx * my
        index = ((2 * mx * my + C1) * (2 * covariance + C2)) / ((mx * mx + my * my + C1) * (variances + C2))
        losses.append(F.binary_cross_entropy(p, mask) + 1 - index.mean() + _iou_loss(p, mask))
    return torch.stack(losses).sum()


@dataclass(frozen=True)
class Hybrid(Case):
    """``heads`` maps of probabilities [B, 1, H, W] against one mask."""

    shape: tuple[int, int, int, int]
    heads: int = 1
    headline: bool = False

    peer_name = "separable"

    @property
    def name(self) -> str:
        return f"{'x'.join(map(str, self.shape))} {self.heads} heads"

    def inputs(self, device: str) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(0)
        logits = [torch.randn(self.shape, generator=generator, device=device).mul_(3) for _ in range(self.heads)]
        # Blobs, as objects are.
        coarse = torch.rand((*self.shape[:2], 8, 8), generator=generator, device=device)
        mask = (F.interpolate(coarse, self.shape[2:], mode="bilinear") > 0.5).float()
        return *(x.sigmoid().requires_grad_() for x in logits), mask

    def reference(self, *inputs: Tensor) -> Tensor:
        return reference(inputs[:-1], inputs[-1], 1.0, 1.0, 1.0, 0.0, 11, 1.5, [1.0] * self.heads, "mean")

    def eager(self) -> Callable[..., Tensor]:
        def eager_hybrid_loss(*inputs: Tensor) -> Tensor:
            *heads, mask = inputs
            return torch.stack([_of_head(head, mask) for head in heads]).sum()

        return eager_hybrid_loss

    def ours(self) -> Callable[..., Tensor]:
        def fused(*inputs: Tensor) -> Tensor:
            return sod_ops.bce_ssim_iou_loss(inputs[:-1], inputs[-1])

        return fused

    def peer(self, *inputs: Tensor) -> Callable[[], Tensor]:
        *heads, mask = inputs
        return lambda: _careful(heads, mask)

    def floor_bytes(self, mode: str) -> int:
        maps = self.heads + 1 + (0 if mode == FORWARD else self.heads)
        return maps * torch.Size(self.shape).numel() * 4

    def operations(self, mode: str) -> int:
        """Three averages a head and two of the mask; three of the derivatives a head."""
        averages = 3 * self.heads + 2 + (0 if mode == FORWARD else 3 * self.heads)
        return averages * AVERAGE * torch.Size(self.shape).numel()


_CASES = [Hybrid((4, 1, 256, 256), heads=8, headline=True), Hybrid((1, 1, 256, 256))]

CASES = {"cpu": _CASES, "cuda": [*_CASES, Hybrid((4, 1, 1024, 1024), heads=4, headline=True)]}


def test_bce_ssim_iou_loss(case: Hybrid, mode: str, contest: Callable[[Case, str], None]) -> None:
    contest(case, mode)


def test_host_time(contest: Callable[[Case, str], None]) -> None:
    contest(Hybrid((1, 1, 4, 4)), HOST)

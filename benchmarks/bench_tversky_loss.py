"""The losses of overlap against PyTorch's formula, torch.compile and segmentation_models_pytorch's scores.

The floor reads the logits and the mask once; backward writes the gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import sod_ops
from benchmarks.contest import FORWARD, HOST, Case
from sod_ops._peers import import_peer
from sod_ops.reference.tversky_loss import tversky_loss as reference

_ALPHA, _BETA, _SMOOTH = 0.3, 0.7, 1.0


@dataclass(frozen=True)
class TverskyLoss(Case):
    """Logits and mask [B, 1, H, W]."""

    shape: tuple[int, int, int, int]
    headline: bool = False

    peer_name = "smp"

    @property
    def name(self) -> str:
        return "x".join(map(str, self.shape))

    def inputs(self, device: str) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(0)
        logits = torch.randn(self.shape, generator=generator, device=device).mul_(3)
        return logits.requires_grad_(), (torch.rand(self.shape, generator=generator, device=device) > 0.5).float()

    def reference(self, *inputs: Tensor) -> Tensor:
        return reference(inputs[:1], inputs[1], _ALPHA, _BETA, _SMOOTH, [1.0], "mean")

    def eager(self) -> Callable[..., Tensor]:
        def eager_tversky_loss(logits: Tensor, mask: Tensor) -> Tensor:
            p = torch.sigmoid(logits)
            both = (p * mask).sum((1, 2, 3))
            false, missed = (p * (1 - mask)).sum((1, 2, 3)), ((1 - p) * mask).sum((1, 2, 3))
            return (1 - (both + _SMOOTH) / (both + _ALPHA * false + _BETA * missed + _SMOOTH)).mean()

        return eager_tversky_loss

    def ours(self) -> Callable[..., Tensor]:
        def fused(logits: Tensor, mask: Tensor) -> Tensor:
            return sod_ops.tversky_loss(logits, mask, _ALPHA, _BETA, smooth=_SMOOTH)

        return fused

    def peer(self, *inputs: Tensor) -> Callable[[], Tensor]:
        score = import_peer("segmentation_models_pytorch.losses._functional").soft_tversky_score
        logits, mask = inputs

        def smp() -> Tensor:
            scores = score(torch.sigmoid(logits), mask, _ALPHA, _BETA, smooth=_SMOOTH, dims=(1, 2, 3))
            return (1 - scores).mean()

        return smp

    def floor_bytes(self, mode: str) -> int:
        maps = 2 if mode == FORWARD else 3
        return maps * torch.Size(self.shape).numel() * 4


_CASES = [
    TverskyLoss((8, 1, 352, 352), headline=True),
    TverskyLoss((1, 1, 352, 352)),
    TverskyLoss((4, 1, 1024, 1024), headline=True),
]

CASES = {"cpu": _CASES, "cuda": _CASES}


def test_tversky_loss(case: TverskyLoss, mode: str, contest: Callable[[Case, str], None]) -> None:
    contest(case, mode)


def test_host_time(contest: Callable[[Case, str], None]) -> None:
    contest(TverskyLoss((1, 1, 4, 4)), HOST)

"""The structure loss against PyTorch's formula, torch.compile, and the formula written with care.

The formula is called for every head, as training code does, and computes the mask's weights every time. Written with
care, it computes them once, from two poolings, one along each axis. The floor reads every head and the mask once; backward
writes a gradient for each head.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import sod_ops
from benchmarks.contest import FORWARD, HOST, Case
from sod_ops.reference.structure_loss import structure_loss as reference


def _weights(mask: Tensor) -> Tensor:
    return 1 + 5 * torch.abs(F.avg_pool2d(mask, kernel_size=31, stride=1, padding=15) - mask)


def _separable_weights(mask: Tensor) -> Tensor:
    along_columns = F.avg_pool2d(mask, (31, 1), stride=1, padding=(15, 0))
    return 1 + 5 * torch.abs(F.avg_pool2d(along_columns, (1, 31), stride=1, padding=(0, 15)) - mask)


def _of_head(logits: Tensor, mask: Tensor, weights: Tensor, published: bool) -> Tensor:
    """One head's loss as people write it."""
    bce = F.binary_cross_entropy_with_logits(logits, mask, reduction="mean" if published else "none")
    weighted = (weights * bce).sum((2, 3)) / weights.sum((2, 3))
    probabilities = torch.sigmoid(logits)
    intersection = (probabilities * mask * weights).sum((2, 3))
    union = ((probabilities + mask) * weights).sum((2, 3))
    return (weighted + 1 - (intersection + 1) / (union - intersection + 1)).mean()


def published_loss(heads: list[Tensor], mask: Tensor, *, weights: Sequence[float], published: bool = False) -> Tensor:
    """That of several heads as training code has it: the function is called for each."""
    losses = [w * _of_head(head, mask, _weights(mask), published) for head, w in zip(heads, weights, strict=True)]
    return torch.stack(losses).sum()


@dataclass(frozen=True)
class StructureLoss(Case):
    """``heads`` maps of logits [B, 1, H, W] against one mask."""

    shape: tuple[int, int, int, int]
    heads: int = 1
    published: bool = False
    dtype: torch.dtype = torch.float32  # of the logits; the mask is float32
    headline: bool = False

    peer_name = "two poolings"

    @property
    def name(self) -> str:
        published = " as published" if self.published else ""
        dtype = "" if self.dtype == torch.float32 else f" {str(self.dtype).removeprefix('torch.')}"
        return f"{'x'.join(map(str, self.shape))} {self.heads} heads{published}{dtype}"

    def inputs(self, device: str) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(0)
        heads = [torch.randn(self.shape, generator=generator, device=device).mul_(3) for _ in range(self.heads)]
        # Blobs, as objects are.
        coarse = torch.rand((*self.shape[:2], 8, 8), generator=generator, device=device)
        mask = (F.interpolate(coarse, self.shape[2:], mode="bilinear") > 0.5).float()
        return *(head.to(self.dtype).requires_grad_() for head in heads), mask

    def reference(self, *inputs: Tensor) -> Tensor:
        return reference(inputs[:-1], inputs[-1], 31, self.published, [1.0] * self.heads, "mean")

    def eager(self) -> Callable[..., Tensor]:
        published = self.published

        def eager_structure_loss(*inputs: Tensor) -> Tensor:
            *heads, mask = inputs
            return published_loss(heads, mask, weights=[1.0] * len(heads), published=published)

        return eager_structure_loss

    def ours(self) -> Callable[..., Tensor]:
        published = self.published

        def fused(*inputs: Tensor) -> Tensor:
            return sod_ops.structure_loss(inputs[:-1], inputs[-1], as_published=published)

        return fused

    def peer(self, *inputs: Tensor) -> Callable[[], Tensor]:
        *heads, mask = inputs

        def careful() -> Tensor:
            weights = _separable_weights(mask)
            return torch.stack([_of_head(head, mask, weights, self.published) for head in heads]).sum()

        return careful

    def floor_bytes(self, mode: str) -> int:
        heads = self.heads if mode == FORWARD else 2 * self.heads
        return (heads * self.dtype.itemsize + 4) * torch.Size(self.shape).numel()


_CASES = [
    StructureLoss((8, 1, 352, 352), headline=True),
    StructureLoss((8, 1, 352, 352), heads=6, headline=True),
    StructureLoss((8, 1, 352, 352), published=True),
    StructureLoss((1, 1, 352, 352)),
]

CASES = {
    "cpu": _CASES,
    "cuda": [
        StructureLoss((16, 1, 352, 352), heads=6, headline=True),
        StructureLoss((16, 1, 352, 352), heads=6, dtype=torch.bfloat16, headline=True),
        StructureLoss((16, 1, 1024, 1024), heads=4, headline=True),
        *_CASES,
    ],
}


def test_structure_loss(case: StructureLoss, mode: str, contest: Callable[[Case, str], None]) -> None:
    contest(case, mode)


def test_host_time(contest: Callable[[Case, str], None]) -> None:
    contest(StructureLoss((1, 1, 4, 4)), HOST)

"""Softmax focal loss against PyTorch's formulas and torch.compile.

The eager formula, which torch.compile gets too, is the shortest that people write, from cross_entropy. No library that is
installed here has this loss with all its options; in the peer's place stands the other common formula, from log_softmax with
the target's class gathered. The floor reads logits and targets once; a backward writes the gradient of the logits, which for
a mean or a sum the forward can do in the same pass, and otherwise has to read logits and targets again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import sod_ops
from benchmarks.contest import FORWARD, HOST, Case
from sod_ops.reference.sigmoid_focal_loss import reduce
from sod_ops.reference.softmax_focal_loss import softmax_focal_loss as reference


def formula(inputs: Tensor, targets: Tensor, reduction: str, gamma: float = 2.0) -> Tensor:
    """Focal loss from the cross entropy."""
    cross_entropy = F.cross_entropy(inputs, targets, reduction="none")
    return reduce((1 - torch.exp(-cross_entropy)) ** gamma * cross_entropy, reduction)


def gathered(inputs: Tensor, targets: Tensor, reduction: str, gamma: float = 2.0) -> Tensor:
    """Focal loss from the logarithms of all probabilities."""
    log_p = F.log_softmax(inputs, 1).gather(1, targets.unsqueeze(1)).squeeze(1)
    return reduce(-((1 - log_p.exp()) ** gamma) * log_p, reduction)


@dataclass(frozen=True)
class SoftmaxFocalLoss(Case):
    """The loss of logits of ``shape``, [N, K, ...]."""

    shape: tuple[int, ...]
    reduction: str = "mean"
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    headline: bool = False

    peer_name = "log_softmax and gather"

    @property
    def name(self) -> str:
        size = "x".join(map(str, self.shape))
        layout = " channels_last" if self.channels_last else ""
        return f"{size} {str(self.dtype).removeprefix('torch.')} {self.reduction}{layout}"

    def inputs(self, device: str) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(0)
        logits = (torch.randn(self.shape, generator=generator, device=device) * 2).to(self.dtype)
        if self.channels_last:
            logits = logits.contiguous(memory_format=torch.channels_last)
        positions = (*self.shape[:1], *self.shape[2:])
        targets = torch.randint(self.shape[1], positions, generator=generator, device=device)
        return logits.requires_grad_(), targets

    def reference(self, *inputs: Tensor) -> Tensor:
        logits, targets = inputs
        return reference(logits, targets, reduction=self.reduction)

    def eager(self) -> Callable[..., Tensor]:
        return partial(formula, reduction=self.reduction)

    def ours(self) -> Callable[..., Tensor]:
        return partial(sod_ops.softmax_focal_loss, reduction=self.reduction)

    def peer(self, *inputs: Tensor) -> Callable[[], Tensor]:
        logits, targets = inputs
        return partial(gathered, logits, targets, reduction=self.reduction)

    def floor_bytes(self, mode: str) -> int:
        logits = torch.Size(self.shape).numel() * self.dtype.itemsize
        positions = torch.Size(self.shape).numel() // self.shape[1]
        targets, losses = positions * 8, positions * self.dtype.itemsize
        if self.reduction == "none":
            return logits + targets + losses if mode == FORWARD else 3 * logits + 2 * (targets + losses)
        return logits + targets if mode == FORWARD else 2 * logits + targets


_SHAPES = ((100_000, 80), (8, 21, 256, 256))
_COMMON = [
    *(SoftmaxFocalLoss(shape, headline=True) for shape in _SHAPES),
    SoftmaxFocalLoss(_SHAPES[1], channels_last=True, headline=True),
    SoftmaxFocalLoss(_SHAPES[1], "none"),
    SoftmaxFocalLoss(_SHAPES[0], dtype=torch.bfloat16),
    SoftmaxFocalLoss((8_192, 1_000)),
    SoftmaxFocalLoss((8, 2, 256, 256)),
    SoftmaxFocalLoss((64, 10)),
]

CASES = {
    "cpu": _COMMON,
    "cuda": [*_COMMON, SoftmaxFocalLoss((16, 19, 1024, 1024), dtype=torch.bfloat16, headline=True)],
}


def test_softmax_focal_loss(case: SoftmaxFocalLoss, mode: str, contest: Callable[[Case, str], None]) -> None:
    contest(case, mode)


def test_host_time(contest: Callable[[Case, str], None]) -> None:
    contest(SoftmaxFocalLoss((2, 4)), HOST)

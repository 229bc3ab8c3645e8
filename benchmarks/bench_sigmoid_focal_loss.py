"""Sigmoid focal loss against PyTorch's formula, torch.compile and torchvision's function.

The plain formula is torchvision's, whose function also looks at its arguments and, under torch.compile, logs its use. The
floor reads logits and targets once; a backward writes the gradient of the logits, which for a mean or a sum the forward can
do in the same pass, and otherwise has to read logits, targets and the incoming gradient again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import sod_ops
from benchmarks.contest import FORWARD, HOST, Case
from sod_ops._peers import import_peer
from sod_ops.reference.sigmoid_focal_loss import reduce
from sod_ops.reference.sigmoid_focal_loss import sigmoid_focal_loss as reference


def formula(inputs: Tensor, targets: Tensor, reduction: str, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss as people write it."""
    p = torch.sigmoid(inputs)
    cross_entropy = F.binary_cross_entropy_with_logits(inputs, targets, reduction="none")
    p_t = p * targets + (1 - p) * (1 - targets)
    alpha_t = alpha * targets + (1 - alpha) * (1 - targets)
    return reduce(alpha_t * cross_entropy * (1 - p_t) ** gamma, reduction)


@dataclass(frozen=True)
class SigmoidFocalLoss(Case):
    """The loss of logits of ``shape``, a quarter of which belong to the positive class."""

    shape: tuple[int, ...]
    reduction: str = "mean"
    dtype: torch.dtype = torch.float32
    gamma: float = 2.0
    headline: bool = False

    peer_name = "torchvision"

    @property
    def name(self) -> str:
        size = "x".join(map(str, self.shape))
        gamma = "" if self.gamma == 2 else f" gamma={self.gamma:g}"
        return f"{size} {str(self.dtype).removeprefix('torch.')} {self.reduction}{gamma}"

    def inputs(self, device: str) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(0)
        logits = torch.randn(self.shape, generator=generator, device=device) * 3
        targets = torch.rand(self.shape, generator=generator, device=device) < 0.25
        return logits.to(self.dtype).requires_grad_(), targets.to(self.dtype)

    def reference(self, *inputs: Tensor) -> Tensor:
        logits, targets = inputs
        return reference(logits, targets, gamma=self.gamma, reduction=self.reduction)

    def eager(self) -> Callable[..., Tensor]:
        return partial(formula, reduction=self.reduction, gamma=self.gamma)

    def ours(self) -> Callable[..., Tensor]:
        return partial(sod_ops.sigmoid_focal_loss, gamma=self.gamma, reduction=self.reduction)

    def peer(self, *inputs: Tensor) -> Callable[[], Tensor]:
        function: Callable[..., Tensor] = import_peer("torchvision.ops").sigmoid_focal_loss
        return partial(function, *inputs, gamma=self.gamma, reduction=self.reduction)

    def floor_bytes(self, mode: str) -> int:
        reduces = self.reduction != "none"
        maps = (2 if reduces else 3) if mode == FORWARD else (3 if reduces else 7)
        return maps * torch.Size(self.shape).numel() * self.dtype.itemsize


_SHAPES = ((8, 1, 320, 320), (4, 1, 1024, 1024))
_COMMON = [
    *(SigmoidFocalLoss(shape, headline=True) for shape in _SHAPES),
    SigmoidFocalLoss(_SHAPES[1], "none", headline=True),
    SigmoidFocalLoss(_SHAPES[1], "sum"),
    SigmoidFocalLoss(_SHAPES[1], dtype=torch.bfloat16, headline=True),
    SigmoidFocalLoss(_SHAPES[1], gamma=1.5),
    SigmoidFocalLoss((2, 1, 32, 32)),
]

CASES = {
    "cpu": _COMMON,
    "cuda": [
        *(
            SigmoidFocalLoss(shape, dtype=dtype, headline=True)
            for shape in ((16, 1, 512, 512), (64, 1, 1024, 1024))  # the latter has 2^26 elements
            for dtype in (torch.float32, torch.bfloat16)
        ),
        *_COMMON,
    ],
}


def test_sigmoid_focal_loss(case: SigmoidFocalLoss, mode: str, contest: Callable[[Case, str], None]) -> None:
    contest(case, mode)


def test_host_time(contest: Callable[[Case, str], None]) -> None:
    contest(SigmoidFocalLoss((2, 1, 4, 4)), HOST)

"""The complete IoU loss of box pairs against PyTorch's formula, torch.compile and torchvision's function.

The floor reads both boxes of a pair once; backward writes the gradient of the first, as in training, where the second are
the labels. The plain formula is the reference's: it has torchvision's arithmetic, but where torchvision's selects the pairs
that overlap by a mask, which torch.compile cannot put into one graph, it uses torch.where.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import sod_ops
from benchmarks.contest import FORWARD, HOST, Case
from sod_ops._peers import import_peer
from sod_ops.reference.box_iou_loss import LOSSES

_BOX_BYTES = 16  # four float32


@dataclass(frozen=True)
class BoxIouLoss(Case):
    """The loss of ``count`` pairs of boxes, of which the first get gradients."""

    count: int
    loss: str = "complete_box_iou_loss"
    reduction: str = "mean"
    headline: bool = False

    peer_name = "torchvision"

    @property
    def name(self) -> str:
        return f"{self.loss.removesuffix('_box_iou_loss')} {self.count} {self.reduction}"

    def inputs(self, device: str) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(0)

        def boxes(shift: float) -> Tensor:
            """Sides of 8 to 72 pixels, somewhere in 640 x 640; the second near the first, as labels are."""
            corner = torch.rand(self.count, 2, generator=torch.Generator(device).manual_seed(1), device=device) * 560
            extent = 8 + 64 * torch.rand(self.count, 2, generator=generator, device=device)
            corner += shift * torch.rand(self.count, 2, generator=generator, device=device)
            return torch.cat([corner, corner + extent], 1)

        return boxes(0.0).requires_grad_(), boxes(10.0)

    def reference(self, *inputs: Tensor) -> Tensor:
        boxes1, boxes2 = inputs
        return LOSSES[self.loss](boxes1, boxes2, self.reduction)

    def eager(self) -> Callable[..., Tensor]:
        return partial(LOSSES[self.loss], reduction=self.reduction)

    def ours(self) -> Callable[..., Tensor]:
        return partial(getattr(sod_ops, self.loss), reduction=self.reduction)

    def peer(self, *inputs: Tensor) -> Callable[[], Tensor]:
        function: Callable[..., Tensor] = getattr(import_peer("torchvision.ops"), self.loss)
        return partial(function, *inputs, reduction=self.reduction)

    def floor_bytes(self, mode: str) -> int:
        boxes = 2 if mode == FORWARD else 3
        return boxes * _BOX_BYTES * self.count + (0 if self.reduction == "mean" else 4 * self.count)


_SMALL_AND_LARGE = [
    BoxIouLoss(1_000, headline=True),
    BoxIouLoss(100_000, headline=True),
    BoxIouLoss(100_000, reduction="none", headline=True),
    BoxIouLoss(1_000, loss="generalized_box_iou_loss"),
    BoxIouLoss(100_000, loss="generalized_box_iou_loss"),
    BoxIouLoss(100_000, loss="distance_box_iou_loss"),
]

CASES = {
    "cpu": [BoxIouLoss(10), *_SMALL_AND_LARGE, BoxIouLoss(10_000)],
    "cuda": [*_SMALL_AND_LARGE, BoxIouLoss(10_000, headline=True), BoxIouLoss(10_000_000)],
}


def test_box_iou_loss(case: BoxIouLoss, mode: str, contest: Callable[[Case, str], None]) -> None:
    contest(case, mode)


def test_host_time(contest: Callable[[Case, str], None]) -> None:
    contest(BoxIouLoss(2), HOST)

"""The complete IoU of all pairs of two box sets against PyTorch's formula, torch.compile and torchvision's function.

The floor writes the matrix once, or reads its gradient once; the boxes are next to nothing beside it. The plain formula is
the reference's, which has torchvision's arithmetic.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import sod_ops
from benchmarks.contest import FORWARD, HOST, Case
from sod_ops._peers import import_peer
from sod_ops.reference import complete_box_iou as reference


@dataclass(frozen=True)
class CompleteBoxIou(Case):
    """``rows`` predicted boxes, which get gradients, against ``columns`` labels."""

    rows: int
    columns: int
    headline: bool = False

    peer_name = "torchvision"

    @property
    def name(self) -> str:
        return f"{self.rows}x{self.columns}"

    def inputs(self, device: str) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(0)

        def boxes(count: int) -> Tensor:
            """Sides of 8 to 72 pixels, somewhere in 640 x 640."""
            corner = torch.rand(count, 2, generator=generator, device=device) * 560
            extent = 8 + 64 * torch.rand(count, 2, generator=generator, device=device)
            return torch.cat([corner, corner + extent], 1)

        return boxes(self.rows).requires_grad_(), boxes(self.columns)

    def reference(self, *inputs: Tensor) -> Tensor:
        boxes1, boxes2 = inputs
        return reference.complete_box_iou(boxes1, boxes2)

    def eager(self) -> Callable[..., Tensor]:
        return reference.complete_box_iou

    def ours(self) -> Callable[..., Tensor]:
        return sod_ops.complete_box_iou

    def peer(self, *inputs: Tensor) -> Callable[[], Tensor]:
        function: Callable[..., Tensor] = import_peer("torchvision.ops").complete_box_iou
        return partial(function, *inputs)

    def floor_bytes(self, mode: str) -> int:
        return (1 if mode == FORWARD else 2) * 4 * self.rows * self.columns


CASES = {
    "cpu": [CompleteBoxIou(100, 20), CompleteBoxIou(2_000, 500, headline=True), CompleteBoxIou(8_400, 20)],
    "cuda": [
        CompleteBoxIou(100, 20),
        CompleteBoxIou(2_000, 500, headline=True),
        CompleteBoxIou(8_400, 20, headline=True),
        CompleteBoxIou(20_000, 2_000),
    ],
}


def test_complete_box_iou(case: CompleteBoxIou, mode: str, contest: Callable[[Case, str], None]) -> None:
    contest(case, mode)


def test_host_time(contest: Callable[[Case, str], None]) -> None:
    contest(CompleteBoxIou(2, 3), HOST)

"""box_filter against PyTorch's average pooling, torch.compile, and two average poolings, one along each axis.

The floor reads the mask once and writes the averages once; backward does the same with gradients.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import sod_ops
from benchmarks.contest import FORWARD, HOST, Case
from sod_ops.reference.box_filter import box_filter as reference


@dataclass(frozen=True)
class BoxFilter(Case):
    """``shape`` is [N, C, H, W]."""

    shape: tuple[int, int, int, int]
    kernel_size: int
    headline: bool = False

    peer_name = "two poolings"

    @property
    def name(self) -> str:
        return f"{'x'.join(map(str, self.shape))} window {self.kernel_size}"

    def inputs(self, device: str) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(0)
        return (torch.rand(self.shape, generator=generator, device=device).requires_grad_(),)

    def reference(self, *inputs: Tensor) -> Tensor:
        return reference(inputs[0], self.kernel_size)

    def eager(self) -> Callable[..., Tensor]:
        return partial(F.avg_pool2d, kernel_size=self.kernel_size, stride=1, padding=self.kernel_size // 2)

    def ours(self) -> Callable[..., Tensor]:
        return partial(sod_ops.box_filter, kernel_size=self.kernel_size)

    def peer(self, *inputs: Tensor) -> Callable[[], Tensor]:
        k = self.kernel_size

        def separable() -> Tensor:
            along_columns = F.avg_pool2d(inputs[0], (k, 1), stride=1, padding=(k // 2, 0))
            return F.avg_pool2d(along_columns, (1, k), stride=1, padding=(0, k // 2))

        return separable

    def floor_bytes(self, mode: str) -> int:
        maps = 2 if mode == FORWARD else 4
        return maps * torch.Size(self.shape).numel() * 4


_CASES = [
    *(BoxFilter((8, 1, 352, 352), k, headline=True) for k in (3, 15, 31, 63)),
    BoxFilter((1, 1, 352, 352), 31),
    BoxFilter((1, 1, 1024, 1024), 31, headline=True),
]

CASES = {"cpu": _CASES, "cuda": [*_CASES, BoxFilter((16, 1, 1024, 1024), 31, headline=True)]}


def test_box_filter(case: BoxFilter, mode: str, contest: Callable[[Case, str], None]) -> None:
    contest(case, mode)


def test_host_time(contest: Callable[[Case, str], None]) -> None:
    contest(BoxFilter((1, 1, 4, 4), 3), HOST)

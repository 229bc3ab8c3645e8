"""global_pool against mean and max over space, eager and compiled, and against the adaptive pools that modules take.

The floor reads x once; backward writes its gradient. The results are too small to count.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import sod_ops
from benchmarks.contest import FORWARD, HOST, Case
from benchmarks.maps import MapCase
from sod_ops.reference.global_pool import global_pool as reference


@dataclass(frozen=True)
class GlobalPool(MapCase):
    peer_name = "adaptive pools"

    def inputs(self, device: str) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(0)
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        x = torch.empty(self.shape, dtype=self.dtype, device=device, memory_format=memory_format)
        return (x.normal_(0.5, generator=generator).requires_grad_(),)

    def reference(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return reference(*inputs)

    def eager(self) -> Callable[..., tuple[Tensor, ...]]:
        def eager_global_pool(x: Tensor) -> tuple[Tensor, ...]:
            return x.mean((2, 3), keepdim=True), x.flatten(2).max(2).values[:, :, None, None]

        return eager_global_pool

    def ours(self) -> Callable[..., tuple[Tensor, ...]]:
        return sod_ops.global_pool

    def peer(self, *inputs: Tensor) -> Callable[[], tuple[Tensor, ...]]:
        (x,) = inputs
        return lambda: (F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1))

    def floor_bytes(self, mode: str) -> int:
        maps = 1 if mode == FORWARD else 2
        return maps * torch.Size(self.shape).numel() * self.dtype.itemsize


CASES = {
    "cpu": [
        GlobalPool((8, 256, 56, 56), headline=True),
        GlobalPool((8, 256, 56, 56), channels_last=True, headline=True),
        GlobalPool((8, 256, 56, 56), dtype=torch.bfloat16),
        GlobalPool((8, 1024, 14, 14)),
        GlobalPool((8, 64, 160, 160)),
        GlobalPool((1, 256, 56, 56)),
    ],
    "cuda": [
        *(
            GlobalPool((64, 256, 56, 56), dtype=dtype, channels_last=channels_last, headline=True)
            for dtype in (torch.float32, torch.bfloat16)
            for channels_last in (False, True)
        ),
        GlobalPool((64, 1024, 14, 14), dtype=torch.bfloat16),
    ],
}


def test_global_pool(case: GlobalPool, mode: str, contest: Callable[[Case, str], None]) -> None:
    contest(case, mode)


def test_host_time(contest: Callable[[Case, str], None]) -> None:
    contest(GlobalPool((1, 8, 4, 4)), HOST)

"""pyramid_pool against adaptive pools one by one, eager and compiled, and against the modules that libraries take.

The floor reads x once; backward writes its gradient. The levels are too small to count.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import sod_ops
from benchmarks.contest import FORWARD, HOST, Case
from sod_ops.reference.pyramid_pool import pyramid_pool as reference


@dataclass(frozen=True)
class PyramidPool(Case):
    """``shape`` is [N, C, H, W]."""

    shape: tuple[int, int, int, int]
    bins: tuple[int, ...] = (1, 2, 3, 6)
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    headline: bool = False

    peer_name = "nn.AdaptiveAvgPool2d"

    @property
    def name(self) -> str:
        parts = ["x".join(map(str, self.shape)), str(self.dtype).removeprefix("torch.")]
        parts += [] if self.bins == (1, 2, 3, 6) else [f"bins {','.join(map(str, self.bins))}"]
        return " ".join(parts + ["channels_last"] * self.channels_last)

    def inputs(self, device: str) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(0)
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        x = torch.empty(self.shape, dtype=self.dtype, device=device, memory_format=memory_format)
        return (x.normal_(0.5, generator=generator).requires_grad_(),)

    def reference(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return reference(inputs[0], self.bins)

    def eager(self) -> Callable[..., tuple[Tensor, ...]]:
        bins = self.bins

        def eager_pyramid_pool(x: Tensor) -> tuple[Tensor, ...]:
            return tuple(F.adaptive_avg_pool2d(x, size) for size in bins)

        return eager_pyramid_pool

    def ours(self) -> Callable[..., tuple[Tensor, ...]]:
        return partial(sod_ops.pyramid_pool, bins=self.bins)

    def peer(self, *inputs: Tensor) -> Callable[[], tuple[Tensor, ...]]:
        (x,) = inputs
        pools = [torch.nn.AdaptiveAvgPool2d(size) for size in self.bins]
        return lambda: tuple(pool(x) for pool in pools)

    def floor_bytes(self, mode: str) -> int:
        maps = 1 if mode == FORWARD else 2
        return maps * torch.Size(self.shape).numel() * self.dtype.itemsize


CASES = {
    "cpu": [
        PyramidPool((4, 512, 40, 40), headline=True),
        PyramidPool((4, 512, 40, 40), channels_last=True, headline=True),
        PyramidPool((1, 2048, 60, 60), headline=True),
        PyramidPool((1, 2048, 60, 60), channels_last=True, headline=True),
        PyramidPool((1, 2048, 60, 60), dtype=torch.bfloat16),
        PyramidPool((8, 64, 160, 160)),
        PyramidPool((4, 512, 40, 40), bins=(1, 3, 5)),
        PyramidPool((1, 16, 20, 20)),
    ],
    "cuda": [
        *(
            PyramidPool((8, 2048, 64, 64), dtype=dtype, channels_last=channels_last, headline=True)
            for dtype in (torch.bfloat16, torch.float32)
            for channels_last in (False, True)
        ),
        PyramidPool((4, 512, 40, 40), headline=True),
        PyramidPool((1, 2048, 60, 60), headline=True),
    ],
}


def test_pyramid_pool(case: PyramidPool, mode: str, contest: Callable[[Case, str], None]) -> None:
    contest(case, mode)


def test_host_time(contest: Callable[[Case, str], None]) -> None:
    contest(PyramidPool((1, 8, 4, 4)), HOST)

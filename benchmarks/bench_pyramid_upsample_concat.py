"""pyramid_upsample_concat against interpolate and cat, eager and compiled, and against nn.Upsample and cat.

The floor reads x once and writes the concatenation; backward reads the branches' part of its gradient (that of x is a slice
of it). The branches are too small to count, but for those of a fusion of several maps.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import sod_ops
from benchmarks.contest import FORWARD, HOST, Case
from sod_ops.reference.pyramid_upsample_concat import pyramid_upsample_concat as reference


@dataclass(frozen=True)
class UpsampleConcat(Case):
    """``shape`` is that of x; a branch of ``branch_channels`` for each of ``bins``."""

    shape: tuple[int, int, int, int]
    branch_channels: int
    bins: tuple[int, ...] = (1, 2, 3, 6)
    align_corners: bool = False
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    headline: bool = False

    peer_name = "nn.Upsample"

    @property
    def name(self) -> str:
        branches = f"+{self.branch_channels}@{','.join(map(str, self.bins))}"
        parts = ["x".join(map(str, self.shape)), branches, str(self.dtype).removeprefix("torch.")]
        return " ".join(parts + ["align_corners"] * self.align_corners + ["channels_last"] * self.channels_last)

    def inputs(self, device: str) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(0)
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format

        def normal(*shape: int) -> Tensor:
            tensor = torch.empty(shape, dtype=self.dtype, device=device, memory_format=memory_format)
            return tensor.normal_(generator=generator).requires_grad_()

        return normal(*self.shape), *(normal(self.shape[0], self.branch_channels, size, size) for size in self.bins)

    def reference(self, *inputs: Tensor) -> Tensor:
        return reference(inputs[0], inputs[1:], align_corners=self.align_corners)

    def eager(self) -> Callable[..., Tensor]:
        align_corners = self.align_corners

        def eager_upsample_concat(x: Tensor, *branches: Tensor) -> Tensor:
            size = x.shape[2:]
            upsampled = [F.interpolate(b, size, mode="bilinear", align_corners=align_corners) for b in branches]
            return torch.cat([x, *upsampled], 1)

        return eager_upsample_concat

    def ours(self) -> Callable[..., Tensor]:
        def upsample_concat(x: Tensor, *branches: Tensor) -> Tensor:
            return sod_ops.pyramid_upsample_concat(x, branches, align_corners=self.align_corners)

        return upsample_concat

    def peer(self, *inputs: Tensor) -> Callable[[], Tensor]:
        x, *branches = inputs
        upsample = torch.nn.Upsample(tuple(x.shape[2:]), mode="bilinear", align_corners=self.align_corners)
        return lambda: torch.cat([x, *(upsample(branch) for branch in branches)], 1)

    def floor_bytes(self, mode: str) -> int:
        samples, channels, height, width = self.shape
        upsampled = len(self.bins) * self.branch_channels
        planes = 2 * channels + upsampled + (0 if mode == FORWARD else upsampled)
        return planes * samples * height * width * self.dtype.itemsize


CASES = {
    "cpu": [
        UpsampleConcat((4, 512, 40, 40), 128, headline=True),
        UpsampleConcat((4, 512, 40, 40), 128, channels_last=True, headline=True),
        UpsampleConcat((1, 2048, 60, 60), 512, headline=True),
        UpsampleConcat((1, 2048, 60, 60), 512, channels_last=True, headline=True),
        UpsampleConcat((4, 512, 40, 40), 128, align_corners=True, dtype=torch.bfloat16),
        UpsampleConcat((4, 256, 80, 80), 256, bins=(40, 20, 10)),
        UpsampleConcat((1, 16, 20, 20), 4),
    ],
    "cuda": [
        *(
            UpsampleConcat((8, 2048, 64, 64), 512, dtype=dtype, channels_last=channels_last, headline=True)
            for dtype in (torch.bfloat16, torch.float32)
            for channels_last in (False, True)
        ),
        UpsampleConcat((4, 512, 40, 40), 128, headline=True),
        UpsampleConcat((4, 256, 80, 80), 256, bins=(40, 20, 10)),
    ],
}


def test_pyramid_upsample_concat(case: UpsampleConcat, mode: str, contest: Callable[[Case, str], None]) -> None:
    contest(case, mode)


def test_host_time(contest: Callable[[Case, str], None]) -> None:
    contest(UpsampleConcat((1, 8, 4, 4), 2), HOST)

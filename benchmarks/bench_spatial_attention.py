"""spatial_attention against CBAM's published formula, eager and compiled, and against one with amax.

The floor reads x once and writes y once; backward reads dy and x and writes dx besides.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import sod_ops
from benchmarks.contest import FORWARD, HOST, Case
from benchmarks.maps import MapCase
from sod_ops.reference.spatial_attention import spatial_attention as reference


@dataclass(frozen=True)
class SpatialAttention(MapCase):
    peer_name = "mean, amax"

    def inputs(self, device: str) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(0)
        x, weight = self.map(generator), self.normal(generator, 1, 2, 7, 7, deviation=0.1)
        return x, weight, self.normal(generator, 1)

    def reference(self, *inputs: Tensor) -> Tensor:
        return reference(*inputs)

    def eager(self) -> Callable[..., Tensor]:
        def eager_spatial_attention(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            pooled = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True).values], 1)
            return x * torch.sigmoid(F.conv2d(pooled, weight, bias, padding=3))

        return eager_spatial_attention

    def ours(self) -> Callable[..., Tensor]:
        return sod_ops.spatial_attention

    def peer(self, *inputs: Tensor) -> Callable[[], Tensor]:
        x, weight, bias = inputs

        def with_amax() -> Tensor:
            pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
            return x * torch.sigmoid(F.conv2d(pooled, weight, bias, padding=3))

        return with_amax

    def floor_bytes(self, mode: str) -> int:
        maps = 2 if mode == FORWARD else 5
        return maps * torch.Size(self.shape).numel() * self.dtype.itemsize


CASES = {
    "cpu": [
        SpatialAttention((8, 256, 56, 56), headline=True),
        SpatialAttention((8, 256, 56, 56), channels_last=True, headline=True),
        SpatialAttention((8, 256, 56, 56), dtype=torch.bfloat16),
        SpatialAttention((8, 1024, 14, 14)),
        SpatialAttention((1, 256, 56, 56)),
    ],
    "cuda": [
        *(
            SpatialAttention((64, 256, 56, 56), dtype=dtype, channels_last=channels_last, headline=True)
            for dtype in (torch.float32, torch.bfloat16)
            for channels_last in (False, True)
        ),
        SpatialAttention((64, 1024, 14, 14), dtype=torch.bfloat16),
    ],
}


def test_spatial_attention(case: SpatialAttention, mode: str, contest: Callable[[Case, str], None]) -> None:
    contest(case, mode)


def test_host_time(contest: Callable[[Case, str], None]) -> None:
    contest(SpatialAttention((1, 8, 4, 4)), HOST)

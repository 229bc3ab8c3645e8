"""What nn.CBAM computes, without its batch norm, against the published formula, eager and compiled, and against amax.

The floor is that of a scaling: it reads x once and writes y once; backward reads dy and x and writes dx besides.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import sod_ops
from benchmarks.contest import FORWARD, HOST, Case
from benchmarks.maps import MapCase
from sod_ops.ops.global_pool import global_pool_and_pass_on


def largest_by_index(x: Tensor, dim: tuple[int, ...], keepdim: bool) -> Tensor:
    """The maximum whose gradient goes to one of the largest, as torch.max and max pooling have it."""
    if dim == (1,):
        return x.max(1, keepdim=keepdim).values
    return F.adaptive_max_pool2d(x, 1)


def plain(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    w: Tensor,
    *,
    largest: Callable[..., Tensor] = largest_by_index,
) -> Tensor:
    def mlp(v: Tensor) -> Tensor:
        return F.conv2d(F.relu(F.conv2d(v, w1, b1)), w2, b2)

    y = x * torch.sigmoid(mlp(x.mean((2, 3), keepdim=True)) + mlp(largest(x, dim=(2, 3), keepdim=True)))
    pooled = torch.cat([largest(y, dim=(1,), keepdim=True), y.mean(1, keepdim=True)], 1)
    return y * torch.sigmoid(F.conv2d(pooled, w, padding=3))


@dataclass(frozen=True)
class CBAM(MapCase):
    peer_name = "mean, amax"

    def inputs(self, device: str) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(0)
        x = self.map(generator)
        parameters = self.squeeze(generator)
        with torch.no_grad():
            # One channel of each pixel stands out, and gates are much alike: which channel is the largest, a rounding of
            # two bytes does not decide.
            index = torch.randint(x.shape[1], (x.shape[0], 1, *x.shape[2:]), device=device, generator=generator)
            x.scatter_(1, index, 8 + x.gather(1, index).abs())
            for parameter in parameters[2:]:
                parameter.mul_(0.1)
        return x, *parameters, self.normal(generator, 1, 2, 7, 7, deviation=0.1)

    def reference(self, *inputs: Tensor) -> Tensor:
        return plain(*inputs)

    def eager(self) -> Callable[..., Tensor]:
        return plain

    def ours(self) -> Callable[..., Tensor]:
        def fused(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, w: Tensor) -> Tensor:
            x, mean, maximum = global_pool_and_pass_on(x)
            hidden = F.relu(F.conv2d(torch.cat([mean, maximum], 2), w1, b1))
            y = sod_ops.gate(x, F.conv2d(hidden, w2, b2).sum(2, keepdim=True))
            return sod_ops.spatial_attention(y, w, max_first=True)

        return fused

    def peer(self, *inputs: Tensor) -> Callable[[], Tensor]:
        x, w1, b1, w2, b2, w = inputs
        return lambda: plain(x, w1, b1, w2, b2, w, largest=torch.amax)

    def floor_bytes(self, mode: str) -> int:
        maps = 2 if mode == FORWARD else 5
        return maps * torch.Size(self.shape).numel() * self.dtype.itemsize


CASES = {
    "cpu": [
        CBAM((8, 256, 56, 56), headline=True),
        CBAM((8, 256, 56, 56), channels_last=True, headline=True),
        CBAM((8, 256, 56, 56), dtype=torch.bfloat16),
        CBAM((8, 1024, 14, 14)),
        CBAM((1, 256, 56, 56)),
    ],
    "cuda": [
        *(
            CBAM((64, 256, 56, 56), dtype=dtype, channels_last=channels_last, headline=True)
            for dtype in (torch.float32, torch.bfloat16)
            for channels_last in (False, True)
        ),
        CBAM((64, 1024, 14, 14), dtype=torch.bfloat16),
    ],
}


def test_cbam(case: CBAM, mode: str, contest: Callable[[Case, str], None]) -> None:
    contest(case, mode)


def test_host_time(contest: Callable[[Case, str], None]) -> None:
    contest(CBAM((1, 16, 4, 4)), HOST)

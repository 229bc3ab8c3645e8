"""channel_pool against a mean, a maximum and their concatenation, eager and compiled, and against mean with amax.

The floor reads x once; backward writes its gradient. The result is too small to count.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import sod_ops
from benchmarks.contest import FORWARD, HOST, Case
from benchmarks.maps import MapCase
from sod_ops.reference.channel_pool import channel_pool as reference


@dataclass(frozen=True)
class ChannelPool(MapCase):
    peer_name = "mean, amax"

    def inputs(self, device: str) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(0)
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        x = torch.empty(self.shape, dtype=self.dtype, device=device, memory_format=memory_format)
        return (x.normal_(0.5, generator=generator).requires_grad_(),)

    def reference(self, *inputs: Tensor) -> Tensor:
        return reference(*inputs)

    def eager(self) -> Callable[..., Tensor]:
        def eager_channel_pool(x: Tensor) -> Tensor:
            return torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True).values], 1)

        return eager_channel_pool

    def ours(self) -> Callable[..., Tensor]:
        return sod_ops.channel_pool

    def peer(self, *inputs: Tensor) -> Callable[[], Tensor]:
        (x,) = inputs
        # Shares the gradient among equal maxima; there are none here.
        return lambda: torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)

    def floor_bytes(self, mode: str) -> int:
        maps = 1 if mode == FORWARD else 2
        return maps * torch.Size(self.shape).numel() * self.dtype.itemsize


CASES = {
    "cpu": [
        ChannelPool((8, 256, 56, 56), headline=True),
        ChannelPool((8, 256, 56, 56), channels_last=True, headline=True),
        ChannelPool((8, 256, 56, 56), dtype=torch.bfloat16),
        ChannelPool((8, 1024, 14, 14)),
        ChannelPool((8, 64, 160, 160)),
        ChannelPool((1, 256, 56, 56)),
    ],
    "cuda": [
        *(
            ChannelPool((64, 256, 56, 56), dtype=dtype, channels_last=channels_last, headline=True)
            for dtype in (torch.float32, torch.bfloat16)
            for channels_last in (False, True)
        ),
        ChannelPool((64, 1024, 14, 14), dtype=torch.bfloat16),
    ],
}


def test_channel_pool(case: ChannelPool, mode: str, contest: Callable[[Case, str], None]) -> None:
    contest(case, mode)


def test_host_time(contest: Callable[[Case, str], None]) -> None:
    contest(ChannelPool((1, 8, 4, 4)), HOST)

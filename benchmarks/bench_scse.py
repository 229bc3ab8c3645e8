"""scse against the formula of segmentation_models_pytorch, eager and compiled, and against its module.

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
from sod_ops._peers import import_peer
from sod_ops.reference.scse import scse as reference


@dataclass(frozen=True)
class SCSE(MapCase):
    peer_name = "smp"

    def inputs(self, device: str) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(0)
        channels = self.shape[1]
        return (
            self.map(generator),
            *self.squeeze(generator),
            self.normal(generator, 1, channels, 1, 1, deviation=channels**-0.5),
            self.normal(generator, 1),
        )

    def reference(self, *inputs: Tensor) -> Tensor:
        return reference(*inputs)

    def eager(self) -> Callable[..., Tensor]:
        def eager_scse(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, w: Tensor, b: Tensor) -> Tensor:
            hidden = F.relu(F.conv2d(F.adaptive_avg_pool2d(x, 1), w1, b1))
            return x * torch.sigmoid(F.conv2d(hidden, w2, b2)) + x * torch.sigmoid(F.conv2d(x, w, b))

        return eager_scse

    def ours(self) -> Callable[..., Tensor]:
        return sod_ops.scse

    def peer(self, *inputs: Tensor) -> Callable[[], Tensor]:
        x, *parameters = inputs
        module = import_peer("segmentation_models_pytorch.base.modules").SCSEModule(self.shape[1], 16)
        # The very tensors of the others, as attributes: a Parameter would be a leaf of its own.
        for i, convolution in enumerate((module.cSE[1], module.cSE[3], module.sSE[0])):
            del convolution.weight, convolution.bias
            convolution.weight, convolution.bias = parameters[2 * i : 2 * i + 2]
        return lambda: module(x)

    def floor_bytes(self, mode: str) -> int:
        maps = 2 if mode == FORWARD else 5
        return maps * torch.Size(self.shape).numel() * self.dtype.itemsize


CASES = {
    "cpu": [
        SCSE((8, 256, 56, 56), headline=True),
        SCSE((8, 256, 56, 56), channels_last=True, headline=True),
        SCSE((8, 256, 56, 56), dtype=torch.bfloat16),
        SCSE((8, 1024, 14, 14)),
        SCSE((1, 256, 56, 56)),
    ],
    "cuda": [
        *(
            SCSE((64, 256, 56, 56), dtype=dtype, channels_last=channels_last, headline=True)
            for dtype in (torch.float32, torch.bfloat16)
            for channels_last in (False, True)
        ),
        SCSE((64, 1024, 14, 14), dtype=torch.bfloat16),
    ],
}


def test_scse(case: SCSE, mode: str, contest: Callable[[Case, str], None]) -> None:
    contest(case, mode)


def test_host_time(contest: Callable[[Case, str], None]) -> None:
    contest(SCSE((1, 16, 4, 4)), HOST)

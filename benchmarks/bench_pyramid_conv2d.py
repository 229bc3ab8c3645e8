"""pyramid_conv2d against interpolate + cat + conv2d, torch.compile, and the same algebra in plain PyTorch.

The third contestant multiplies branches with the kernel's taps at their own size as ours does, and upsamples the products
with dense matrices: what the algebra alone brings. The floor reads x, branches and weight once and writes the output; the
backward reads the output's gradient besides and writes a gradient for each. It counts no multiplications: where a
convolution over x is most of the time, no form comes near it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

import sod_ops
from benchmarks.contest import FORWARD, HOST, Case
from sod_ops.reference.pyramid_conv2d import pyramid_conv2d as reference


@dataclass(frozen=True)
class PyramidConv2d(Case):
    """``shape`` is that of x; ``branches`` has (channels, size) of each, square."""

    shape: tuple[int, int, int, int]
    branches: tuple[tuple[int, int], ...]
    out_channels: int
    mode: str = "bilinear"
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    headline: bool = False

    peer_name = "dense matrices"

    @property
    def name(self) -> str:
        branches = " ".join(f"+{channels}@{size}" for channels, size in self.branches)
        more = ([] if self.mode == "bilinear" else [self.mode]) + (["channels_last"] if self.channels_last else [])
        dtype = str(self.dtype).removeprefix("torch.")
        return " ".join(["x".join(map(str, self.shape)), branches, f"to {self.out_channels}", dtype, *more])

    def inputs(self, device: str) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(0)

        def normal(*shape: int, deviation: float = 1.0) -> Tensor:
            tensor = torch.empty(shape, device=device).normal_(0, deviation, generator=generator).to(self.dtype)
            if self.channels_last:
                tensor = tensor.contiguous(memory_format=torch.channels_last)
            return tensor.requires_grad_()

        channels = self.shape[1] + sum(c for c, _ in self.branches)
        weight = normal(self.out_channels, channels, 3, 3, deviation=(9 * channels) ** -0.5)
        return weight, normal(*self.shape), *(normal(self.shape[0], c, s, s) for c, s in self.branches)

    def reference(self, *inputs: Tensor) -> Tensor:
        weight, x, *branches = inputs
        return reference(x, branches, weight, mode=self.mode)

    def eager(self) -> Callable[..., Tensor]:
        def eager_pyramid_conv2d(weight: Tensor, x: Tensor, *branches: Tensor) -> Tensor:
            return reference(x, branches, weight, mode=self.mode)

        return eager_pyramid_conv2d

    def ours(self) -> Callable[..., Tensor]:
        def fused_pyramid_conv2d(weight: Tensor, x: Tensor, *branches: Tensor) -> Tensor:
            return sod_ops.pyramid_conv2d(x, branches, weight, mode=self.mode)

        return fused_pyramid_conv2d

    def peer(self, *inputs: Tensor) -> Callable[[], Tensor]:
        return partial(_dense_matrices, *inputs, mode=self.mode)

    def floor_bytes(self, mode: str) -> int:
        samples, channels, height, width = self.shape
        weight = self.out_channels * 9 * (channels + sum(c for c, _ in self.branches))
        given = weight + samples * (channels * height * width + sum(c * s * s for c, s in self.branches))
        output = samples * self.out_channels * height * width
        return ((given + output) if mode == FORWARD else (3 * given + 2 * output)) * self.dtype.itemsize

    def operations(self, mode: str) -> int:
        """Of our algebra: every map at its own size; the backward takes as many for the maps and for the weight."""
        samples, channels, height, width = self.shape
        given = channels * height * width + sum(c * s * s for c, s in self.branches)
        return (1 if mode == FORWARD else 3) * 2 * 9 * samples * given * self.out_channels


def _dense_matrices(weight: Tensor, x: Tensor, *branches: Tensor, mode: str) -> Tensor:
    height, width = x.shape[2:]
    start = x.shape[1]
    y = functional.conv2d(x, weight[:, :start], padding=1)
    for branch in branches:
        taps = weight[:, start : start + branch.shape[1]]
        start += branch.shape[1]
        products = torch.einsum("nchw,ocij->noihjw", branch, taps).flatten(4, 5).flatten(2, 3)
        rows, columns = _shifted(height, branch.shape[2], mode, y), _shifted(width, branch.shape[3], mode, y)
        y = y + rows @ products @ columns.T
    return y


def _shifted(to: int, size: int, mode: str, like: Tensor) -> Tensor:
    """[to, 3 * size]: the interpolation from ``size`` positions, for each of the three taps."""
    align_corners = False if mode == "bilinear" else None
    identity = torch.eye(size, dtype=like.dtype, device=like.device)[None, :, :, None]
    up = functional.interpolate(identity, size=(to, 1), mode=mode, align_corners=align_corners)[0, :, :, 0].T
    padded = functional.pad(up, (0, 0, 1, 1))
    return torch.cat([padded[tap : tap + to] for tap in range(3)], 1)


_PYRAMID = (1, 2, 3, 6)
_HEAD = PyramidConv2d((1, 2048, 60, 60), tuple((512, size) for size in _PYRAMID), 512, headline=True)
_UPERNET = PyramidConv2d((2, 512, 20, 20), tuple((256, size) for size in _PYRAMID), 256, headline=True)
_FUSION = PyramidConv2d((2, 256, 80, 80), ((256, 40), (256, 20), (256, 10)), 256, headline=True)
_UNET = [
    PyramidConv2d((2, 256, 40, 40), ((512, 20),), 256, headline=True),
    PyramidConv2d((2, 64, 160, 160), ((128, 80),), 64, mode="nearest", headline=True),
    PyramidConv2d((2, 64, 160, 160), ((64, 80),), 64, headline=True),
]

CASES = {
    "cpu": [
        _HEAD,
        _UPERNET,
        _FUSION,
        *_UNET,
        PyramidConv2d((1, 512, 60, 60), tuple((128, size) for size in _PYRAMID), 128),
        PyramidConv2d((2, 256, 80, 80), ((256, 40), (256, 20), (256, 10)), 256, channels_last=True),
        PyramidConv2d((2, 256, 40, 40), ((512, 20),), 256, mode="nearest"),
        PyramidConv2d((1, 8, 16, 16), ((8, 2),), 8),
    ],
    "cuda": [
        replace(case, dtype=dtype, channels_last=last, headline=True)
        for case in (
            PyramidConv2d((8, 2048, 64, 64), tuple((512, size) for size in _PYRAMID), 512),
            PyramidConv2d((8, 512, 32, 32), tuple((256, size) for size in _PYRAMID), 256),
            PyramidConv2d((8, 256, 128, 128), ((256, 64), (256, 32), (256, 16)), 256),
        )
        for dtype in (torch.bfloat16, torch.float32)
        for last in (False, True)
    ],
}


def test_pyramid_conv2d(case: PyramidConv2d, mode: str, contest: Callable[[Case, str], None]) -> None:
    contest(case, mode)


def test_host_time(contest: Callable[[Case, str], None]) -> None:
    contest(PyramidConv2d((1, 1, 1, 1), ((1, 1),), 1), HOST)

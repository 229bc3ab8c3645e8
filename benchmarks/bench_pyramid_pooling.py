"""nn.PyramidPooling, the whole module, against its layers one by one, eager and compiled, and against the paper's way.

Pools, 1x1 convolutions, batch normalisation in evaluation and ReLU, upsampling and concatenation. (torch.compile fails on
the backward of adaptive pools on a CPU; what it raises stands in the results.) The floor reads x once and writes the
concatenation; backward reads the concatenation's gradient and writes that of x.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import sod_ops
from benchmarks.contest import FORWARD, Case


@dataclass(frozen=True)
class PyramidPooling(Case):
    """``shape`` is that of x; a quarter of its channels for each of four levels."""

    shape: tuple[int, int, int, int]
    channels_last: bool = False
    dtype: torch.dtype = torch.float32
    headline: bool = False

    peer_name = "nn.Upsample"

    @property
    def name(self) -> str:
        parts = ["x".join(map(str, self.shape)), str(self.dtype).removeprefix("torch.")]
        return " ".join(parts + ["channels_last"] * self.channels_last)

    def inputs(self, device: str) -> tuple[Tensor, ...]:
        """x, then the weight of every branch's convolution and its norm's weight and bias."""
        generator = torch.Generator(device).manual_seed(0)
        channels = self.shape[1]
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        x = torch.empty(self.shape, device=device, dtype=self.dtype, memory_format=memory_format)
        tensors = [x.normal_(generator=generator)]
        for _ in range(4):
            weight = torch.empty(channels // 4, channels, 1, 1, device=device).normal_(generator=generator)
            norm = [torch.empty(channels // 4, device=device).normal_(generator=generator) for _ in range(2)]
            tensors += [(weight / channels**0.5).to(self.dtype), *(n.to(self.dtype) for n in norm)]
        return tuple(tensor.requires_grad_() for tensor in tensors)

    def reference(self, *inputs: Tensor) -> Tensor:
        # Its layout is that of the gradient that every contestant gets: what a convolution behind the module gives.
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        return _layers(*inputs).contiguous(memory_format=memory_format)

    def eager(self) -> Callable[..., Tensor]:
        return _layers

    def ours(self) -> Callable[..., Tensor]:
        modules: dict[torch.dtype, torch.nn.Module] = {}

        def fused_pyramid_pooling(*inputs: Tensor) -> Tensor:
            x, *parameters = inputs
            if x.dtype not in modules:
                module = sod_ops.nn.PyramidPooling(x.shape[1], device=x.device, dtype=x.dtype).eval()
                for (name, _), tensor in zip(list(module.named_parameters()), parameters, strict=True):
                    owner: Any = module.get_submodule(name.rpartition(".")[0])
                    del owner._parameters[name.rpartition(".")[2]]
                    setattr(owner, name.rpartition(".")[2], tensor)
                modules[x.dtype] = module
            return modules[x.dtype](x)

        return fused_pyramid_pooling

    def peer(self, *inputs: Tensor) -> Callable[[], Tensor]:
        x = inputs[0]
        upsample = torch.nn.Upsample(tuple(x.shape[2:]), mode="bilinear", align_corners=False)
        pools = [torch.nn.AdaptiveAvgPool2d(size) for size in _BINS]
        return lambda: torch.cat(
            [x, *(upsample(_branch(p(x), *t)) for p, t in zip(pools, _of(inputs), strict=True))], 1
        )

    def floor_bytes(self, mode: str) -> int:
        maps = 3 if mode == FORWARD else 6
        return maps * torch.Size(self.shape).numel() * self.dtype.itemsize


_BINS = (1, 2, 3, 6)


def _of(inputs: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    return [inputs[1 + 3 * i : 4 + 3 * i] for i in range(4)]


def _branch(level: Tensor, weight: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    y = functional.conv2d(level, weight)
    mean, variance = torch.zeros_like(scale.detach()), torch.ones_like(scale.detach())
    return functional.batch_norm(y, mean, variance, scale, shift).relu()


def _layers(*inputs: Tensor) -> Tensor:
    x = inputs[0]
    levels = [_branch(functional.adaptive_avg_pool2d(x, size), *t) for size, t in zip(_BINS, _of(inputs), strict=True)]
    size = x.shape[2:]
    upsampled = [functional.interpolate(level, size, mode="bilinear", align_corners=False) for level in levels]
    return torch.cat([x, *upsampled], 1)


CASES = {
    "cpu": [
        PyramidPooling((4, 512, 40, 40), headline=True),
        PyramidPooling((1, 2048, 60, 60), headline=True),
        PyramidPooling((4, 512, 40, 40), channels_last=True),
        PyramidPooling((1, 2048, 60, 60), channels_last=True),
    ],
    "cuda": [
        PyramidPooling((8, 2048, 64, 64), dtype=dtype, channels_last=last, headline=True)
        for dtype in (torch.bfloat16, torch.float32)
        for last in (False, True)
    ],
}


def test_pyramid_pooling(case: PyramidPooling, mode: str, contest: Callable[[Case, str], None]) -> None:
    contest(case, mode)

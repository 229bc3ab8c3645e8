"""The convolutions that TRACER's modules share. Children have the authors' names, so that their state_dicts load."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import BatchNorm2d, Conv2d, Module, Sequential, functional


class PointwiseConv(Module):
    """1x1 convolution, batch normalisation, SELU."""

    def __init__(self, in_channels: int, out_channels: int, **factory: Any) -> None:
        super().__init__()
        self.conv = Conv2d(in_channels, out_channels, 1, bias=False, **factory)
        self.bn = BatchNorm2d(out_channels, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return functional.selu(self.bn(self.conv(x)))


class DepthwiseConv(Module):
    """A convolution of each channel with itself, batch normalisation, SELU."""

    def __init__(self, channels: int, kernel_size: int, dilation: int, **factory: Any) -> None:
        super().__init__()
        padding = dilation * (kernel_size // 2)
        self.DWConv = Conv2d(
            channels, channels, kernel_size, padding=padding, dilation=dilation, groups=channels, bias=False, **factory
        )
        self.bn = BatchNorm2d(channels, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return functional.selu(self.bn(self.DWConv(x)))


class DepthwiseSeparableConv(DepthwiseConv):
    """The same, then a 1x1 convolution, batch normalisation, SELU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, **factory: Any) -> None:
        super().__init__(in_channels, kernel_size, 1, **factory)
        self.PWConv = Conv2d(in_channels, out_channels, 1, bias=False, **factory)
        self.bn2 = BatchNorm2d(out_channels, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return functional.selu(self.bn2(self.PWConv(super().forward(x))))


class Receptive(Module):
    """What object attention and the frequency edge end in: four dilations side by side, and one map made of them.

    ``relu(conv(cat[DWConv1(y), ..., DWConv4(y)] + y))`` with ``y = DWSConv(x)``; ``conv`` is the child named ``head``.
    """

    def __init__(
        self, in_channels: int, channels: int, kernel_size: int, head: str, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self._head = head
        self.DWSConv = DepthwiseSeparableConv(in_channels, channels, kernel_size, **factory)
        for number, (size, dilation) in enumerate(((1, 1), (3, 1), (3, 3), (3, 5)), 1):
            branch = Sequential(
                DepthwiseConv(channels, size, dilation, **factory), PointwiseConv(channels, channels // 4, **factory)
            )
            self.add_module(f"DWConv{number}", branch)
        self.add_module(head, PointwiseConv(channels, 1, **factory))

    def receive(self, x: Tensor) -> Tensor:
        """``[N, 1, H, W]`` from ``[N, in_channels, H, W]``."""
        y = self.DWSConv(x)
        branches: list[Callable[[Tensor], Tensor]] = [getattr(self, f"DWConv{number}") for number in range(1, 5)]
        head: Callable[[Tensor], Tensor] = getattr(self, self._head)
        return torch.relu(head(torch.cat([branch(y) for branch in branches], 1) + y))

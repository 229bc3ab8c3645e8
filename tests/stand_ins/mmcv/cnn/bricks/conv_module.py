"""A stand-in for mmcv's ConvModule, which is not installed: its import path, attributes and order of modules."""

from typing import Any

from torch import Tensor, nn


class ConvModule(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel_size: int, *, padding: int = 0, norm: bool = True) -> None:
        super().__init__()
        self.order = ("conv", "norm", "act")
        self.with_norm, self.with_activation = norm, True
        self.with_explicit_padding = self.with_spectral_norm = False
        self.conv = nn.Conv2d(inputs, outputs, kernel_size, padding=padding, bias=not norm)
        if norm:
            self.bn = nn.BatchNorm2d(outputs)
        self.activate = nn.ReLU(inplace=True)

    @property
    def norm(self) -> Any:
        return self.bn if self.with_norm else None

    def forward(self, x: Tensor, activate: bool = True, norm: bool = True) -> Tensor:
        x = self.conv(x)
        if norm and self.with_norm:
            x = self.norm(x)
        return self.activate(x) if activate else x

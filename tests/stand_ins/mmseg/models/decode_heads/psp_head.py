"""A stand-in for mmseg's PPM and PSPHead, which are not installed: their import paths, attributes and order of modules."""

from collections.abc import Sequence

import torch
from mmcv.cnn.bricks.conv_module import ConvModule
from torch import Tensor, nn
from torch.nn import functional


class PPM(nn.ModuleList):
    def __init__(self, scales: Sequence[int], inputs: int, channels: int, *, align_corners: bool, norm: bool) -> None:
        super().__init__(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), ConvModule(inputs, channels, 1, norm=norm)) for scale in scales
        )
        self.align_corners = align_corners

    def forward(self, x: Tensor) -> list[Tensor]:
        size, align = x.shape[2:], self.align_corners
        return [functional.interpolate(level(x), size, mode="bilinear", align_corners=align) for level in self]


class PSPHead(nn.Module):
    def __init__(self, inputs: int, channels: int, *, align_corners: bool = False, norm: bool = True) -> None:
        super().__init__()
        self.in_index = -1
        self.align_corners = align_corners
        self.psp_modules = PPM((1, 2, 3, 6), inputs, channels, align_corners=align_corners, norm=norm)
        self.bottleneck = ConvModule(inputs + 4 * channels, channels, 3, padding=1, norm=norm)
        self.conv_seg = nn.Conv2d(channels, 2, 1)

    def _transform_inputs(self, inputs: Sequence[Tensor]) -> Tensor:
        return inputs[self.in_index]

    def cls_seg(self, features: Tensor) -> Tensor:
        return self.conv_seg(features)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        x = self._transform_inputs(inputs)
        return self.cls_seg(self.bottleneck(torch.cat([x, *self.psp_modules(x)], 1)))

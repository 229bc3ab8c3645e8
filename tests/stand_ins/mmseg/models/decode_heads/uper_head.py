"""A stand-in for mmseg's UPerHead, which is not installed: its import path, attributes and order of modules."""

from collections.abc import Sequence

import torch
from mmcv.cnn.bricks.conv_module import ConvModule
from torch import Tensor, nn
from torch.nn import functional

from mmseg.models.decode_heads.psp_head import PPM


class UPerHead(nn.Module):
    def __init__(self, inputs: Sequence[int], channels: int, *, align_corners: bool = False) -> None:
        super().__init__()
        self.in_index = tuple(range(len(inputs)))
        self.align_corners = align_corners
        self.psp_modules = PPM((1, 2, 3, 6), inputs[-1], channels, align_corners=align_corners, norm=True)
        self.bottleneck = ConvModule(inputs[-1] + 4 * channels, channels, 3, padding=1)
        self.lateral_convs = nn.ModuleList(ConvModule(width, channels, 1) for width in inputs[:-1])
        self.fpn_convs = nn.ModuleList(ConvModule(channels, channels, 3, padding=1) for _ in inputs[:-1])
        self.fpn_bottleneck = ConvModule(len(inputs) * channels, channels, 3, padding=1)
        self.conv_seg = nn.Conv2d(channels, 2, 1)

    def _transform_inputs(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return [inputs[i] for i in self.in_index]

    def cls_seg(self, features: Tensor) -> Tensor:
        return self.conv_seg(features)

    def _resize(self, x: Tensor, like: Tensor) -> Tensor:
        return functional.interpolate(x, like.shape[2:], mode="bilinear", align_corners=self.align_corners)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        inputs = self._transform_inputs(inputs)
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, inputs, strict=False)]
        x = inputs[-1]
        laterals.append(self.bottleneck(torch.cat([x, *self.psp_modules(x)], 1)))
        for i in range(len(laterals) - 1, 0, -1):
            laterals[i - 1] = laterals[i - 1] + self._resize(laterals[i], laterals[i - 1])
        outputs = [conv(x) for conv, x in zip(self.fpn_convs, laterals, strict=False)] + laterals[-1:]
        outputs = [outputs[0], *(self._resize(x, outputs[0]) for x in outputs[1:])]
        return self.cls_seg(self.fpn_bottleneck(torch.cat(outputs, 1)))

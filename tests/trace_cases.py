"""Decoders of salient object networks, small, written from their papers' figures as users write them."""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import sod_ops


class ConvBlock(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation)
        self.norm = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.norm(self.conv(x)))


def upsample_like(source: Tensor, target: Tensor) -> Tensor:
    return functional.upsample(source, size=target.shape[2:], mode="bilinear")


class ResidualUBlock(nn.Module):
    """U2-Net's RSU: a U-Net of its own whose input is added to its output."""

    def __init__(self, in_channels: int, mid_channels: int, out_channels: int) -> None:
        super().__init__()
        self.enter = ConvBlock(in_channels, out_channels)
        self.down1 = ConvBlock(out_channels, mid_channels)
        self.pool = nn.MaxPool2d(2, stride=2, ceil_mode=True)
        self.down2 = ConvBlock(mid_channels, mid_channels)
        self.bottom = ConvBlock(mid_channels, mid_channels, dilation=2)
        self.up2 = ConvBlock(2 * mid_channels, mid_channels)
        self.up1 = ConvBlock(2 * mid_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        entered = self.enter(x)
        level1 = self.down1(entered)
        level2 = self.down2(self.pool(level1))
        up2 = self.up2(torch.cat((self.bottom(level2), level2), 1))
        return self.up1(torch.cat((upsample_like(up2, level1), level1), 1)) + entered


class U2Net(nn.Module):
    """Three stages of residual U-blocks, and a saliency map from each level of the decoder and from all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder1 = ResidualUBlock(3, 6, 8)
        self.pool = nn.MaxPool2d(2, stride=2, ceil_mode=True)
        self.encoder2 = ResidualUBlock(8, 6, 8)
        self.encoder3 = ResidualUBlock(8, 6, 8)
        self.decoder2 = ResidualUBlock(16, 6, 8)
        self.decoder1 = ResidualUBlock(16, 6, 8)
        self.side1 = nn.Conv2d(8, 1, 3, padding=1)
        self.side2 = nn.Conv2d(8, 1, 3, padding=1)
        self.out = nn.Conv2d(2, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        level1 = self.encoder1(x)
        level2 = self.encoder2(self.pool(level1))
        level3 = self.encoder3(self.pool(level2))
        up2 = self.decoder2(torch.cat((upsample_like(level3, level2), level2), 1))
        up1 = self.decoder1(torch.cat((upsample_like(up2, level1), level1), 1))
        first = self.side1(up1)
        second = upsample_like(self.side2(up2), first)
        fused = self.out(torch.cat((first, second), 1))
        return torch.sigmoid(fused), torch.sigmoid(first), torch.sigmoid(second)


class BASNetDecoder(nn.Module):
    """Two levels and a refinement module, upsampled by modules, their convolutions in the open and in Sequentials."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder1 = nn.Conv2d(3, 8, 3, padding=1)
        self.pool = nn.MaxPool2d(2, 2)
        self.encoder2 = nn.Conv2d(8, 8, 3, padding=1)
        self.encoder3 = nn.Conv2d(8, 8, 3, padding=1)
        self.upscore2 = nn.Upsample(scale_factor=2, mode="bilinear")
        self.decoder2_conv = nn.Conv2d(16, 8, 3, padding=1)
        self.decoder2_norm = nn.BatchNorm2d(8)
        self.decoder2_relu = nn.ReLU(inplace=True)
        self.decoder1 = nn.Sequential(nn.Conv2d(16, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.score = nn.Conv2d(8, 1, 3, padding=1)
        self.upscore4 = nn.Upsample(scale_factor=4, mode="bilinear", align_corners=True)
        self.refine = nn.Conv2d(9, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        x = x[:, :, : x.shape[2] // 4 * 4, : x.shape[3] // 4 * 4]
        level1 = self.encoder1(x)
        level2 = self.encoder2(self.pool(level1))
        level3 = self.encoder3(self.pool(level2))
        up = self.upscore2(level3)
        decoded2 = self.decoder2_relu(self.decoder2_norm(self.decoder2_conv(torch.cat((up, level2), 1))))
        up = self.upscore2(decoded2)
        decoded1 = self.decoder1(torch.cat((up, level1), 1))
        coarse = self.score(decoded1)
        residual = self.refine(torch.cat((coarse, self.upscore4(level3)), 1))
        return torch.sigmoid(coarse), torch.sigmoid(coarse + residual)


class PaddedUp(nn.Module):
    """A decoder's step of a U-Net that pads what it upsampled by what pooling had cut off."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.convolutions = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, deep: Tensor, skip: Tensor) -> Tensor:
        up = self.upsample(deep)
        rows, columns = skip.size(2) - up.size(2), skip.size()[3] - up.size()[3]
        up = functional.pad(up, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
        y: Tensor = self.convolutions(torch.cat([skip, up], dim=1))
        return y


class PaddedUNet(nn.Module):
    """Two such steps over an encoder that halves odd sizes, too."""

    def __init__(self) -> None:
        super().__init__()
        self.level1 = ConvBlock(3, 6)
        self.level2 = ConvBlock(6, 8)
        self.level3 = ConvBlock(8, 8)
        self.pool = nn.MaxPool2d(2)
        self.up2 = PaddedUp(16, 8)
        self.up1 = PaddedUp(14, 6)
        self.score = nn.Conv2d(6, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        level1 = self.level1(x)
        level2 = self.level2(self.pool(level1))
        level3 = self.level3(self.pool(level2))
        y: Tensor = self.score(self.up1(self.up2(level3, level2), level1))
        return y


class Fusion(nn.Module):
    """A map and one of a quarter of its size, convolved together."""

    def __init__(self) -> None:
        super().__init__()
        self.deep: nn.Module = nn.Conv2d(3, 4, 3, stride=4, padding=1)
        self.fuse: nn.Module = nn.Conv2d(7, 4, 3, padding=1)
        self.other = nn.Conv2d(7, 4, 1)
        self.bias: Any = None
        self.last: Any = None
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        up = functional.interpolate(self.deep(x), x.shape[2:], mode="bilinear")
        y: Tensor = self.fuse(torch.cat((x, up), 1))
        return y


def count_fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What reaches the fused op, so that no test of equality passes by running the model's own forward."""
    calls: list[Any] = []

    def pyramid_conv2d(*args: Any, **kwargs: Any) -> Tensor:
        calls.append((args, kwargs))
        return sod_ops.pyramid_conv2d(*args, **kwargs)

    monkeypatch.setattr(sys.modules["sod_ops.accelerate.upsample_concat"], "pyramid_conv2d", pyramid_conv2d)
    return calls


def results(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """All outputs, and the gradients of the sum of their squares."""
    x = x.detach().clone().requires_grad_()
    outputs = model(x)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    leaves = {"x": x, **dict(model.named_parameters())}
    loss = sum(y.square().sum() for y in outputs)
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    found = {f"output {i}": y.detach() for i, y in enumerate(outputs)}
    return {**found, **dict(zip(leaves, gradients, strict=True))}

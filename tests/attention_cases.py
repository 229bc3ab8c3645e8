"""Attention blocks as they stand in users' projects: the children, attributes and order of steps of the public forms."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# CBAM as its authors have it: a gate of channels from pools by name, and a gate of pixels behind a block with a norm.


class Flatten(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), -1)


class BasicConv(nn.Module):
    def __init__(self, kernel_size: int, dilation: int = 1) -> None:
        super().__init__()
        padding = dilation * (kernel_size - 1) // 2
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=padding, dilation=dilation, bias=False)
        self.bn: nn.Module | None = nn.BatchNorm2d(1, momentum=0.01)
        self.relu: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.bn is not None:
            x = self.bn(x)
        if self.relu is not None:
            x = self.relu(x)
        return x


class ChannelGate(nn.Module):
    def __init__(self, gate_channels: int, reduction_ratio: int = 4, pool_types: Any = ("avg", "max")) -> None:
        super().__init__()
        reduced = gate_channels // reduction_ratio
        self.mlp = nn.Sequential(
            Flatten(), nn.Linear(gate_channels, reduced), nn.ReLU(), nn.Linear(reduced, gate_channels)
        )
        self.pool_types = pool_types

    def forward(self, x: Tensor) -> Tensor:
        attention = None
        for pool_type in self.pool_types:
            window = (x.size(2), x.size(3))
            if pool_type == "avg":
                raw = self.mlp(functional.avg_pool2d(x, window, stride=window))
            elif pool_type == "max":
                raw = self.mlp(functional.max_pool2d(x, window, stride=window))
            elif pool_type == "lp":
                raw = self.mlp(functional.lp_pool2d(x, 2, window, stride=window))
            else:
                raw = self.mlp(x.flatten(2).logsumexp(2, keepdim=True))
            attention = raw if attention is None else attention + raw
        scale = functional.sigmoid(attention).unsqueeze(2).unsqueeze(3).expand_as(x)  # type: ignore[arg-type]
        return x * scale


class ChannelPool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)), dim=1)


class SpatialGate(nn.Module):
    def __init__(self, dilation: int = 1) -> None:
        super().__init__()
        self.compress = ChannelPool()
        self.spatial = BasicConv(7, dilation)

    def forward(self, x: Tensor) -> Tensor:
        x_compress = self.compress(x)
        scale = torch.sigmoid(self.spatial(x_compress))
        return x * scale


class CBAM(nn.Module):
    def __init__(self, gate_channels: int, pool_types: Any = ("avg", "max"), dilation: int = 1) -> None:
        super().__init__()
        self.ChannelGate = ChannelGate(gate_channels, pool_types=pool_types)
        self.no_spatial = False
        self.SpatialGate = SpatialGate(dilation)

    def forward(self, x: Tensor) -> Tensor:
        x = self.ChannelGate(x)
        if not self.no_spatial:
            x = self.SpatialGate(x)
        return x


# The other form: modules that return the gates, and the block around them that multiplies.


class ChannelAttention(nn.Module):
    def __init__(self, in_planes: int, ratio: int = 4) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.max_pool = nn.AdaptiveMaxPool2d(1)
        self.fc1 = nn.Conv2d(in_planes, in_planes // ratio, 1, bias=False)
        self.relu1 = nn.ReLU()
        self.fc2 = nn.Conv2d(in_planes // ratio, in_planes, 1, bias=False)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        avg_out = self.fc2(self.relu1(self.fc1(self.avg_pool(x))))
        max_out = self.fc2(self.relu1(self.fc1(self.max_pool(x))))
        gates: Tensor = self.sigmoid(avg_out + max_out)
        return gates


class SequentialChannelAttention(nn.Module):
    def __init__(self, in_planes: int, ratio: int = 4) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.max_pool = nn.AdaptiveMaxPool2d(1)
        self.fc = nn.Sequential(
            nn.Conv2d(in_planes, in_planes // ratio, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(in_planes // ratio, in_planes, 1, bias=False),
        )
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        gates: Tensor = self.sigmoid(self.fc(self.max_pool(x)) + self.fc(self.avg_pool(x)))
        return gates


class SpatialAttention(nn.Module):
    def __init__(self, kernel_size: int = 7) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        avg_out = torch.mean(x, dim=1, keepdim=True)
        max_out, _ = torch.max(x, dim=1, keepdim=True)
        x = torch.cat([avg_out, max_out], dim=1)
        x = self.conv1(x)
        gates: Tensor = self.sigmoid(x)
        return gates


class AttentiveBasicBlock(nn.Module):
    """A residual block with both, as ResNets with CBAM have it."""

    def __init__(self, planes: int, channel: Any = ChannelAttention) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.ca = channel(planes)
        self.sa = SpatialAttention()

    def forward(self, x: Tensor) -> Tensor:
        residual = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.ca(out) * out
        out = self.sa(out) * out
        out += residual
        return self.relu(out)


# scSE: in one module, and of two modules that each scale.


class SCSEModule(nn.Module):
    def __init__(self, in_channels: int, reduction: int = 4) -> None:
        super().__init__()
        self.cSE = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(in_channels, in_channels // reduction, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(in_channels // reduction, in_channels, 1),
            nn.Sigmoid(),
        )
        self.sSE = nn.Sequential(nn.Conv2d(in_channels, 1, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.cSE(x) + x * self.sSE(x)


class SpatialSE(nn.Module):
    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.Conv1x1 = nn.Conv2d(in_channels, 1, kernel_size=1, bias=False)
        self.norm = nn.Sigmoid()

    def forward(self, U: Tensor) -> Tensor:  # noqa: N803
        q = self.Conv1x1(U)
        q = self.norm(q)
        return U * q


class ChannelSE(nn.Module):
    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.Conv_Squeeze = nn.Conv2d(in_channels, in_channels // 2, kernel_size=1, bias=False)
        self.Conv_Excitation = nn.Conv2d(in_channels // 2, in_channels, kernel_size=1, bias=False)
        self.norm = nn.Sigmoid()

    def forward(self, U: Tensor) -> Tensor:  # noqa: N803
        z = self.avgpool(U)
        z = self.Conv_Squeeze(z)
        z = self.Conv_Excitation(z)
        z = self.norm(z)
        return U * z.expand_as(U)


class SCSEBlock(nn.Module):
    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.cSE = ChannelSE(in_channels)
        self.sSE = SpatialSE(in_channels)

    def forward(self, U: Tensor) -> Tensor:  # noqa: N803
        return self.cSE(U) + self.sSE(U)


class ChannelSELayer(nn.Module):
    def __init__(self, num_channels: int, reduction_ratio: int = 2) -> None:
        super().__init__()
        self.fc1 = nn.Linear(num_channels, num_channels // reduction_ratio)
        self.fc2 = nn.Linear(num_channels // reduction_ratio, num_channels)
        self.relu = nn.ReLU()
        self.sigmoid = nn.Sigmoid()

    def forward(self, input_tensor: Tensor) -> Tensor:
        batch_size, num_channels, _h, _w = input_tensor.size()
        squeezed = input_tensor.view(batch_size, num_channels, -1).mean(dim=2)
        fc_out_1 = self.relu(self.fc1(squeezed))
        fc_out_2 = self.sigmoid(self.fc2(fc_out_1))
        a, b = squeezed.size()
        return torch.mul(input_tensor, fc_out_2.view(a, b, 1, 1))


class SpatialSELayer(nn.Module):
    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(num_channels, 1, 1)
        self.sigmoid = nn.Sigmoid()

    def forward(self, input_tensor: Tensor, weights: Tensor | None = None) -> Tensor:
        batch_size, _channel, a, b = input_tensor.size()
        if weights is not None:
            out = functional.conv2d(input_tensor, weights.mean(0).view(1, -1, 1, 1))
        else:
            out = self.conv(input_tensor)
        gates = self.sigmoid(out).view(batch_size, 1, a, b)
        return torch.mul(input_tensor, gates)


class ChannelSpatialSELayer(nn.Module):
    """The larger of the two, where the others add them."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.cSE = ChannelSELayer(num_channels)
        self.sSE = SpatialSELayer(num_channels)

    def forward(self, input_tensor: Tensor) -> Tensor:
        return torch.max(self.cSE(input_tensor), self.sSE(input_tensor))


# TRACER's modules.


class BasicConv2d(nn.Module):
    """1x1 convolution, norm, SELU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.selu = nn.SELU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.selu(self.bn(self.conv(x)))
        return y


class Head(nn.Module):
    """What ObjectAttention and Frequency_Edge_Module have in common, in one convolution a branch."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.DWSConv = BasicConv2d(in_channels, channels)
        for i in range(1, 5):
            self.add_module(f"DWConv{i}", BasicConv2d(channels, channels // 4))

    def branches(self, x: Tensor) -> Tensor:
        x = self.DWSConv(x)
        skip = x.clone()
        return torch.cat([self.DWConv1(x), self.DWConv2(x), self.DWConv3(x), self.DWConv4(x)], dim=1) + skip


class ObjectAttention(Head):
    def __init__(self, channel: int, denoise: float = 0.93) -> None:
        super().__init__(channel, channel // 2)
        self.channel = channel
        self.conv1 = BasicConv2d(channel // 2, 1)
        self.denoise = denoise

    def forward(self, decoder_map: Tensor, encoder_map: Tensor) -> Tensor:
        mask_bg = -1 * torch.sigmoid(decoder_map) + 1
        mask_ob = torch.sigmoid(decoder_map)
        x = mask_ob.expand(-1, self.channel, -1, -1).mul(encoder_map)
        edge = mask_bg.clone()
        edge[edge > self.denoise] = 0
        x = x + (edge * encoder_map)
        x = torch.relu(self.conv1(self.branches(x)))
        return x + decoder_map


class UnionAttentionModule(nn.Module):
    def __init__(self, n_channels: int, only_channel_tracing: bool = False, confidence_ratio: float = 0.1) -> None:
        super().__init__()
        self.GAP = nn.AdaptiveAvgPool2d(1)
        self.confidence_ratio = confidence_ratio
        self.bn = nn.BatchNorm2d(n_channels)
        self.norm = nn.Sequential(nn.BatchNorm2d(n_channels), nn.Dropout3d(confidence_ratio))
        for name in ("channel_q", "channel_k", "channel_v", "fc"):
            self.add_module(name, nn.Conv2d(n_channels, n_channels, 1, bias=False))
        if not only_channel_tracing:
            for name in ("spatial_q", "spatial_k", "spatial_v"):
                self.add_module(name, nn.Conv2d(n_channels, 1, 1, bias=False))
        self.sigmoid = nn.Sigmoid()

    def masking(self, x: Tensor, mask: Tensor) -> Tensor:
        mask = mask.squeeze(3).squeeze(2)
        threshold = torch.quantile(mask, self.confidence_ratio, dim=-1, keepdim=True)
        mask[mask <= threshold] = 0.0
        mask = mask.unsqueeze(2).unsqueeze(3)
        mask = mask.expand(-1, x.shape[1], x.shape[2], x.shape[3]).contiguous()
        return x * mask

    def Channel_Tracer(self, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: N802
        avg_pool = self.GAP(x)
        x_norm = self.norm(avg_pool)
        q = self.channel_q(x_norm).squeeze(-1)
        k = self.channel_k(x_norm).squeeze(-1)
        v = self.channel_v(x_norm).squeeze(-1)
        alpha = functional.softmax(torch.matmul(q, k.transpose(1, 2)), dim=-1)
        att = torch.matmul(alpha, v).unsqueeze(-1)
        att = self.sigmoid(self.fc(att))
        output = (x * att) + x
        alpha_mask = att.clone()
        return output, alpha_mask

    def forward(self, x: Tensor) -> Tensor:
        X_c, alpha_mask = self.Channel_Tracer(x)
        X_c = self.bn(X_c)
        x_drop = self.masking(X_c, alpha_mask)
        q = self.spatial_q(x_drop).squeeze(1)
        k = self.spatial_k(x_drop).squeeze(1)
        v = self.spatial_v(x_drop).squeeze(1)
        alpha = functional.softmax(torch.matmul(q, k.transpose(1, 2)), dim=-1)
        return torch.matmul(alpha, v).unsqueeze(1) + v.unsqueeze(1)


class Frequency_Edge_Module(Head):  # noqa: N801
    def __init__(self, radius: float, channel: int) -> None:
        super().__init__(channel, channel)
        self.radius = radius
        self.UAM = UnionAttentionModule(channel, only_channel_tracing=True)
        self.conv = BasicConv2d(channel, 1)

    def distance(self, i: int, j: int, imageSize: tuple[int, int], r: float) -> float:  # noqa: N803
        d = ((i - imageSize[0] / 2) ** 2 + (j - imageSize[0] / 2) ** 2) ** 0.5
        return 1.0 if d < r else 0.0

    def mask_radial(self, img: Tensor, r: float) -> Tensor:
        _, _, rows, cols = img.shape
        mask = torch.zeros((rows, cols), dtype=torch.float32)
        for i in range(rows):
            for j in range(cols):
                mask[i, j] = self.distance(i, j, imageSize=(rows, cols), r=r)
        return mask

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x_fft = torch.fft.fft2(x, dim=(-2, -1))
        x_fft = torch.fft.fftshift(x_fft)
        mask = self.mask_radial(img=x, r=self.radius).to(x.device)
        high_frequency = x_fft * (1 - mask)
        x_fft = torch.fft.ifftshift(high_frequency)
        x_fft = torch.fft.ifft2(x_fft, dim=(-2, -1))
        x_H = torch.abs(x_fft)
        x_H, _ = self.UAM.Channel_Tracer(x_H)
        edge = torch.relu(self.conv(self.branches(x_H)))
        x = x + edge
        return x, edge

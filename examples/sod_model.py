"""A salient object network: a timm encoder, a pyramid over its deepest level, attention, a decoder with a head a level."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sod_ops
from sod_ops._peers import import_peer

timm: Any = import_peer("timm")  # import timm, also where torchvision was built for another torch


class SaliencyNet(nn.Module):
    """Logits of one salient mask, from several levels.

    The encoder's last levels, at most four (strides 4, 8, 16 and 32 of a usual one), are brought to ``width`` channels: the
    deepest by a pyramid pooling head, the others by 1x1 convolutions. Which pixels matter is asked of the low levels, where
    there are many, and which channels of the high ones (PFAN). The decoder goes from the deepest level to the finest: what
    it has so far is upsampled and concatenated with the next level and convolved 3x3, in one op.

    Args:
        encoder: the name of a timm model with features at several levels, such as ``"mobilenetv3_small_100"``.
        width: channels of the decoder.
        pretrained: whether timm downloads the encoder's weights for ImageNet.

    Raises:
        ValueError: the encoder's levels don't differ in their strides.

    Input and output:
        Normalised images ``[B, 3, H, W]``, H and W multiples of :attr:`stride`. In training a list of logits
        ``[B, 1, H, W]``, one a level, the finest first; in evaluation the finest level's.

    Source:
        Zhao, Wu: Pyramid Feature Attention Network for Saliency Detection, CVPR 2019; Zhao et al.: Pyramid Scene Parsing
        Network, CVPR 2017; heads at all levels as in Wei, Wang, Huang: F3Net, AAAI 2020.
    """

    def __init__(self, encoder: str, width: int = 64, *, pretrained: bool = False) -> None:
        super().__init__()
        self.encoder = timm.create_model(encoder, features_only=True, pretrained=pretrained)
        channels = self.encoder.feature_info.channels()
        self.levels = min(4, len(channels))
        strides = self.encoder.feature_info.reduction()
        if self.levels < 2 or len(set(strides)) < len(strides):
            raise ValueError(f"their strides are {', '.join(map(str, strides))}")
        self.stride: int = max(strides)
        *shallow, deepest = channels[-self.levels :]
        self.pyramid = sod_ops.nn.PyramidPoolingHead(deepest, width)
        self.lateral = nn.ModuleList(_block(nn.Conv2d(c, width, 1, bias=False), width) for c in shallow)
        low = len(shallow) - len(shallow) // 2
        self.attention = nn.ModuleList(
            sod_ops.nn.SpatialAttention(width) if i < low else sod_ops.nn.ChannelAttention(width)
            for i in range(len(shallow))
        )
        self.deepest_attention = sod_ops.nn.ChannelAttention(width)
        self.decoder = nn.ModuleList(sod_ops.nn.UpsampleConcatConv2d(2 * width, width, bias=False) for _ in shallow)
        self.decoder_norm = nn.ModuleList(nn.Sequential(nn.BatchNorm2d(width), nn.ReLU()) for _ in shallow)
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 3, padding=1) for _ in range(self.levels))

    def forward(self, images: Tensor) -> Any:
        features: Sequence[Tensor] = self.encoder(images)[-self.levels :]
        y = self.deepest_attention(self.pyramid(features[-1]))
        decoded = [y]
        for i in reversed(range(self.levels - 1)):
            level = self.attention[i](self.lateral[i](features[i]))
            y = self.decoder_norm[i](self.decoder[i](level, [y]))
            decoded.insert(0, y)
        if not self.training:
            return self._logits(0, decoded[0], images)
        return [self._logits(i, y, images) for i, y in enumerate(decoded)]

    def _logits(self, level: int, decoded: Tensor, images: Tensor) -> Tensor:
        logits = self.heads[level](decoded)
        return F.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=False)


def head_weights(heads: int) -> list[float]:
    """Of the levels' losses, the finest first: each half of the one before, as in F3Net."""
    return [0.5**level for level in range(heads)]


def parameter_groups(model: nn.Module, rate: float, encoder_scale: float, decay: float) -> list[dict[str, Any]]:
    """The optimiser's groups: the encoder and the rest, each with and without weight decay (not on norms and biases)."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault((name.startswith("encoder."), parameter.dim() > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": rate * (encoder_scale if encoder else 1),
            "weight_decay": decay if decayed else 0.0,
        }
        for (encoder, decayed), parameters in groups.items()
    ]


def _block(convolution: nn.Module, width: int) -> nn.Sequential:
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU())


def build(
    encoder: str, width: int, *, pretrained: bool, seed: int, dtype: torch.dtype, device: torch.device
) -> SaliencyNet:
    """The network in channels_last, with the same first weights for the same seed, whatever PyTorch has drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = SaliencyNet(encoder, width, pretrained=pretrained)
    net.to(device, dtype)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

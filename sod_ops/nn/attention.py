"""Attention blocks that scale a map: of channels, of pixels, of both."""

from typing import Any

import torch
from torch import Tensor, nn

from sod_ops.nn.squeeze_excite import SqueezeExcitation
from sod_ops.ops import _checks
from sod_ops.ops.channel_pool import channel_pool_and_pass_on
from sod_ops.ops.gate import gate
from sod_ops.ops.global_pool import global_pool_and_pass_on
from sod_ops.ops.scse import scse
from sod_ops.ops.spatial_attention import for_convolution

Device = torch.device | str | None


class CBAM(nn.Module):
    """Convolutional block attention: channels scaled by their means and maxima, then pixels by theirs.

    ``y = x sigmoid(mlp(mean x) + mlp(max x))`` and ``z = y sigmoid(norm(convolution of [max, mean] of y over channels))``,
    with :func:`sod_ops.global_pool`, :func:`sod_ops.channel_pool` and :func:`sod_ops.gate`. The input channels of
    ``spatial.weight`` are the maximum and the mean, as in the published code, so that its weights load.

    The state_dict holds ``reduce`` and ``expand``, 1x1 convolutions C -> R -> C with biases and a ReLU between them,
    ``spatial``, a convolution 2 -> 1 without bias, and ``norm``, a BatchNorm2d of one channel.

    Args:
        channels: C, the channels of input and output.
        reduction: R is C // reduction, at least 1.
        kernel_size: of the spatial convolution; odd.
        device: where the parameters are made.
        dtype: of the parameters.

    Input and output:
        ``[N, C, H, W]``; the output has the input's dtype and memory format.

    Raises:
        TypeError: an argument is not an integer.
        ValueError: an argument is below 1, or ``kernel_size`` even.

    Source:
        Woo, Park, Lee, Kweon: CBAM: Convolutional Block Attention Module, ECCV 2018.
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        kernel_size: int = 7,
        *,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        reduced = _reduced("CBAM", channels, reduction)
        _checks.check_window("CBAM", "kernel_size", kernel_size)
        self.reduce = nn.Conv2d(channels, reduced, 1, device=device, dtype=dtype)
        self.expand = nn.Conv2d(reduced, channels, 1, device=device, dtype=dtype)
        self.spatial = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False, device=device, dtype=dtype)
        self.norm = nn.BatchNorm2d(1, momentum=0.01, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        x, mean, maximum = global_pool_and_pass_on(x)
        # Both through the convolutions at once, as a map of two pixels.
        hidden = torch.relu(self.reduce(torch.cat([mean, maximum], 2)))
        y, pooled = channel_pool_and_pass_on(gate(x, self.expand(hidden).sum(2, keepdim=True)))
        return gate(y, self.norm(self.spatial(for_convolution(pooled.flip(1)))))


class SCSE(nn.Module):
    """Concurrent spatial and channel squeeze and excitation: :func:`sod_ops.scse` on the weights of three 1x1 convolutions.

    The state_dict is that of segmentation_models_pytorch's ``SCSEModule``: ``cSE.1``, ``cSE.3`` and ``sSE.0``, with biases.
    The convolutions are never called: hooks on them don't run.

    Args:
        channels: C, the channels of input and output.
        reduction: the channel gate squeezes to C // reduction channels, at least 1.
        device: where the parameters are made.
        dtype: of the parameters.

    Input and output:
        ``[N, C, H, W]``; the output has the input's dtype and memory format.

    Raises:
        TypeError: ``channels`` or ``reduction`` is not an integer.
        ValueError: one of them is below 1.

    Source:
        Roy, Navab, Wachinger: Concurrent Spatial and Channel Squeeze & Excitation in Fully Convolutional Networks, MICCAI
        2018.
    """

    def __init__(
        self, channels: int, reduction: int = 16, *, device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        reduced = _reduced("SCSE", channels, reduction)
        self.cSE = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, reduced, 1, device=device, dtype=dtype),
            nn.ReLU(inplace=True),
            nn.Conv2d(reduced, channels, 1, device=device, dtype=dtype),
            nn.Sigmoid(),
        )
        self.sSE = nn.Sequential(nn.Conv2d(channels, 1, 1, device=device, dtype=dtype), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        reduce: Any = self.cSE[1]
        expand: Any = self.cSE[3]
        spatial: Any = self.sSE[0]
        return scse(x, reduce.weight, reduce.bias, expand.weight, expand.bias, spatial.weight, spatial.bias)


class ChannelAttention(SqueezeExcitation):
    """PFAN's channel attention, for high levels: squeeze-and-excitation to a quarter of the channels.

    :class:`sod_ops.nn.SqueezeExcitation` with ReLU, sigmoid and ``R = C // reduction``; its state_dict, input and output.

    Args:
        channels: C, the channels of input and output.
        reduction: R is C // reduction, at least 1.
        device: where the parameters are made.
        dtype: of the parameters.

    Raises:
        TypeError: ``channels`` or ``reduction`` is not an integer.
        ValueError: one of them is below 1.

    Source:
        Zhao, Wu: Pyramid Feature Attention Network for Saliency Detection, CVPR 2019, section 3.2.
    """

    def __init__(
        self, channels: int, reduction: int = 4, *, device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        reduced = _reduced("ChannelAttention", channels, reduction)
        super().__init__(channels, reduced, device=device, dtype=dtype)


class SpatialAttention(nn.Module):
    """PFAN's spatial attention, for low levels: pixels scaled by a gate from two pairs of long and narrow convolutions.

    ``y = x sigmoid(conv9x1(conv1x9(x)) + conv1x9(conv9x1(x)))``, every convolution followed by batch norm and ReLU, the
    first of each pair to half of the channels, the second to one. The scaling is :func:`sod_ops.gate`. (CBAM's spatial
    attention is :func:`sod_ops.spatial_attention`.)

    The state_dict holds the Sequentials ``rows_first`` (1x9, then 9x1) and ``columns_first`` (9x1, then 1x9): convolutions
    ``0`` and ``3``, norms ``1`` and ``4``.

    Args:
        channels: C, the channels of input and output.
        kernel_size: the length of the convolutions; odd.
        device: where the parameters are made.
        dtype: of the parameters.

    Input and output:
        ``[N, C, H, W]``; the output has the input's dtype and memory format.

    Raises:
        TypeError: an argument is not an integer.
        ValueError: ``channels`` is below 1, or ``kernel_size`` even.

    Source:
        Zhao, Wu: Pyramid Feature Attention Network for Saliency Detection, CVPR 2019, section 3.3.
    """

    def __init__(
        self, channels: int, kernel_size: int = 9, *, device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        _checks.check_count("SpatialAttention", "channels", channels)
        _checks.check_window("SpatialAttention", "kernel_size", kernel_size)

        def pair(first: tuple[int, int], second: tuple[int, int]) -> nn.Sequential:
            layers: list[nn.Module] = []
            inputs, outputs = channels, max(1, channels // 2)
            for size in (first, second):
                padding = (size[0] // 2, size[1] // 2)
                layers += [
                    nn.Conv2d(inputs, outputs, size, padding=padding, device=device, dtype=dtype),
                    nn.BatchNorm2d(outputs, device=device, dtype=dtype),
                    nn.ReLU(inplace=True),
                ]
                inputs, outputs = outputs, 1
            return nn.Sequential(*layers)

        row, column = (1, kernel_size), (kernel_size, 1)
        self.rows_first = pair(row, column)
        self.columns_first = pair(column, row)

    def forward(self, x: Tensor) -> Tensor:
        return gate(x, self.rows_first(x) + self.columns_first(x))


def _reduced(module: str, channels: int, reduction: int) -> int:
    """To how many channels a module squeezes; raises for bad arguments."""
    for argument, value in (("channels", channels), ("reduction", reduction)):
        _checks.check_count(module, argument, value)
    return max(1, channels // reduction)

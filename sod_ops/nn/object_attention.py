"""TRACER's object attention module."""

import torch
from torch import Tensor

from sod_ops.nn._separable import Receptive
from sod_ops.ops import _checks
from sod_ops.ops.object_attention import check_threshold, object_attention


class ObjectAttention(Receptive):
    """TRACER's object attention: refines a decoder's map by an encoder's features where it is not sure background.

    :func:`sod_ops.object_attention`, then ``DWSConv`` to half the channels, four depthwise convolutions of other dilations
    side by side (``DWConv1`` to ``DWConv4``), and ``conv1`` to one channel, whose result is added to the decoder's map.
    The state_dict is that of ``ObjectAttention`` in the authors' code.

    Args:
        channel: C, the channels of the encoder's map; a multiple of 8.
        kernel_size: of ``DWSConv``; odd.
        threshold: above it the reverse of the decoder's sigmoid is background; the authors' ``denoise``.
        device: of the parameters.
        dtype: of the parameters.

    Input and output:
        The decoder's logits ``[N, 1, H, W]`` and the encoder's map ``[N, C, H, W]``; logits ``[N, 1, H, W]``.

    Raises:
        TypeError: an argument is not of the type named above.
        ValueError: ``channel`` is no multiple of 8, ``kernel_size`` is even, or ``threshold`` is below 0 or above 1; in a
            call, the maps don't fit.

    Source:
        Lee, Shin, Han: TRACER: Extreme Attention Guided Salient Object Tracing Network, AAAI 2022.
    """

    def __init__(
        self,
        channel: int,
        kernel_size: int = 3,
        *,
        threshold: float = 0.93,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        name = type(self).__name__
        _checks.check_count(name, "channel", channel)
        if channel % 8:
            _checks.bad_value(name, "channel", "a multiple of 8", channel)
        _checks.check_window(name, "kernel_size", kernel_size)
        check_threshold(name, threshold)
        super().__init__(channel, channel // 2, kernel_size, "conv1", device, dtype)
        self.channel = channel
        self.threshold = threshold

    def forward(self, decoder_map: Tensor, encoder_map: Tensor) -> Tensor:
        x = object_attention(decoder_map, encoder_map, self.threshold)
        if x.shape[1] != self.channel:
            expected = f"of shape [N, {self.channel}, H, W]"
            _checks.bad_value(type(self).__name__, "encoder_map", expected, _checks.shape_of(encoder_map))
        return self.receive(x) + decoder_map

    def extra_repr(self) -> str:
        return f"{self.channel}, threshold={self.threshold}"

"""TRACER's frequency edge module: edges from the high frequencies of a map."""

import torch
from torch import Tensor

from sod_ops.nn._separable import Receptive
from sod_ops.nn.union_attention import UnionAttention
from sod_ops.ops import _checks
from sod_ops.ops._tracer import high_frequencies


class FrequencyEdge(Receptive):
    """TRACER's frequency edge: a map's high frequencies, traced by channel, make an edge map that is added to it.

    |inverse FFT of (FFT of x, without frequencies within ``radius`` of zero)|, in float32 (float64 for float64); then
    :meth:`UnionAttention.Channel_Tracer`, and the convolutions of :class:`ObjectAttention`. The mask is made once for each
    size and device; it is not in the state_dict, which is that of ``Frequency_Edge_Module`` in the authors' code.

    The authors shift batch and channels along with the spatial axes, and back: the mask doesn't depend on them, so that
    nothing comes of it. Here the mask is shifted, and the spectrum is not. They measure the distance from (H / 2, H / 2) in
    the shifted spectrum, which is zero's place where H is even and W is H; elsewhere they filter off-centre.

    Args:
        radius: in frequencies; the authors' ``frequency_radius``.
        channel: C; a multiple of 4.
        as_published: measures distances as the authors do. Otherwise from the zero frequency, whatever the size: the
            filtered map is then real, and half of its spectrum is enough.
        gamma: of :class:`UnionAttention`.
        device: of the parameters.
        dtype: of the parameters.

    Input and output:
        ``[N, C, H, W]``; the map with its edges added, ``[N, C, H, W]``, and the edges, ``[N, 1, H, W]``.

    Raises:
        TypeError: an argument is not of the type named above.
        ValueError: ``radius`` is not finite and above 0, or ``channel`` is no multiple of 4; in a call, the input's shape
            doesn't fit.

    Source:
        Lee, Shin, Han: TRACER: Extreme Attention Guided Salient Object Tracing Network, AAAI 2022.
    """

    def __init__(
        self,
        radius: float,
        channel: int,
        *,
        as_published: bool = False,
        gamma: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        name = type(self).__name__
        _checks.check_positive(name, "radius", radius)
        _checks.check_count(name, "channel", channel)
        if channel % 4:
            _checks.bad_value(name, "channel", "a multiple of 4", channel)
        _checks.check_bool(name, "as_published", as_published)
        super().__init__(channel, channel, 3, "conv", device, dtype)
        self.UAM = UnionAttention(channel, only_channel_tracing=True, gamma=gamma, device=device, dtype=dtype)
        self.radius = radius
        self.as_published = as_published

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        _checks.check_map(type(self).__name__, "x", x)
        traced, _ = self.UAM.Channel_Tracer(self.high_frequencies(x))
        edge = self.receive(traced)
        return x + edge, edge

    def high_frequencies(self, x: Tensor) -> Tensor:
        """The magnitude of what lies outside ``radius``, of the shape and dtype of ``x``."""
        height, width = x.shape[2:]
        centre = (height / 2, height / 2) if self.as_published else (height // 2, width // 2)
        return high_frequencies(x, self.radius, centre)

    def extra_repr(self) -> str:
        return f"radius={self.radius}, as_published={self.as_published}"

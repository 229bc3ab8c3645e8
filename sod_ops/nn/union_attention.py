"""TRACER's union attention: of channels, and then of the rows of one map."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import BatchNorm2d, Conv2d, Dropout3d, Module, Sequential, functional

from sod_ops.ops import _checks
from sod_ops.ops._tracer import attend_to_channels, attend_to_rows


class UnionAttention(Module):
    """TRACER's union attention: channels that matter, and then rows that matter of a one-channel map of these.

    1. Channel tracer: m = the mean of x over H and W, normalised; a = sigmoid(fc softmax(q k^T) v) for q, k, v that are
       products of m with ``channel_q``, ``channel_k``, ``channel_v``; z = x a + x.
    2. z is batch-normalised. In every sample, channels whose a is at most the gamma-quantile of them all are left out, the
       others weighted by a; the comparison passes no gradient.
    3. q, k, v = ``spatial_q``, ``spatial_k``, ``spatial_v`` of that, one channel each; y = softmax(q k^T) v + v, over rows.

    The state_dict is that of ``UnionAttentionModule`` in the authors' code. Steps 2 and 3 are one product: the weighted map
    is never written. The convolutions are computed from their weights and never called: hooks on them don't run. As
    published, the dropout of m in training leaves out whole samples: PyTorch's ``Dropout3d`` takes ``[N, C, 1, 1]`` for one
    sample without a batch.

    Args:
        n_channels: C.
        only_channel_tracing: without ``spatial_*``: for :meth:`Channel_Tracer` alone, as :class:`FrequencyEdge` has it.
        gamma: the quantile, and the dropout's probability; the authors' ``confidence_ratio``.
        device: of the parameters.
        dtype: of the parameters.

    Input and output:
        ``[N, C, H, W]``; ``[N, 1, H, W]``.

    Raises:
        TypeError: an argument is not of the type named above.
        ValueError: ``n_channels`` is below 1 or ``gamma`` not within 0 and 1; in a call, the input's shape doesn't fit.
        RuntimeError: a call of a module that only traces channels.

    Source:
        Lee, Shin, Han: TRACER: Extreme Attention Guided Salient Object Tracing Network, AAAI 2022.
    """

    def __init__(
        self,
        n_channels: int,
        only_channel_tracing: bool = False,
        *,
        gamma: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        _checks.check_count(name, "n_channels", n_channels)
        _checks.check_bool(name, "only_channel_tracing", only_channel_tracing)
        if not 0 <= _checks.check_number(name, "gamma", gamma) <= 1:
            _checks.bad_value(name, "gamma", "from 0 to 1", gamma)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.confidence_ratio = gamma
        self.bn = BatchNorm2d(n_channels, **factory)
        self.norm = Sequential(BatchNorm2d(n_channels, **factory), Dropout3d(gamma))
        for child in ("channel_q", "channel_k", "channel_v", "fc"):
            self.add_module(child, Conv2d(n_channels, n_channels, 1, bias=False, **factory))
        self.traces_channels_only = only_channel_tracing
        if not only_channel_tracing:
            for child in ("spatial_q", "spatial_k", "spatial_v"):
                self.add_module(child, Conv2d(n_channels, 1, 1, bias=False, **factory))

    def Channel_Tracer(self, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: N802 (the authors' name)
        """z ``[N, C, H, W]`` and a ``[N, C, 1, 1]``."""
        self._check(x)
        pooled = self.norm(x.mean(dim=(2, 3), keepdim=True)).flatten(1)
        q, k, v = (functional.linear(pooled, self._weight(f"channel_{name}")) for name in "qkv")
        attention = functional.linear(attend_to_channels(q, k, v), self._weight("fc"))
        attention = torch.sigmoid(attention)[:, :, None, None]
        return x * (attention.to(x.dtype) + 1), attention

    def forward(self, x: Tensor) -> Tensor:
        if self.traces_channels_only:
            raise RuntimeError("UnionAttention: made with only_channel_tracing=True, it has Channel_Tracer alone")
        traced, attention = self.Channel_Tracer(x)
        weights = (self._weight("spatial_q"), self._weight("spatial_k"), self._weight("spatial_v"))
        return attend_to_rows(self.bn(traced), attention.flatten(1), self.confidence_ratio, weights)

    def _weight(self, child: str) -> Tensor:
        weight: Tensor = getattr(self, child).weight
        return weight.flatten(1)

    def _check(self, x: Tensor) -> None:
        name = type(self).__name__
        _checks.check_map(name, "x", x)
        channels = self.bn.num_features
        if x.shape[1] != channels:
            _checks.bad_value(name, "x", f"of shape [N, {channels}, H, W]", _checks.shape_of(x))

    def extra_repr(self) -> str:
        return (
            f"{self.bn.num_features}, only_channel_tracing={self.traces_channels_only}, gamma={self.confidence_ratio}"
        )

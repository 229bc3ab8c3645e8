"""The squeeze-and-excitation block."""

import torch
from torch import Tensor

from sod_ops.ops import _checks
from sod_ops.ops.squeeze_excite import squeeze_excite
from sod_ops.reference.squeeze_excite import ACTIVATIONS, GATES


class SqueezeExcitation(torch.nn.Module):
    """Squeeze-and-excitation: every channel scaled by a gate computed from all channels' means.

    :func:`sod_ops.squeeze_excite` on the weights of two 1x1 convolutions, ``reduce`` and ``expand``, initialised as
    torch.nn.Conv2d initialises them. The convolutions are never called: hooks on them don't run.

    The state_dict holds ``reduce.weight`` ``[R, C, 1, 1]``, ``reduce.bias`` ``[R]``, ``expand.weight``
    ``[C, R, 1, 1]`` and ``expand.bias`` ``[C]``, without the biases where ``bias`` is False.

    Args:
        channels: C, the channels of input and output.
        reduced_channels: R, the channels between the two convolutions.
        activation: what follows ``reduce``: a name that :func:`sod_ops.squeeze_excite` lists.
        gate: what follows ``expand``, likewise.
        bias: whether the convolutions have biases.
        device: where the parameters are made.
        dtype: of the parameters.

    Input and output:
        ``[N, C, H, W]``, float32, float64, bfloat16 or float16; the output has the input's dtype and memory format.

    Raises:
        TypeError: ``channels`` or ``reduced_channels`` is not an integer, ``activation`` or ``gate`` not a string.
        ValueError: a number of channels is below 1, ``activation`` or ``gate`` is not known.

    Source:
        Hu, Shen, Sun: Squeeze-and-Excitation Networks, CVPR 2018.
    """

    def __init__(
        self,
        channels: int,
        reduced_channels: int,
        *,
        activation: str = "relu",
        gate: str = "sigmoid",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for argument, value in (("channels", channels), ("reduced_channels", reduced_channels)):
            _checks.check_count("SqueezeExcitation", argument, value)
        _checks.check_choice("SqueezeExcitation", "activation", activation, ACTIVATIONS)
        _checks.check_choice("SqueezeExcitation", "gate", gate, GATES)
        self.activation = activation
        self.gate = gate
        self.reduce = torch.nn.Conv2d(channels, reduced_channels, 1, bias=bias, device=device, dtype=dtype)
        self.expand = torch.nn.Conv2d(reduced_channels, channels, 1, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return squeeze_excite(
            x,
            self.reduce.weight,
            self.reduce.bias,
            self.expand.weight,
            self.expand.bias,
            activation=self.activation,
            gate=self.gate,
        )

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}, gate={self.gate!r}"

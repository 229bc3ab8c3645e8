"""Squeeze-and-excitation, as it is defined.

    m = mean of x over H and W                                   [N, C]
    z1 = reduce_weight m + reduce_bias,  h = activation(z1)      [N, R]
    z2 = expand_weight h + expand_bias,  g = gate(z2)            [N, C]
    y[n, c, i, j] = x[n, c, i, j] g[n, c]

Hu, Shen, Sun: Squeeze-and-Excitation Networks, CVPR 2018, equations 2 to 4. Without reduce_weight, h = m: the single
convolution of effective squeeze-and-excitation (Lee, Park: CenterMask, CVPR 2020, equation 4).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def _identity(z: Tensor) -> Tensor:
    return z


def _gelu_tanh(z: Tensor) -> Tensor:
    return F.gelu(z, approximate="tanh")


def _hardsigmoid(z: Tensor) -> Tensor:
    # F.hardsigmoid's and F.hardswish's backward multiply by 1/6 rounded to float32, whatever the dtype.
    return torch.where(z <= -3, 0.0, torch.where(z >= 3, 1.0, z / 6 + 0.5))


def _hardswish(z: Tensor) -> Tensor:
    between = z.clamp(-3, 3)  # finite, so that the part that is not chosen has the gradient 0 and not NaN
    return torch.where(z <= -3, z * 0.0, torch.where(z >= 3, z, between * (between / 6 + 0.5)))


def _hardsigmoid_paddle(z: Tensor) -> Tensor:
    """Keras's and Paddle's hard sigmoid, steeper than PyTorch's: its slope is 0.2 where PyTorch's is 1/6."""
    return (0.2 * z + 0.5).clamp(0.0, 1.0)


# The order of both tables is the numbering that the kernels share (csrc/math/activation.h, sod_ops/triton/activation.py).
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": _identity,
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,  # slope 0.01
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "hardswish": _hardswish,
    "mish": F.mish,
}
GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "hardsigmoid": _hardsigmoid,
    "hardsigmoid_paddle": _hardsigmoid_paddle,
}


def squeeze_excite(
    x: Tensor,
    reduce_weight: Tensor | None,
    reduce_bias: Tensor | None,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    *,
    activation: str = "relu",
    gate: str = "sigmoid",
) -> Tensor:
    """Arguments and result as :func:`sod_ops.squeeze_excite`; nothing is checked here."""
    dtype = torch.promote_types(x.dtype, expand_weight.dtype)
    hidden = x.mean(dim=(2, 3)).to(dtype)
    if reduce_weight is not None:
        hidden = ACTIVATIONS[activation](F.linear(hidden, reduce_weight.flatten(1), reduce_bias))
    gates = GATES[gate](F.linear(hidden, expand_weight.flatten(1), expand_bias))
    return x * gates.to(x.dtype)[:, :, None, None]

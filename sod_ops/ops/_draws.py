"""What augmentations of a batch draw at random: with plain PyTorch on the batch's device, so that nothing is read back and
every backend gets the same from one state of the generator.

Every number comes from uniform ones by a formula: no rejection, whose loop would have to look at its values.
"""

import math
from typing import Any

import torch
from torch import Tensor

from sod_ops.ops import _checks


def check_generator(op: str, generator: Any, device: torch.device) -> None:
    """Raises unless ``generator`` is None or a generator for ``device``."""
    if generator is None:
        return
    if not isinstance(generator, torch.Generator):
        _checks.bad_type(op, "generator", "a torch.Generator or None", type(generator).__name__)
    drawn_on = generator.device
    if drawn_on.type != device.type or (None not in (drawn_on.index, device.index) and drawn_on.index != device.index):
        _checks.bad_value(op, "generator", f"on the device of images ({device})", drawn_on)


def uniform(shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Numbers in [0, 1), in float64: 53 random bits each, so that no two of a batch are alike."""
    return torch.rand(shape, dtype=torch.float64, device=device, generator=generator)


def partners(numbers: Tensor) -> Tensor:
    """A random cycle through the batch: everyone's partner is another sample, unless there is no other.

    Args:
        numbers: ``[B]`` uniform.

    Returns:
        ``[B]`` int64, a permutation without fixed points where B > 1.
    """
    order = numbers.argsort(stable=True)
    return order.roll(-1)[order.argsort(stable=True)]


def receivers(partner: Tensor) -> Tensor:
    """The inverse of ``partner``: whose partner each sample is."""
    return partner.argsort(stable=True)


def symmetric_beta(alpha: float, first: Tensor, second: Tensor) -> Tensor:
    r"""Beta(alpha, alpha) from two uniform numbers, for any alpha > 0.

    Bailey's polar method gives Student's t with 2 alpha degrees of freedom, :math:`t = \sqrt{2 \alpha r} c` with
    :math:`r = u^{-1/\alpha} - 1` and :math:`c = \cos 2 \pi v`; then :math:`(1 + t / \sqrt{2 \alpha + t^2}) / 2` is
    Beta(alpha, alpha). Divided by :math:`\sqrt r`, which overflows for small alpha, that is

    .. math:: \frac12 \left(1 + \frac{c}{\sqrt{1 / r + c^2}}\right)

    Source:
        Bailey: Polar generation of random variates with the t-distribution, 1994; Devroye: Random variate generation in one
        line of code, 1996.
    """
    c = torch.cos(2 * math.pi * second)
    return 0.5 + 0.5 * c / (1 / torch.expm1(-torch.log1p(-first) / alpha) + c * c).sqrt()


def cut_boxes(kept: Tensor, centre_x: Tensor, centre_y: Tensor, height: int, width: int) -> Tensor:
    """Boxes of the image's proportions that would leave ``kept`` of its area, clipped to it.

    Args:
        kept: ``[B]``, lambda.
        centre_x, centre_y: ``[B]`` uniform numbers: where the boxes' middles lie.

    Returns:
        ``[B, 4]`` int64: x1, y1, x2, y2, the latter two beyond the last pixel.
    """
    half = 0.5 * (1 - kept).sqrt()
    edges = []
    for number, size in ((centre_x, width), (centre_y, height)):
        middle, reach = (number * size).long(), (half * size).long()
        edges.append(((middle - reach).clamp(min=0), (middle + reach).clamp(max=size)))
    (x1, x2), (y1, y2) = edges
    return torch.stack([x1, y1, x2, y2], -1)

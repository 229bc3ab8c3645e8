"""The adaptive pixel intensity loss, as it is defined.

    w_k = |A_k(y) - y|,   w = 1 + 0.5 (w_3 + w_15 + w_31) y
    abce = sum w c / sum (w + 0.5),  amae = sum w |p - y| / sum (w - 1),  c = -y log p - (1 - y) log(1 - p)
    aiou = 1 - (sum w p y + 1) / (sum w (p + y) - sum w p y + 1),   loss = 0.7 (abce + aiou + amae)

for the probabilities p of a sample and its mask y, with sums over the sample's pixels and the average A_k over k x k pixels
of sod_ops/reference/box_filter.py. Where no pixel weighs more than 1, as in an empty mask, sum (w - 1) is 0 and the number
of pixels takes its place. Lee, Shin, Han: TRACER, AAAI 2022.

As published in code, c and |p - y| are already means over all pixels of all samples (``reduce=None`` leaves the reduction at
its default), which w multiplies, and an empty mask gives infinity.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sod_ops.reference.box_filter import box_filter
from sod_ops.reference.sigmoid_focal_loss import reduce

WINDOWS = (3, 15, 31)


def adaptive_pixel_intensity_loss(
    probabilities: Sequence[Tensor], mask: Tensor, as_published: bool, weights: Sequence[float], reduction: str
) -> Tensor:
    """Arguments and result as :func:`sod_ops.adaptive_pixel_intensity_loss`, with a weight for each head."""
    dtype = torch.promote_types(probabilities[0].dtype, mask.dtype)
    y = mask.to(dtype)
    distances = torch.stack([(box_filter(y, window) - y).abs() for window in WINDOWS])
    w = 1 + 0.5 * distances.sum(0) * y
    above_one = (w - 1).sum((1, 2, 3))
    norm = torch.where(above_one > 0, above_one, w[:1].numel())
    losses = []
    for head, weight in zip(probabilities, weights, strict=True):
        p = head.to(dtype)
        bce = F.binary_cross_entropy(p, y, reduction="mean" if as_published else "none")
        mae = F.l1_loss(p, y, reduction="mean" if as_published else "none")
        abce = (w * bce).sum((1, 2, 3)) / (w + 0.5).sum((1, 2, 3))
        amae = (w * mae).sum((1, 2, 3)) / norm
        intersection = (p * y * w).sum((1, 2, 3))
        union = ((p + y) * w).sum((1, 2, 3))
        aiou = 1 - (intersection + 1) / (union - intersection + 1)
        losses.append(weight * 0.7 * (abce + aiou + amae))
    return reduce(torch.stack(losses).sum(0), reduction)

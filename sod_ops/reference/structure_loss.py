"""The structure loss, as it is defined.

    w = 1 + 5 |A_k(y) - y|,   p = sigmoid(z),   c = -y log p - (1 - y) log(1 - p)
    wbce = sum w c / sum w,   wiou = 1 - (sum w p y + 1) / (sum w (p + y) - sum w p y + 1),   loss = wbce + wiou

for the logits z of a sample and its mask y, with sums over the sample's pixels and the average A_k over k x k pixels of
sod_ops/reference/box_filter.py. Wei, Wang, Huang: F3Net, AAAI 2020.

As published in code, c is already the mean over all pixels of all samples (``reduce='none'`` is an argument that is true),
so that wbce is that mean, whatever w is.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sod_ops.reference.box_filter import box_filter
from sod_ops.reference.sigmoid_focal_loss import reduce


def structure_loss(
    logits: Sequence[Tensor],
    mask: Tensor,
    kernel_size: int,
    as_published: bool,
    weights: Sequence[float],
    reduction: str,
) -> Tensor:
    """Arguments and result as :func:`sod_ops.structure_loss`, with a weight for each head; nothing is checked here."""
    dtype = torch.promote_types(logits[0].dtype, mask.dtype)
    y = mask.to(dtype)
    w = 1 + 5 * (box_filter(y, kernel_size) - y).abs()
    losses = []
    for head, weight in zip(logits, weights, strict=True):
        z = head.to(dtype)
        if as_published:
            wbce = F.binary_cross_entropy_with_logits(z, y)
            wbce = (w * wbce).sum((1, 2, 3)) / w.sum((1, 2, 3))
        else:
            bce = F.binary_cross_entropy_with_logits(z, y, reduction="none")
            wbce = (w * bce).sum((1, 2, 3)) / w.sum((1, 2, 3))
        p = torch.sigmoid(z)
        intersection = (p * y * w).sum((1, 2, 3))
        union = ((p + y) * w).sum((1, 2, 3))
        wiou = 1 - (intersection + 1) / (union - intersection + 1)
        losses.append(weight * (wbce + wiou))
    return reduce(torch.stack(losses).sum(0), reduction)

"""The Tversky loss, as it is defined.

    p = sigmoid(z),   I = sum p y
    loss = 1 - (I + s) / (I + alpha sum p (1 - y) + beta sum (1 - p) y + s)

for the logits z of a sample and its mask y, with sums over the sample's pixels: alpha weighs what is predicted and not
there, beta what is there and not predicted. Salehi, Erdogmus, Gholipour: Tversky loss function, MLMI 2017. With
alpha = beta = 1 it is the IoU loss, with alpha = beta = 1/2 and half the smoothing the Dice loss.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sod_ops.reference.sigmoid_focal_loss import reduce


def tversky_loss(
    logits: Sequence[Tensor],
    mask: Tensor,
    alpha: float,
    beta: float,
    smooth: float,
    weights: Sequence[float],
    reduction: str,
) -> Tensor:
    """Arguments and result as :func:`sod_ops.tversky_loss`, with a weight for each head; nothing is checked here."""
    dtype = torch.promote_types(logits[0].dtype, mask.dtype)
    y = mask.to(dtype)
    losses = []
    for head, weight in zip(logits, weights, strict=True):
        p = torch.sigmoid(head.to(dtype))
        intersection = (p * y).sum((1, 2, 3))
        extra = (p * (1 - y)).sum((1, 2, 3))
        missed = ((1 - p) * y).sum((1, 2, 3))
        ratio = (intersection + smooth) / (intersection + alpha * extra + beta * missed + smooth)
        losses.append(weight * (1 - ratio))
    return reduce(torch.stack(losses).sum(0), reduction)

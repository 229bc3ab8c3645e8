"""BASNet's hybrid loss, as it is defined.

    bce = mean of -y log p - (1 - y) log(1 - p),   ssim = mean of the index of sod_ops/reference/ssim.py
    iou = (sum p y + s) / (sum p + sum y - sum p y + s),   loss = a bce + b (1 - ssim) + c (1 - iou)

for the probabilities p of a sample and its mask y, with sums and means over the sample's pixels and the terms' weights a, b
and c. Where nothing is in either map and s is 0, the IoU is 0 / 0 as published; here it is 1, and gives no gradient.
Qin et al.: BASNet, CVPR 2019, with weights 1, 1, 1 and s = 0; Zheng et al.: BiRefNet, 2024, with 30, 10, 0.5.

In two bytes the similarity would be noise and the sums would overflow: everything is taken in float32 or float64.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sod_ops.reference.sigmoid_focal_loss import reduce
from sod_ops.reference.ssim import similarity


def bce_ssim_iou_loss(
    probabilities: Sequence[Tensor],
    mask: Tensor,
    bce_weight: float,
    ssim_weight: float,
    iou_weight: float,
    smooth: float,
    window_size: int,
    sigma: float,
    weights: Sequence[float],
    reduction: str,
) -> Tensor:
    """Arguments and result as :func:`sod_ops.bce_ssim_iou_loss`, with a weight for each head; nothing is checked here."""
    result = torch.promote_types(probabilities[0].dtype, mask.dtype)
    dtype = torch.promote_types(result, torch.float32)
    y = mask.to(dtype)
    losses = []
    for head, weight in zip(probabilities, weights, strict=True):
        p = head.to(dtype)
        bce = F.binary_cross_entropy(p, y, reduction="none").mean((1, 2, 3))
        index = similarity(p, y, window_size, sigma).mean((1, 2, 3))
        both = (p * y).sum((1, 2, 3))
        either = p.sum((1, 2, 3)) + y.sum((1, 2, 3)) - both + smooth
        nothing = either == 0
        iou = torch.where(nothing, 1.0, (both + smooth) / torch.where(nothing, 1.0, either))
        losses.append(weight * (bce_weight * bce + ssim_weight * (1 - index) + iou_weight * (1 - iou)))
    return reduce(torch.stack(losses).sum(0), reduction).to(result)

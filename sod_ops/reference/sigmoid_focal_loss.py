"""Sigmoid focal loss, as it is defined.

    p = sigmoid(x),  p_t = p y + (1 - p) (1 - y),  alpha_t = alpha y + (1 - alpha) (1 - y)      (alpha_t = 1 for alpha = -1)
    cross entropy c = -y log p - (1 - y) log(1 - p)
    loss = alpha_t (1 - p_t)^gamma c

for every logit x and its target y. Lin, Goyal, Girshick, He, Dollar: Focal Loss for Dense Object Detection, ICCV 2017,
equations 4 and 5; for soft targets as torchvision extends them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# The order is the numbering that the kernels share.
REDUCTIONS = ("none", "mean", "sum")


def reduce(loss: Tensor, reduction: str) -> Tensor:
    """``loss`` itself, its mean (NaN for no elements) or its sum."""
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()


def modulate(one_minus_p: Tensor, gamma: float) -> Tensor:
    """``one_minus_p ** gamma`` with the derivative 0 where ``one_minus_p`` is 0: the limit of the loss's derivative.

    That of the power alone is infinite there for gamma < 1, and the product with a cross entropy of 0 would be NaN.
    """
    if gamma == 0:
        return torch.ones_like(one_minus_p)
    vanished = one_minus_p == 0
    return torch.where(vanished, 0.0, torch.where(vanished, 1.0, one_minus_p) ** gamma)


def sigmoid_focal_loss(
    inputs: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0, reduction: str = "none"
) -> Tensor:
    """Arguments and result as :func:`sod_ops.sigmoid_focal_loss`; nothing is checked here."""
    dtype = torch.promote_types(inputs.dtype, targets.dtype)
    x, y = inputs.to(dtype), targets.to(dtype)
    cross_entropy = -(y * F.logsigmoid(x) + (1 - y) * F.logsigmoid(-x))
    # 1 - p_t without a difference, which would lose all digits where p_t is near 1.
    one_minus_p_t = torch.sigmoid(x) * (1 - y) + torch.sigmoid(-x) * y
    loss = modulate(one_minus_p_t, gamma) * cross_entropy
    if alpha >= 0:
        loss = (alpha * y + (1 - alpha) * (1 - y)) * loss
    return reduce(loss, reduction)

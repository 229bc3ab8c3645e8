"""Softmax focal loss, as it is defined.

    p = softmax of the logits x over the classes,  p_t = p[target],  cross entropy c = -log p_t
    loss = alpha[target] (1 - p_t)^gamma c                     (alpha[target] = 1 without alpha)

for every position but the ignored ones, which have no loss and don't count in the mean. Lin, Goyal, Girshick, He, Dollar:
Focal Loss for Dense Object Detection, ICCV 2017, equation 5 with the softmax in place of the sigmoid.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sod_ops.reference.sigmoid_focal_loss import modulate


def softmax_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float | Tensor | None = None,
    gamma: float = 2.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Arguments and result as :func:`sod_ops.softmax_focal_loss`; nothing is checked here, and a bad target gives NaN."""
    targets = targets.long()
    counted = targets != ignore_index
    known = (targets >= 0) & (targets < inputs.shape[1])
    classes = torch.where(counted & known, targets, 0)
    # What stands at an ignored position, NaN too, must not reach any gradient.
    logits = torch.where(counted.unsqueeze(1), inputs, 0.0)
    log_p_t = F.log_softmax(logits, 1).gather(1, classes.unsqueeze(1)).squeeze(1)
    loss = modulate(-torch.expm1(log_p_t), gamma) * -log_p_t
    if isinstance(alpha, Tensor):
        loss = loss * alpha.to(loss.dtype)[classes]
    elif alpha is not None:
        loss = loss * alpha
    loss = loss * torch.where(counted & ~known, float("nan"), 1.0).to(loss.dtype)
    loss = torch.where(counted, loss, 0.0)
    if reduction == "none":
        return loss
    return loss.sum() / counted.sum() if reduction == "mean" else loss.sum()

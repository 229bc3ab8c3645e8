"""Modules: thin faces of the ops."""

import torch
from torch import Tensor

from sod_ops.ops.sigmoid_focal_loss import check_options, sigmoid_focal_loss


class SigmoidFocalLoss(torch.nn.Module):
    """Focal loss of independent binary predictions: :func:`sod_ops.sigmoid_focal_loss` with its options kept.

    Args:
        alpha: weight of the positive class in [0, 1], or -1 for none.
        gamma: exponent, 0 or more.
        reduction: ``"mean"`` (as PyTorch's own losses have it; the function's default is ``"none"``), ``"none"`` or
            ``"sum"``.

    Input and output:
        Logits and targets of one shape; the loss of each element, or their mean or sum.

    Raises:
        TypeError: ``alpha`` or ``gamma`` is not a number, ``reduction`` not a string.
        ValueError: one of them is out of its range.

    Source:
        Lin, Goyal, Girshick, He, Dollar: Focal Loss for Dense Object Detection, ICCV 2017.
    """

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0, reduction: str = "mean") -> None:
        super().__init__()
        check_options("SigmoidFocalLoss", alpha, gamma, reduction)
        self.alpha = alpha
        self.gamma = gamma
        self.reduction = reduction

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return sigmoid_focal_loss(inputs, targets, self.alpha, self.gamma, self.reduction)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, gamma={self.gamma}, reduction={self.reduction!r}"

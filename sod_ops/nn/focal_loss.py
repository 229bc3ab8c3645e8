"""Focal losses with their options kept."""

import torch
from torch import Tensor

from sod_ops.ops.sigmoid_focal_loss import check_focal_options, sigmoid_focal_loss
from sod_ops.ops.softmax_focal_loss import check_softmax_focal_options, softmax_focal_loss


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
        check_focal_options("SigmoidFocalLoss", alpha, gamma, reduction)
        self.alpha = alpha
        self.gamma = gamma
        self.reduction = reduction

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return sigmoid_focal_loss(inputs, targets, self.alpha, self.gamma, self.reduction)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, gamma={self.gamma}, reduction={self.reduction!r}"


class SoftmaxFocalLoss(torch.nn.Module):
    """Focal loss of one class among many: :func:`sod_ops.softmax_focal_loss` with its options kept.

    Args:
        alpha: weight of every class, a tensor ``[K]``, which becomes a buffer; or one number for all; or None: 1.
        gamma: exponent, 0 or more.
        ignore_index: the target of positions that don't count.
        reduction: ``"mean"``, ``"none"`` or ``"sum"``.

    Input and output:
        Logits ``[N, K, ...]`` and classes ``[N, ...]``; the loss of each position, or their mean or sum.

    Raises:
        TypeError: an option is of the wrong type.
        ValueError: one of them is out of its range.

    Source:
        Lin, Goyal, Girshick, He, Dollar: Focal Loss for Dense Object Detection, ICCV 2017.
    """

    alpha: float | Tensor | None

    def __init__(
        self,
        alpha: float | Tensor | None = None,
        gamma: float = 2.0,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        check_softmax_focal_options("SoftmaxFocalLoss", alpha, gamma, ignore_index, reduction)
        if isinstance(alpha, Tensor):
            self.register_buffer("alpha", alpha)
        else:
            self.alpha = alpha
        self.gamma = gamma
        self.ignore_index = ignore_index
        self.reduction = reduction

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return softmax_focal_loss(inputs, targets, self.alpha, self.gamma, self.ignore_index, self.reduction)

    def extra_repr(self) -> str:
        alpha = f"[{len(self.alpha)}]" if isinstance(self.alpha, Tensor) else self.alpha
        options = f"gamma={self.gamma}, ignore_index={self.ignore_index}, reduction={self.reduction!r}"
        return f"alpha={alpha}, {options}"

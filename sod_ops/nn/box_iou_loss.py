"""IoU losses of pairs of boxes with their options kept."""

import torch
from torch import Tensor

from sod_ops.ops.box_iou_loss import (
    check_options,
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
)


class _BoxIoULoss(torch.nn.Module):
    """What the IoU losses have in common: their options."""

    def __init__(self, reduction: str = "mean", eps: float = 1e-7) -> None:
        super().__init__()
        check_options(type(self).__name__, reduction, eps)
        self.reduction = reduction
        self.eps = eps

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}, eps={self.eps}"


class GeneralizedBoxIoULoss(_BoxIoULoss):
    """Generalized IoU loss of pairs of boxes: :func:`sod_ops.generalized_box_iou_loss` with its options kept.

    Args:
        reduction: ``"mean"`` (as PyTorch's own losses have it; the function's default is ``"none"``), ``"none"`` or
            ``"sum"``.
        eps: what is added to the denominators, above 0.

    Input and output:
        Two tensors ``[N, 4]`` or ``[4]`` of (x1, y1, x2, y2); the loss of each pair, or their mean or sum.

    Raises:
        TypeError: ``reduction`` is not a string, ``eps`` not a number.
        ValueError: one of them is out of its range.

    Source:
        Rezatofighi et al.: Generalized Intersection over Union, CVPR 2019.
    """

    def forward(self, boxes1: Tensor, boxes2: Tensor) -> Tensor:
        return generalized_box_iou_loss(boxes1, boxes2, self.reduction, self.eps)


class DistanceBoxIoULoss(_BoxIoULoss):
    """Distance IoU loss of pairs of boxes: :func:`sod_ops.distance_box_iou_loss` with its options kept.

    Args, input and output, and errors are those of :class:`GeneralizedBoxIoULoss`.

    Source:
        Zheng et al.: Distance-IoU Loss, AAAI 2020.
    """

    def forward(self, boxes1: Tensor, boxes2: Tensor) -> Tensor:
        return distance_box_iou_loss(boxes1, boxes2, self.reduction, self.eps)


class CompleteBoxIoULoss(_BoxIoULoss):
    """Complete IoU loss of pairs of boxes: :func:`sod_ops.complete_box_iou_loss` with its options kept.

    Args, input and output, and errors are those of :class:`GeneralizedBoxIoULoss`, but that ``eps`` is what is added to the
    denominator of alpha alone.

    Source:
        Zheng et al.: Distance-IoU Loss, AAAI 2020.
    """

    def forward(self, boxes1: Tensor, boxes2: Tensor) -> Tensor:
        return complete_box_iou_loss(boxes1, boxes2, self.reduction, self.eps)

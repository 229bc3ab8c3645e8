"""The complete IoU of every pair of two sets of boxes, as it is defined.

For box i of the first set and box j of the second, with I, U, R, D, v and alpha as in the losses (box_iou_loss.py):

    result[i, j] = I / U - R / D - alpha v

Zheng et al.: Distance-IoU Loss, AAAI 2020, equation 10. As in torchvision, U has no eps; the sides of the overlap and of the
enclosing box are clamped at 0, each on its own. Where torchvision gives NaN this gives a limit: where U is 0 (not above
the smallest normal number of the type), the IoU is 0 without a gradient; a box with neither width nor height has no aspect
ratio, so that v is 0; the gradient by the angle of a box of height 0 is the limit from heights above 0.
"""

import torch
from torch import Tensor

from sod_ops.reference.box_iou_loss import aspect_penalty, corners


def complete_box_iou(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """Arguments and result as :func:`sod_ops.complete_box_iou`; nothing is checked here."""
    boxes1, boxes2 = boxes1[:, None], boxes2[None]
    (x1, y1, x2, y2), (x1g, y1g, x2g, y2g) = corners(boxes1), corners(boxes2)
    width = (torch.minimum(x2, x2g) - torch.maximum(x1, x1g)).clamp(min=0)
    height = (torch.minimum(y2, y2g) - torch.maximum(y1, y1g)).clamp(min=0)
    intersection = width * height
    union = (x2 - x1) * (y2 - y1) + (x2g - x1g) * (y2g - y1g) - intersection
    covers = union.abs() > torch.finfo(union.dtype).tiny
    iou = torch.where(covers, intersection / torch.where(covers, union, 1), 0)

    enclosing_width = (torch.maximum(x2, x2g) - torch.minimum(x1, x1g)).clamp(min=0)
    enclosing_height = (torch.maximum(y2, y2g) - torch.minimum(y1, y1g)).clamp(min=0)
    diagonal = enclosing_width.square() + enclosing_height.square() + eps
    distance = ((x1 + x2) / 2 - (x1g + x2g) / 2).square() + ((y1 + y2) / 2 - (y1g + y2g) / 2).square()
    return iou - distance / diagonal - aspect_penalty(boxes1, boxes2, iou, eps)

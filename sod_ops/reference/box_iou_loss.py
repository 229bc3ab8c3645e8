"""The losses of generalized, distance and complete IoU, as they are defined.

For boxes (x1, y1, x2, y2) of width w and height h, with I the area that both cover, U = w1 h1 + w2 h2 - I, C the area and
D the squared diagonal (plus eps) of the smallest box around both, and R the squared distance of the centres:

    iou = I / (U + eps)
    generalized = 1 - iou + (C - U) / (C + eps)
    distance    = 1 - iou + R / D
    complete    = 1 - iou + R / D + alpha v,    v = 4 / pi^2 (atan(w2 / h2) - atan(w1 / h1))^2,
                                                alpha = v / (1 - iou + v + eps), a constant to autograd

Rezatofighi et al.: Generalized Intersection over Union, CVPR 2019. Zheng et al.: Distance-IoU Loss, AAAI 2020, equations 6
and 7 (distance), 8 to 11 (complete). As in torchvision, the eps of complete is 1e-7 but for alpha's, which is the caller's.

A padded loss is that of ultralytics (1 minus its value), where U and the arctangents have h + eps in place of h, all eps are
the caller's, and the sides of the overlap are clamped at 0, each on its own.

Where torchvision gives NaN this gives a limit. The aspect ratio of a box of height 0 is infinite, its arctangent pi/2, and
the gradient is the limit from heights above 0. A box with neither width nor height has no aspect ratio: v is 0.
"""

import math

import torch
from torch import Tensor

_EPS = 1e-7


def generalized_box_iou_loss(
    boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = _EPS, padded: bool = False
) -> Tensor:
    """Arguments and result as :func:`sod_ops.generalized_box_iou_loss`; nothing is checked here."""
    (x1, y1, x2, y2), (x1g, y1g, x2g, y2g) = corners(boxes1), corners(boxes2)
    iou, union = _iou_and_union(boxes1, boxes2, eps, padded)
    enclosing = (torch.maximum(x2, x2g) - torch.minimum(x1, x1g)) * (torch.maximum(y2, y2g) - torch.minimum(y1, y1g))
    return _reduced(1 - (iou - (enclosing - union) / (enclosing + eps)), reduction)


def distance_box_iou_loss(
    boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = _EPS, padded: bool = False
) -> Tensor:
    """Arguments and result as :func:`sod_ops.distance_box_iou_loss`; nothing is checked here."""
    iou, _ = _iou_and_union(boxes1, boxes2, eps, padded)
    return _reduced(1 - iou + _distance_penalty(boxes1, boxes2, eps), reduction)


def complete_box_iou_loss(
    boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = _EPS, padded: bool = False
) -> Tensor:
    """Arguments and result as :func:`sod_ops.complete_box_iou_loss`; nothing is checked here."""
    own_eps = eps if padded else _EPS
    iou, _ = _iou_and_union(boxes1, boxes2, own_eps, padded)
    penalty = _distance_penalty(boxes1, boxes2, own_eps)
    return _reduced(1 - iou + penalty + aspect_penalty(boxes1, boxes2, iou, eps, padded), reduction)


# The order is the numbering that the kernels share (csrc/math/box_iou_loss.h); those of the padded follow.
LOSSES = {
    "generalized_box_iou_loss": generalized_box_iou_loss,
    "distance_box_iou_loss": distance_box_iou_loss,
    "complete_box_iou_loss": complete_box_iou_loss,
}


def corners(boxes: Tensor) -> tuple[Tensor, ...]:
    """x1, y1, x2 and y2 in the type that they are computed in."""
    return (boxes if boxes.dtype == torch.float64 else boxes.float()).unbind(-1)


def aspect_penalty(boxes1: Tensor, boxes2: Tensor, iou: Tensor, eps: float, padded: bool = False) -> Tensor:
    """alpha v. The boxes' leading dimensions may broadcast to those of ``iou``."""
    (x1, y1, x2, y2), (x1g, y1g, x2g, y2g) = corners(boxes1), corners(boxes2)
    padding = eps if padded else 0
    difference, sized = _angle(x2g - x1g, y2g - y1g + padding, x2 - x1, y2 - y1 + padding)
    v = torch.where(sized, 4 / math.pi**2 * difference.square(), 0)
    alpha = (v / (1 - iou + v + eps)).detach()
    return alpha * v


def _angle(width2: Tensor, height2: Tensor, width1: Tensor, height1: Tensor) -> tuple[Tensor, Tensor]:
    """atan(w2 / h2) - atan(w1 / h1), and where both boxes have an aspect ratio; elsewhere the difference means nothing."""
    sized1, sized2 = (w * w + h * h > 0 for w, h in ((width1, height1), (width2, height2)))
    return _arctangent(width2, height2, sized2) - _arctangent(width1, height1, sized1), sized1 & sized2


def _arctangent(width: Tensor, height: Tensor, sized: Tensor) -> Tensor:
    """atan(w / h) by atan2, whose gradient does not divide by h."""
    sign = torch.where(height < 0, -1.0, 1.0).to(height.dtype)
    return torch.atan2(torch.where(sized, sign * width, 0), torch.where(sized, sign * height, 1))


def _iou_and_union(boxes1: Tensor, boxes2: Tensor, eps: float, padded: bool) -> tuple[Tensor, Tensor]:
    (x1, y1, x2, y2), (x1g, y1g, x2g, y2g) = corners(boxes1), corners(boxes2)
    width = torch.minimum(x2, x2g) - torch.maximum(x1, x1g)
    height = torch.minimum(y2, y2g) - torch.maximum(y1, y1g)
    if padded:
        intersection, padding = width.clamp(min=0) * height.clamp(min=0), eps
    else:
        intersection, padding = torch.where((width > 0) & (height > 0), width * height, 0), 0.0
    union = (x2 - x1) * (y2 - y1 + padding) + (x2g - x1g) * (y2g - y1g + padding) - intersection
    return intersection / (union + eps), union


def _distance_penalty(boxes1: Tensor, boxes2: Tensor, eps: float) -> Tensor:
    """R / D."""
    (x1, y1, x2, y2), (x1g, y1g, x2g, y2g) = corners(boxes1), corners(boxes2)
    width = torch.maximum(x2, x2g) - torch.minimum(x1, x1g)
    height = torch.maximum(y2, y2g) - torch.minimum(y1, y1g)
    distance = ((x1 + x2) / 2 - (x1g + x2g) / 2).square() + ((y1 + y2) / 2 - (y1g + y2g) / 2).square()
    return distance / (width.square() + height.square() + eps)


def _reduced(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return loss
    # As in torchvision the mean of nothing is 0.
    return loss.mean() if reduction == "mean" and loss.numel() > 0 else loss.sum()

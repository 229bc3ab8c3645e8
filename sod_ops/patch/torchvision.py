"""The losses of torchvision: its functions have the arguments and results of ours."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from sod_ops.ops.box_iou_loss import complete_box_iou_loss, distance_box_iou_loss, generalized_box_iou_loss
from sod_ops.ops.complete_box_iou import complete_box_iou
from sod_ops.ops.sigmoid_focal_loss import sigmoid_focal_loss
from sod_ops.patch.fallback import as_autocast_has_it, falling_back


def _sigmoid_focal_loss(inputs: Tensor, targets: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return sigmoid_focal_loss(as_autocast_has_it(inputs), targets, *args, **kwargs)


FUNCTIONS: Mapping[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "torchvision.ops.boxes.complete_box_iou": partial(falling_back, complete_box_iou),
    "torchvision.ops.ciou_loss.complete_box_iou_loss": partial(falling_back, complete_box_iou_loss),
    "torchvision.ops.diou_loss.distance_box_iou_loss": partial(falling_back, distance_box_iou_loss),
    "torchvision.ops.focal_loss.sigmoid_focal_loss": partial(falling_back, _sigmoid_focal_loss),
    "torchvision.ops.giou_loss.generalized_box_iou_loss": partial(falling_back, generalized_box_iou_loss),
}

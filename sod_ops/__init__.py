"""Fused kernels for the blocks and losses of salient object detection and segmentation, for PyTorch."""

from sod_ops import nn
from sod_ops._version import __version__
from sod_ops.accelerate import Report, accelerate, restore
from sod_ops.backends import available_backends, use_backend
from sod_ops.ops.box_iou_loss import complete_box_iou_loss, distance_box_iou_loss, generalized_box_iou_loss
from sod_ops.ops.complete_box_iou import complete_box_iou
from sod_ops.ops.sigmoid_focal_loss import sigmoid_focal_loss
from sod_ops.ops.softmax_focal_loss import softmax_focal_loss
from sod_ops.ops.squeeze_excite import squeeze_excite

__all__ = [
    "Report",
    "__version__",
    "accelerate",
    "available_backends",
    "complete_box_iou",
    "complete_box_iou_loss",
    "distance_box_iou_loss",
    "generalized_box_iou_loss",
    "nn",
    "restore",
    "sigmoid_focal_loss",
    "softmax_focal_loss",
    "squeeze_excite",
    "use_backend",
]

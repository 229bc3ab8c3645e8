"""Fused kernels for the blocks and losses of salient object detection and segmentation, for PyTorch."""

from sod_ops import nn
from sod_ops._version import __version__
from sod_ops.accelerate import Report, accelerate, restore
from sod_ops.backends import available_backends, use_backend
from sod_ops.nn.copy_paste import CopyPaste
from sod_ops.nn.cutmix import CutMix
from sod_ops.ops.adaptive_pixel_intensity_loss import adaptive_pixel_intensity_loss
from sod_ops.ops.bce_ssim_iou_loss import bce_ssim_iou_loss
from sod_ops.ops.box_filter import box_filter
from sod_ops.ops.box_iou_loss import complete_box_iou_loss, distance_box_iou_loss, generalized_box_iou_loss
from sod_ops.ops.channel_pool import channel_pool
from sod_ops.ops.complete_box_iou import complete_box_iou
from sod_ops.ops.copy_paste import copy_paste
from sod_ops.ops.cutmix import cutmix
from sod_ops.ops.gate import gate
from sod_ops.ops.global_pool import global_pool
from sod_ops.ops.object_attention import object_attention
from sod_ops.ops.pyramid_conv2d import pyramid_conv2d
from sod_ops.ops.pyramid_pool import pyramid_pool
from sod_ops.ops.pyramid_upsample_concat import pyramid_upsample_concat
from sod_ops.ops.scse import scse
from sod_ops.ops.sigmoid_focal_loss import sigmoid_focal_loss
from sod_ops.ops.softmax_focal_loss import softmax_focal_loss
from sod_ops.ops.spatial_attention import spatial_attention
from sod_ops.ops.squeeze_excite import squeeze_excite
from sod_ops.ops.ssim import ssim
from sod_ops.ops.structure_loss import structure_loss
from sod_ops.ops.tversky_loss import dice_loss, iou_loss, tversky_loss
from sod_ops.patch import patch_losses

__all__ = [
    "CopyPaste",
    "CutMix",
    "Report",
    "__version__",
    "accelerate",
    "adaptive_pixel_intensity_loss",
    "available_backends",
    "bce_ssim_iou_loss",
    "box_filter",
    "channel_pool",
    "complete_box_iou",
    "complete_box_iou_loss",
    "copy_paste",
    "cutmix",
    "dice_loss",
    "distance_box_iou_loss",
    "gate",
    "generalized_box_iou_loss",
    "global_pool",
    "iou_loss",
    "nn",
    "object_attention",
    "patch_losses",
    "pyramid_conv2d",
    "pyramid_pool",
    "pyramid_upsample_concat",
    "restore",
    "scse",
    "sigmoid_focal_loss",
    "softmax_focal_loss",
    "spatial_attention",
    "squeeze_excite",
    "ssim",
    "structure_loss",
    "tversky_loss",
    "use_backend",
]

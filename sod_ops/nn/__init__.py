"""Modules: thin faces of the ops, a file per op; those of blocks have parameters of their own."""

from sod_ops.nn.adaptive_pixel_intensity_loss import AdaptivePixelIntensityLoss
from sod_ops.nn.attention import CBAM, SCSE, ChannelAttention, SpatialAttention
from sod_ops.nn.bce_ssim_iou_loss import BCESSIMIoULoss
from sod_ops.nn.box_iou_loss import CompleteBoxIoULoss, DistanceBoxIoULoss, GeneralizedBoxIoULoss
from sod_ops.nn.copy_paste import CopyPaste
from sod_ops.nn.cutmix import CutMix
from sod_ops.nn.focal_loss import SigmoidFocalLoss, SoftmaxFocalLoss
from sod_ops.nn.frequency_edge import FrequencyEdge
from sod_ops.nn.object_attention import ObjectAttention
from sod_ops.nn.pyramid import PyramidPooling, PyramidPoolingHead
from sod_ops.nn.squeeze_excite import SqueezeExcitation
from sod_ops.nn.ssim import SSIM
from sod_ops.nn.structure_loss import StructureLoss
from sod_ops.nn.tversky_loss import DiceLoss, IoULoss, TverskyLoss
from sod_ops.nn.union_attention import UnionAttention
from sod_ops.nn.upsample_concat_conv2d import UpsampleConcatConv2d

__all__ = [
    "CBAM",
    "SCSE",
    "SSIM",
    "AdaptivePixelIntensityLoss",
    "BCESSIMIoULoss",
    "ChannelAttention",
    "CompleteBoxIoULoss",
    "CopyPaste",
    "CutMix",
    "DiceLoss",
    "DistanceBoxIoULoss",
    "FrequencyEdge",
    "GeneralizedBoxIoULoss",
    "IoULoss",
    "ObjectAttention",
    "PyramidPooling",
    "PyramidPoolingHead",
    "SigmoidFocalLoss",
    "SoftmaxFocalLoss",
    "SpatialAttention",
    "SqueezeExcitation",
    "StructureLoss",
    "TverskyLoss",
    "UnionAttention",
    "UpsampleConcatConv2d",
]

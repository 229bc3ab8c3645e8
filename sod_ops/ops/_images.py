"""The images of a batch, as augmentations take them: what they may be, and how kernels read and write them."""

from typing import Any

import torch
from torch import Tensor

from sod_ops.ops import _checks
from sod_ops.ops._maps import in_supported_layout, lies_in_planes

_DTYPES = (torch.uint8, *_checks.FLOATING)


def check_images(op: str, images: Any) -> None:
    """Raises unless ``images`` are ``[B, C, H, W]``, uint8 or floating."""
    _checks.check_tensor(op, "images", images)
    if images.dim() != 4 or 0 in images.shape[1:]:
        expected = "of shape [B, C, H, W] with C, H and W at least 1"
        _checks.bad_value(op, "images", expected, _checks.shape_of(images))
    if images.dtype not in _DTYPES:
        _checks.bad_type(op, "images", "uint8, float32, float64, bfloat16 or float16", images.dtype)


def in_place(images: Tensor) -> Tensor:
    """``images`` where the kernels read them as they are: rows of pixels, or of pixels' channels, are runs of memory."""
    images = in_supported_layout(images)
    if lies_in_planes(images) or images.is_contiguous(memory_format=torch.channels_last):
        return images
    return images.contiguous(memory_format=torch.channels_last)


def result_like(images: Tensor) -> Tensor:
    """An uninitialised tensor as kernels return it for ``images`` in such a layout: contiguous or channels_last."""
    memory_format = torch.contiguous_format if lies_in_planes(images) else torch.channels_last
    return torch.empty(images.shape, dtype=images.dtype, device=images.device, memory_format=memory_format)

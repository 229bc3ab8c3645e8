"""The IoU of ultralytics, ``bbox_iou``, with the flags that its losses and its assigner use.

It adds its eps to the heights of boxes too, and returns the value, not the loss, with the boxes' last dimension kept at 1.
What it computes of boxes given by centre and size, or without a flag, is left to it.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sod_ops.ops.box_iou_loss import padded_box_iou_loss
from sod_ops.patch.fallback import falling_back


def _bbox_iou(
    box1: Tensor,
    box2: Tensor,
    xywh: bool = True,
    GIoU: bool = False,  # noqa: N803
    DIoU: bool = False,  # noqa: N803
    CIoU: bool = False,  # noqa: N803
    eps: float = 1e-7,
) -> Tensor:
    """Refuses by ValueError or TypeError what is computed otherwise there, in two bytes for instance."""
    kind = "complete" if CIoU else "distance" if DIoU else "generalized" if GIoU else None
    if xywh or kind is None or box1.shape != box2.shape or box1.shape[-1:] != (4,):
        raise ValueError("not served")
    if box1.dtype not in (torch.float32, torch.float64):
        raise TypeError("not served")
    pairs = box1.reshape(-1, 4), box2.reshape(-1, 4)
    value = 1 - padded_box_iou_loss(f"{kind}_box_iou_loss", *pairs, eps=eps)
    return value.view(*box1.shape[:-1], 1)


FUNCTIONS: Mapping[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "ultralytics.utils.metrics.bbox_iou": partial(falling_back, _bbox_iou),
}

"""Losses of overlap with their options kept."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sod_ops.ops.tversky_loss import check_overlap_options, dice_loss, iou_loss, tversky_loss


class _OverlapLoss(torch.nn.Module):
    """What the losses of overlap have in common: their options."""

    def __init__(
        self, *, smooth: float = 1.0, weights: Sequence[float] | None = None, reduction: str = "mean", **extra: float
    ) -> None:
        super().__init__()
        check_overlap_options(type(self).__name__, reduction, **extra, smooth=smooth)
        self.options: dict[str, Any] = {
            **extra,
            "smooth": smooth,
            "weights": None if weights is None else tuple(weights),
            "reduction": reduction,
        }

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class IoULoss(_OverlapLoss):
    """1 minus the IoU of predicted probabilities and a mask: :func:`sod_ops.iou_loss` with its options kept.

    Args:
        smooth: what is added above and below, 0 or more.
        weights: of the heads, each 1 where there are none.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Input and output:
        Logits ``[B, 1, H, W]``, or several heads of them as a list or tuple, and a mask of the same shape; a number, or
        ``[B]`` for ``"none"``.

    Raises:
        TypeError: an option is not of the types named above.
        ValueError: one of them is out of its range.

    Source:
        Qin et al.: BASNet: Boundary-Aware Salient Object Detection, CVPR 2019.
    """

    def forward(self, logits: Tensor | Sequence[Tensor], mask: Tensor) -> Tensor:
        return iou_loss(logits, mask, **self.options)


class DiceLoss(_OverlapLoss):
    """1 minus the Dice coefficient of predicted probabilities and a mask: :func:`sod_ops.dice_loss` with its options kept.

    Args, input and output, and errors are those of :class:`IoULoss`.

    Source:
        Milletari, Navab, Ahmadi: V-Net, 3DV 2016.
    """

    def forward(self, logits: Tensor | Sequence[Tensor], mask: Tensor) -> Tensor:
        return dice_loss(logits, mask, **self.options)


class TverskyLoss(_OverlapLoss):
    """Overlap in which false and missed pixels weigh differently: :func:`sod_ops.tversky_loss` with its options kept.

    The other arguments, input and output, and errors are those of :class:`IoULoss`.

    Args:
        alpha: weight of what is predicted outside the mask, 0 or more.
        beta: weight of what is missed inside, 0 or more.

    Source:
        Salehi, Erdogmus, Gholipour: Tversky loss function for image segmentation, MLMI 2017.
    """

    def __init__(
        self,
        alpha: float = 0.3,
        beta: float = 0.7,
        *,
        smooth: float = 1.0,
        weights: Sequence[float] | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(alpha=alpha, beta=beta, smooth=smooth, weights=weights, reduction=reduction)

    def forward(self, logits: Tensor | Sequence[Tensor], mask: Tensor) -> Tensor:
        return tversky_loss(logits, mask, **self.options)

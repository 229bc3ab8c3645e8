"""BASNet's hybrid loss with its options kept."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sod_ops.ops.bce_ssim_iou_loss import bce_ssim_iou_loss, check_hybrid_options


class BCESSIMIoULoss(torch.nn.Module):
    """BASNet's hybrid loss: :func:`sod_ops.bce_ssim_iou_loss` with its options kept.

    Args:
        bce_weight: of the cross entropy, 0 or more, as the other two. BASNet's weights are 1; BiRefNet's 30, 10, 0.5.
        ssim_weight: of 1 minus the structural similarity.
        iou_weight: of 1 minus the IoU.
        smooth: what is added above and below in the IoU, 0 or more.
        window_size: the height and width in pixels of the similarity's window: odd.
        sigma: the standard deviation of its Gaussian in pixels, above 0.
        weights: of the heads, each 1 where there are none.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Input and output:
        Probabilities ``[B, 1, H, W]``, or several heads of them as a list or tuple, and a mask of the same shape; a number,
        or ``[B]`` for ``"none"``.

    Raises:
        TypeError: an option is not of the types named above.
        ValueError: one of them is out of its range.

    Source:
        Qin et al.: BASNet: Boundary-Aware Salient Object Detection, CVPR 2019.
    """

    def __init__(
        self,
        bce_weight: float = 1.0,
        ssim_weight: float = 1.0,
        iou_weight: float = 1.0,
        *,
        smooth: float = 0.0,
        window_size: int = 11,
        sigma: float = 1.5,
        weights: Sequence[float] | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        numbers = {"bce_weight": bce_weight, "ssim_weight": ssim_weight, "iou_weight": iou_weight, "smooth": smooth}
        check_hybrid_options("BCESSIMIoULoss", window_size, sigma, reduction, **numbers)
        self.options: dict[str, Any] = {
            **numbers,
            "window_size": window_size,
            "sigma": sigma,
            "weights": None if weights is None else tuple(weights),
            "reduction": reduction,
        }

    def forward(self, probabilities: Tensor | Sequence[Tensor], mask: Tensor) -> Tensor:
        return bce_ssim_iou_loss(probabilities, mask, **self.options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())

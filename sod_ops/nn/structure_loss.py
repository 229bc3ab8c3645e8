"""The structure loss with its options kept."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sod_ops.ops.structure_loss import check_structure_options, structure_loss


class StructureLoss(torch.nn.Module):
    """Cross entropy and IoU that weigh a mask's edges more: :func:`sod_ops.structure_loss` with its options kept.

    Args:
        kernel_size: the window's height and width in pixels: odd.
        as_published: as F3Net's and PraNet's code has it, where the weights don't reach the cross entropy.
        weights: of the heads, each 1 where there are none.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Input and output:
        Logits ``[B, 1, H, W]``, or several heads of them as a list or tuple, and a mask of the same shape; a number, or
        ``[B]`` for ``"none"``.

    Raises:
        TypeError: an option is not of the types named above.
        ValueError: one of them is out of its range.

    Source:
        Wei, Wang, Huang: F3Net: Fusion, Feedback and Focus for Salient Object Detection, AAAI 2020.
    """

    def __init__(
        self,
        kernel_size: int = 31,
        *,
        as_published: bool = False,
        weights: Sequence[float] | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        check_structure_options("StructureLoss", kernel_size, as_published, reduction)
        self.kernel_size = kernel_size
        self.as_published = as_published
        self.weights = None if weights is None else tuple(weights)
        self.reduction = reduction

    def forward(self, logits: Tensor | Sequence[Tensor], mask: Tensor) -> Tensor:
        return structure_loss(
            logits,
            mask,
            self.kernel_size,
            as_published=self.as_published,
            weights=self.weights,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, as_published={self.as_published}, weights={self.weights}, "
            f"reduction={self.reduction!r}"
        )

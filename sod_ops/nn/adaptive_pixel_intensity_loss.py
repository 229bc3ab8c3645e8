"""TRACER's loss with its options kept."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sod_ops.ops.adaptive_pixel_intensity_loss import adaptive_pixel_intensity_loss, check_intensity_options


class AdaptivePixelIntensityLoss(torch.nn.Module):
    """TRACER's loss: :func:`sod_ops.adaptive_pixel_intensity_loss` with its options kept.

    Args:
        as_published: as TRACER's code has it, where the weights don't reach cross entropy and absolute error.
        weights: of the heads, each 1 where there are none.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Input and output:
        Probabilities ``[B, 1, H, W]``, or several heads of them as a list or tuple, and a mask of the same shape; a number,
        or ``[B]`` for ``"none"``.

    Raises:
        TypeError: an option is not of the types named above.
        ValueError: one of them is out of its range.

    Source:
        Lee, Shin, Han: TRACER: Extreme Attention Guided Salient Object Tracing Network, AAAI 2022.
    """

    def __init__(
        self, *, as_published: bool = False, weights: Sequence[float] | None = None, reduction: str = "mean"
    ) -> None:
        super().__init__()
        check_intensity_options("AdaptivePixelIntensityLoss", as_published, reduction)
        self.options: dict[str, Any] = {
            "as_published": as_published,
            "weights": None if weights is None else tuple(weights),
            "reduction": reduction,
        }

    def forward(self, probabilities: Tensor | Sequence[Tensor], mask: Tensor) -> Tensor:
        return adaptive_pixel_intensity_loss(probabilities, mask, **self.options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())

"""Upsampling of a pyramid's branches into a concatenation, as it is defined.

    y = concat(x, up(branch_1), ..., up(branch_k)) along the channels (x last where x_first is False)

where up resizes to H x W bilinearly: along each axis, output i lies at input position

    i (h - 1) / (H - 1)               with align_corners
    max(0, (i + 1/2) h / H - 1/2)     without

and mixes the two inputs beside it: torch.nn.functional.interpolate.

Zhao et al.: Pyramid Scene Parsing Network, CVPR 2017, section 3.2.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def pyramid_upsample_concat(
    x: Tensor, branches: Sequence[Tensor], *, align_corners: bool = False, x_first: bool = True
) -> Tensor:
    """Arguments and result as :func:`sod_ops.pyramid_upsample_concat`; nothing is checked here."""
    upsampled = [F.interpolate(b, x.shape[2:], mode="bilinear", align_corners=align_corners) for b in branches]
    return torch.cat([x, *upsampled] if x_first else [*upsampled, x], 1)

"""Pyramid pooling, as it is defined.

Level s of the pyramid has s x s bins. Bin (i, j) is the mean of x over

    rows     floor(i H / s)  to  ceil((i + 1) H / s)
    columns  floor(j W / s)  to  ceil((j + 1) W / s)

which overlaps its neighbours where H or W is not divisible by s: PyTorch's adaptive average pooling.

Zhao et al.: Pyramid Scene Parsing Network, CVPR 2017, section 3.2.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def pyramid_pool(x: Tensor, bins: Sequence[int] = (1, 2, 3, 6)) -> tuple[Tensor, ...]:
    """Arguments and result as :func:`sod_ops.pyramid_pool`; nothing is checked here."""
    return tuple(F.adaptive_avg_pool2d(x, size) for size in bins)

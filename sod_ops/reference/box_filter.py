"""The average filter, as it is defined.

    A_k(m)[y, x] = 1/k^2 sum of m[y + i, x + j] over i, j = -(k - 1)/2 ... (k - 1)/2,  with m = 0 beyond the image

which is an average pooling of stride 1 that counts its padding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def box_filter(mask: Tensor, kernel_size: int) -> Tensor:
    """Arguments and result as :func:`sod_ops.box_filter`; nothing is checked here."""
    if not mask.is_floating_point():
        mask = mask.to(torch.float32)
    if mask.numel() == 0:
        return mask.clone()
    # A window that reaches beyond the image on both sides, cut off where it does.
    height, width = (min(kernel_size, 2 * size - 1) for size in mask.shape[-2:])
    planes = mask.reshape(-1, 1, *mask.shape[-2:])
    averages = F.avg_pool2d(
        planes, (height, width), stride=1, padding=(height // 2, width // 2), divisor_override=kernel_size**2
    )
    return averages.reshape(mask.shape)

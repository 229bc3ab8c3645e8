"""Gates, as they are defined. With a [N, C, 1, 1] for the channels and b [N, 1, H, W] for the pixels:

    y[n, c, i, j] = x[n, c, i, j] g[n, c, i, j]
    g = sigmoid(a),  sigmoid(b),  sigmoid(a + b)  or  sigmoid(a) + sigmoid(b)

The first two are the attention of CBAM (Woo, Park, Lee, Kweon, ECCV 2018, equation 1), the third that of BAM (Park, Woo,
Lee, Kweon, BMVC 2018, equation 2, without its residual), the last that of scSE (Roy, Navab, Wachinger, MICCAI 2018,
section 3).
"""

import torch
from torch import Tensor


def gate(x: Tensor, logits: Tensor, other: Tensor | None = None, *, sum_of: str = "logits") -> Tensor:
    """Arguments and result as :func:`sod_ops.gate`; nothing is checked here."""
    dtype = torch.promote_types(x.dtype, logits.dtype)
    if other is None:
        factor = torch.sigmoid(logits.to(dtype))
    elif sum_of == "logits":
        factor = torch.sigmoid(logits.to(dtype) + other.to(dtype))
    else:
        factor = torch.sigmoid(logits.to(dtype)) + torch.sigmoid(other.to(dtype))
    return x * factor.to(x.dtype)

"""TRACER's object attention, as it is defined.

    s = sigmoid(decoder_logits)                                       [N, 1, H, W]
    b = 1 - s where that is at most the threshold, elsewhere 0        [N, 1, H, W]
    y[n, c, i, j] = encoder[n, c, i, j] (s + b)[n, i, j]

Lee, Shin, Han: TRACER: Extreme Attention Guided Salient Object Tracing Network, AAAI 2022; `ObjectAttention` in the authors'
code, whose `denoise` is the threshold.

Where b is kept, s + b = 1, whatever the logit: the encoder's map passes unchanged and the logit gets no gradient, which the
authors' code has too, as two gradients that cancel. Only sure background, with 1 - s above the threshold, is scaled, by
s. So it is computed here: `1 - s <= threshold` is `decoder_logits >= log((1 - threshold) / threshold)`, which rounding
doesn't blur.
"""

import math

import torch
from torch import Tensor


def lowest_kept_logit(threshold: float) -> float:
    """The logit whose reverse sigmoid is ``threshold``: no lower one is kept."""
    if threshold >= 1:
        return -math.inf
    return math.inf if threshold <= 0 else math.log((1 - threshold) / threshold)


def object_attention(decoder_logits: Tensor, encoder: Tensor, threshold: float = 0.93) -> Tensor:
    """Arguments and result as :func:`sod_ops.object_attention`; nothing is checked here."""
    logits = decoder_logits.to(torch.promote_types(encoder.dtype, torch.float32))
    # In this order NaN, which compares with nothing, makes NaN.
    factor = torch.where(logits >= lowest_kept_logit(threshold), 1.0, logits.sigmoid())
    return (encoder * factor).to(encoder.dtype)

"""TRACER's object attention: a composite of gate and a comparison of its logits."""

from typing import Any

import torch
from torch import Tensor

from sod_ops.ops import _checks
from sod_ops.ops._maps import promoted_under_autocast
from sod_ops.ops.gate import gate
from sod_ops.reference.object_attention import lowest_kept_logit

_OP = "object_attention"


def object_attention(decoder_logits: Tensor, encoder: Tensor, threshold: float = 0.93) -> Tensor:
    r"""TRACER's object attention: the encoder's map weighted by the decoder's map and what is not sure background in it.

    .. math:: y = e \cdot (s + b), \quad s = \sigma(d), \quad
        b = \begin{cases} 1 - s & 1 - s \leq t \\ 0 & \text{otherwise} \end{cases}

    for the encoder's map :math:`e`, the decoder's logits :math:`d` and the threshold :math:`t`. The comparison passes no
    gradient. So y is e where a pixel is not sure background (:math:`1 - s \leq t`), and its logit gets no gradient; it is
    e s elsewhere. That is what the authors' code computes, too, up to rounding: it adds e s and e (1 - s). It is
    :func:`sod_ops.gate` with the logits of what is kept raised to infinity. Under autocast both tensors are cast to the
    wider dtype of the two, as a product of them is.

    Args:
        decoder_logits: d, ``[N, 1, H, W]``, before the sigmoid; float32, float64, bfloat16 or float16.
        encoder: e, ``[N, C, H, W]``, of the dtype and device of ``decoder_logits``.
        threshold: t, from 0 to 1; the authors' ``denoise``.

    Contiguous and channels_last tensors, and slices such as ``out[:, :1]``, are read in place.

    Returns:
        ``[N, C, H, W]``, in the dtype and memory format of ``encoder``.

    Raises:
        TypeError: an argument is not a tensor (``threshold``: not a number), or has a dtype that does not fit.
        ValueError: a shape or a device does not fit, or ``threshold`` is below 0 or above 1.

    Source:
        Lee, Shin, Han: TRACER: Extreme Attention Guided Salient Object Tracing Network, AAAI 2022;
        ``ObjectAttention`` in the authors' code.
    """
    _check(decoder_logits, encoder, threshold)
    decoder_logits, encoder = promoted_under_autocast(decoder_logits, encoder)
    # Compared as the reference does it, in float32 at least.
    kept = decoder_logits.to(torch.promote_types(decoder_logits.dtype, torch.float32)) >= lowest_kept_logit(threshold)
    # The sigmoid of infinity is 1, and its derivative 0.
    return gate(encoder, torch.where(kept, torch.inf, decoder_logits))


def check_threshold(op: str, threshold: Any) -> None:
    """ValueError (TypeError for what is not a number) unless ``threshold`` lies within 0 and 1."""
    if not 0 <= _checks.check_number(op, "threshold", threshold) <= 1:
        _checks.bad_value(op, "threshold", "from 0 to 1", threshold)


def _check(decoder_logits: Tensor, encoder: Tensor, threshold: float) -> None:
    check_threshold(_OP, threshold)
    for argument, tensor in (("decoder_logits", decoder_logits), ("encoder", encoder)):
        _checks.check_tensor(_OP, argument, tensor)
        _checks.check_floating(_OP, argument, tensor)
    if encoder.dim() != 4:
        _checks.bad_value(_OP, "encoder", "of shape [N, C, H, W]", _checks.shape_of(encoder))
    samples, _, height, width = encoder.shape
    if decoder_logits.shape != (samples, 1, height, width):
        expected = f"of shape [{samples}, 1, {height}, {width}] beside encoder {_checks.shape_of(encoder)}"
        _checks.bad_value(_OP, "decoder_logits", expected, _checks.shape_of(decoder_logits))
    if decoder_logits.dtype != encoder.dtype and not torch.is_autocast_enabled(encoder.device.type):
        _checks.bad_type(_OP, "decoder_logits", f"{encoder.dtype} as encoder is", decoder_logits.dtype)
    _checks.check_same_device(_OP, "decoder_logits", decoder_logits.device, [("encoder", encoder)])

"""TRACER's object attention: the public function, its checks and its autograd."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sod_ops.backends import Kernels
from sod_ops.ops import _checks
from sod_ops.ops._maps import in_supported_layout, laid_out_like, promoted_under_autocast
from sod_ops.ops._operators import below_autograd, reference_gradients, register, transforms_active
from sod_ops.reference import object_attention as reference

_OP = "object_attention"


def object_attention(decoder_logits: Tensor, encoder: Tensor, threshold: float = 0.93) -> Tensor:
    r"""TRACER's object attention: the encoder's map weighted by the decoder's map and what is not sure background in it.

    .. math:: y = e \cdot (s + b), \quad s = \sigma(d), \quad
        b = \begin{cases} 1 - s & 1 - s \leq t \\ 0 & \text{otherwise} \end{cases}

    for the encoder's map :math:`e`, the decoder's logits :math:`d` and the threshold :math:`t`. The comparison passes no
    gradient. So y is e where a pixel is not sure background (:math:`1 - s \leq t`), and its logit gets no gradient; it is
    e s elsewhere. That is what the authors' code computes, too, up to rounding: it adds e s and e (1 - s). Factors are
    computed in float32 (float64 for float64), once for all channels of a pixel. Under autocast both tensors are cast to the
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
    try:
        return _call(decoder_logits, encoder, threshold)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        refusal = error
    # Only a call that failed pays for finding out which argument is at fault.
    _check(decoder_logits, encoder, threshold)
    raise refusal


def _call(decoder_logits: Tensor, encoder: Tensor, threshold: float) -> Tensor:
    check_threshold(_OP, threshold)
    device_type = "cpu" if encoder.is_cpu else encoder.device.type
    if decoder_logits.dtype != encoder.dtype:
        decoder_logits, encoder = promoted_under_autocast(decoder_logits, encoder)
    compiling = torch.compiler.is_compiling()
    if transforms_active():
        kernels = None
    else:
        kernels = _select.traced(device_type) if compiling else _select(device_type)
    if kernels is None or compiling or not kernels.check_arguments:
        _check(decoder_logits, encoder, threshold)
    if kernels is None:
        return reference.object_attention(decoder_logits, encoder, threshold)
    inputs = (
        in_supported_layout(decoder_logits),
        in_supported_layout(encoder),
        reference.lowest_kept_logit(threshold),
    )
    if compiling:
        return kernels.forward(*inputs)
    if torch.is_grad_enabled() and (decoder_logits.requires_grad or encoder.requires_grad):
        return _ObjectAttention.apply(kernels, threshold, *inputs)
    with below_autograd():
        return kernels.forward(*inputs)


class _ObjectAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: Kernels, threshold: float, *inputs: Any) -> Tensor:
        with below_autograd():
            output = kernels.forward(*inputs)
        ctx.kernels = kernels
        _save(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            return None, None, *_gradients(ctx, ctx.kernels.backward, *grad_outputs)
        with below_autograd():
            return None, None, *_gradients(ctx, ctx.kernels.backward, *grad_outputs)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    decoder_logits, encoder, ctx.lowest = inputs
    ctx.save_for_backward(decoder_logits, encoder)


def _gradients(
    ctx: Any, backward: Callable[..., tuple[Tensor, Tensor]], grad_output: Tensor
) -> tuple[Tensor | None, Tensor | None, None]:
    decoder_logits, encoder = ctx.saved_tensors
    if torch.is_grad_enabled():
        function = partial(reference.scaled_by_logits, lowest=ctx.lowest)
        grad_logits, grad_encoder = reference_gradients(function, (decoder_logits, encoder), grad_output)
        return grad_logits, grad_encoder, None
    grad_encoder, grad_logits = backward(laid_out_like(grad_output, encoder), decoder_logits, encoder, ctx.lowest)
    return grad_logits, grad_encoder, None


def _fake_forward(decoder_logits: Tensor, encoder: Tensor, lowest: float) -> Tensor:
    """``lowest`` is the lowest logit that is kept."""
    # Dispatch brings a call here where any tensor is on the meta device.
    _checks.check_same_device(_OP, "decoder_logits", decoder_logits.device, [("encoder", encoder)])
    return torch.empty_like(encoder)


def _fake_backward(
    grad_output: Tensor, decoder_logits: Tensor, encoder: Tensor, lowest: float
) -> tuple[Tensor, Tensor]:
    """Returns the gradients of encoder and, contiguous, of decoder_logits."""
    return torch.empty_like(encoder), decoder_logits.new_empty(decoder_logits.shape)


_select = register(_OP, forward=_fake_forward, backward=_fake_backward, save=_save, gradients=_gradients)


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
    if decoder_logits.dtype != encoder.dtype:
        _checks.bad_type(_OP, "decoder_logits", f"{encoder.dtype} as encoder is", decoder_logits.dtype)
    _checks.check_same_device(_OP, "decoder_logits", decoder_logits.device, [("encoder", encoder)])

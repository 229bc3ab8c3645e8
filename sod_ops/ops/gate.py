"""Maps scaled by gates of their channels, their pixels, or both: the public function, its checks and its autograd."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sod_ops.backends import Kernels
from sod_ops.ops import _checks
from sod_ops.ops._maps import as_laid_out, in_supported_layout
from sod_ops.ops._operators import below_autograd, reference_gradients, register, transforms_active
from sod_ops.reference.gate import gate as reference

_OP = "gate"
_SUMS = ("logits", "gates")


def gate(x: Tensor, logits: Tensor, other: Tensor | None = None, *, sum_of: str = "logits") -> Tensor:
    r"""A map scaled by the sigmoid of an attention map: a number for each channel, for each pixel, or of both.

    .. math:: y = x \, \sigma(a), \quad x \, \sigma(b), \quad x \, \sigma(a + b), \quad x \, (\sigma(a) + \sigma(b))

    The backward reads ``x`` and the result's gradient once, and writes the gradient of ``x`` and the sums that those of the
    logits are in the same pass. Sums and sigmoids are taken in float32 (float64 for float64).

    Args:
        x: ``[N, C, H, W]``, float32, float64, bfloat16 or float16. Contiguous and channels_last tensors, and slices of
            their batch or channels, are read in place.
        logits: ``[N, C, 1, 1]`` or ``[N, 1, H, W]``; float64 where ``x`` is, otherwise float32, bfloat16 or float16.
            Slices such as ``out[:, :1]`` are read in place.
        other: None, or the logits of the other shape: where ``logits`` are those of the channels, those of the pixels, or
            the other way round.
        sum_of: what is added where both are given: the ``"logits"``, or the ``"gates"``, as scSE does.

    Returns:
        ``[N, C, H, W]``, in the dtype and memory format of ``x``.

    Raises:
        TypeError: an argument is not a tensor, or has a dtype that does not fit.
        ValueError: a shape, a device or ``sum_of`` does not fit.

    Source:
        Woo, Park, Lee, Kweon: CBAM: Convolutional Block Attention Module, ECCV 2018, equation 1.
    """
    try:
        return _call(x, logits, other, sum_of)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        refusal = error
    # Only a call that failed pays for finding out which argument is at fault.
    _check(x, logits, other, sum_of)
    raise refusal


def _call(x: Tensor, logits: Tensor, other: Tensor | None, sum_of: str) -> Tensor:
    device_type = "cpu" if x.is_cpu else x.device.type
    compiling = torch.compiler.is_compiling()
    if transforms_active():
        kernels = None
    else:
        kernels = _select.traced(device_type) if compiling else _select(device_type)
    if kernels is None or compiling or not kernels.check_arguments or sum_of not in _SUMS:
        _check(x, logits, other, sum_of)
    if kernels is None:
        return reference(x, logits, other, sum_of=sum_of)
    inputs = (in_supported_layout(x), *_by_kind(x, logits, other), sum_of == "gates")
    if compiling:
        return kernels.forward(*inputs)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, logits, other)):
        return _Gate.apply(kernels, *inputs)
    with below_autograd():
        return kernels.forward(*inputs)


def _by_kind(x: Tensor, logits: Tensor, other: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The logits of the channels and those of the pixels; what has neither shape is for the operator to refuse."""
    first = in_supported_layout(logits)
    second = None if other is None else in_supported_layout(other)
    # A single pixel of a single channel is both.
    if logits.shape == (*x.shape[:2], 1, 1) and (other is None or other.shape == (x.shape[0], 1, *x.shape[2:])):
        return first, second
    return second, first


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: Kernels, *inputs: Any) -> Tensor:
        with below_autograd():
            y = kernels.forward(*inputs)
        ctx.kernels = kernels
        _save(ctx, inputs, y)
        return y

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            return None, *_gradients(ctx, ctx.kernels.backward, grad_output)
        with below_autograd():
            return None, *_gradients(ctx, ctx.kernels.backward, grad_output)


def _save(ctx: Any, inputs: tuple[Any, ...], _: Tensor) -> None:
    *tensors, ctx.sum_of_gates = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, backward: Callable[..., tuple[Tensor, ...]], grad_output: Tensor) -> tuple[Any, ...]:
    x, channel, spatial = ctx.saved_tensors
    if torch.is_grad_enabled():
        return *reference_gradients(_reference_by_kind, (x, channel, spatial, ctx.sum_of_gates), grad_output)[:3], None
    grad_x, grad_channel, grad_spatial = backward(as_laid_out(grad_output, x), x, channel, spatial, ctx.sum_of_gates)
    return grad_x, None if channel is None else grad_channel, None if spatial is None else grad_spatial, None


def _reference_by_kind(x: Tensor, channel: Tensor | None, spatial: Tensor | None, sum_of_gates: bool) -> Tensor:
    present = [logits for logits in (channel, spatial) if logits is not None]
    return reference(x, *present, sum_of="gates" if sum_of_gates else "logits")


def _fake_forward(
    x: Tensor, channel_logits: Tensor | None, spatial_logits: Tensor | None, sum_of_gates: bool
) -> Tensor:
    # Dispatch brings a call here where any tensor is on the meta device.
    logits = (("logits", channel_logits), ("logits", spatial_logits))
    _checks.check_same_device(_OP, "x", x.device, logits)
    return torch.empty_like(x)


def _fake_backward(
    grad_output: Tensor, x: Tensor, channel_logits: Tensor | None, spatial_logits: Tensor | None, sum_of_gates: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of x and of the logits; of logits that are not there, an empty one."""
    grads = [x.new_empty((0,)) if t is None else t.new_empty(t.shape) for t in (channel_logits, spatial_logits)]
    return torch.empty_like(x), grads[0], grads[1]


_select = register(_OP, forward=_fake_forward, backward=_fake_backward, save=_save, gradients=_gradients)


def _check(x: Tensor, logits: Tensor, other: Tensor | None, sum_of: str) -> None:
    _checks.check_map(_OP, "x", x, not_empty="")
    _checks.check_choice(_OP, "sum_of", sum_of, _SUMS)
    channel, spatial = (*x.shape[:2], 1, 1), (x.shape[0], 1, *x.shape[2:])
    tensors = (("logits", logits), ("other", other))
    for argument, value in tensors:
        _checks.check_tensor(_OP, argument, value, optional=argument == "other")
        if value is None:
            continue
        _checks.check_floating(_OP, argument, value)
        if (value.dtype == torch.float64) != (x.dtype == torch.float64):
            expected = "torch.float64" if x.dtype == torch.float64 else "float32, bfloat16 or float16"
            _checks.bad_type(_OP, argument, f"{expected} beside x of {x.dtype}", value.dtype)
        if value.shape not in (channel, spatial):
            expected = f"of shape {list(channel)} (channels) or {list(spatial)} (pixels)"
            _checks.bad_value(_OP, argument, expected, _checks.shape_of(value))
    if other is not None and {tuple(logits.shape), tuple(other.shape)} != {channel, spatial}:
        expected = f"of shape {list(channel if logits.shape == spatial else spatial)} beside such logits"
        _checks.bad_value(_OP, "other", expected, _checks.shape_of(other))
    _checks.check_same_device(_OP, "x", x.device, tensors)

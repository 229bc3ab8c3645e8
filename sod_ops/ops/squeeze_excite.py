"""Squeeze-and-excitation: the public function, its checks and its autograd."""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sod_ops import _extension
from sod_ops.backends import Kernels
from sod_ops.ops import _checks
from sod_ops.ops._maps import as_laid_out, in_supported_layout
from sod_ops.ops._operators import below_autograd, reference_gradients, register, transforms_active
from sod_ops.reference import squeeze_excite as reference

_OP = "squeeze_excite"
_ACTIVATION_INDEX = {name: index for index, name in enumerate(reference.ACTIVATIONS)}
_GATE_INDEX = {name: index for index, name in enumerate(reference.GATES)}
_ACTIVATION_NAMES = tuple(reference.ACTIVATIONS)
_GATE_NAMES = tuple(reference.GATES)


def squeeze_excite(
    x: Tensor,
    reduce_weight: Tensor | None,
    reduce_bias: Tensor | None,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    *,
    activation: str = "relu",
    gate: str = "sigmoid",
) -> Tensor:
    r"""Squeeze-and-excitation: every channel scaled by a gate computed from all channels' means.

    .. math:: y = x \cdot \mathrm{gate}(W_2\, \mathrm{activation}(W_1\, \overline{x} + b_1) + b_2)

    Sums, matrix products and activations are taken in float32 (float64 for float64).

    Args:
        x: ``[N, C, H, W]``, float32, float64, bfloat16 or float16. Contiguous and channels_last tensors, and slices of
            their batch or channels, are read in place.
        reduce_weight: ``[R, C]`` or ``[R, C, 1, 1]``; None leaves out the reduction, so that the means go straight into
            ``expand_weight`` (effective squeeze-and-excitation).
        reduce_bias: ``[R]`` or None.
        expand_weight: ``[C, R]`` or ``[C, R, 1, 1]`` (``R = C`` without ``reduce_weight``).
        expand_bias: ``[C]`` or None.
        activation: ``"relu"``, ``"relu6"``, ``"leaky_relu"`` (slope 0.01), ``"silu"``, ``"gelu"``, ``"gelu_tanh"``,
            ``"hardswish"``, ``"mish"`` or ``"identity"``. Without ``reduce_weight`` it is not applied.
        gate: ``"sigmoid"``, ``"hardsigmoid"`` (z/6 + 1/2, clamped) or ``"hardsigmoid_paddle"`` (z/5 + 1/2, clamped).

    The parameters share one dtype: that of ``x``, or float32 where ``x`` is bfloat16 or float16 (as under autocast).

    Returns:
        ``[N, C, H, W]``, in the dtype and memory format of ``x``.

    Raises:
        TypeError: an argument is not a tensor, or has a dtype that does not fit.
        ValueError: a shape, a device, ``activation`` or ``gate`` does not fit.
        RuntimeError: the backend ``"cuda"`` was asked for, and a sample does not fit on this GPU's chip.

    Source:
        Hu, Shen, Sun: Squeeze-and-Excitation Networks, CVPR 2018, equations 2 to 4.
    """
    try:
        return _call(
            x, reduce_weight, reduce_bias, expand_weight, expand_bias, _ACTIVATION_INDEX[activation], _GATE_INDEX[gate]
        )
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        refusal = error
    # Only a call that failed pays for finding out which argument is at fault: 8 us.
    _check(x, reduce_weight, reduce_bias, expand_weight, expand_bias, activation, gate)
    raise refusal


def _call(
    x: Tensor,
    reduce_weight: Tensor | None,
    reduce_bias: Tensor | None,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    activation: int,
    gate: int,
) -> Tensor:
    device_type = "cpu" if x.is_cpu else x.device.type
    compiling = torch.compiler.is_compiling()
    if transforms_active():
        kernels = None
    else:
        kernels = _select.traced(device_type) if compiling else _select(device_type)
        if kernels is not None and kernels.serves is not None:
            kernels = _select.serving(kernels, device_type, compiling, x, reduce_weight, expand_weight)
    if kernels is None or compiling or not kernels.check_arguments:
        _check(
            x, reduce_weight, reduce_bias, expand_weight, expand_bias, _ACTIVATION_NAMES[activation], _GATE_NAMES[gate]
        )
    if kernels is None:
        return _reference(activation, gate)(x, reduce_weight, reduce_bias, expand_weight, expand_bias)
    inputs = (
        in_supported_layout(x),
        None if reduce_weight is None else reduce_weight.contiguous(),
        None if reduce_bias is None else reduce_bias.contiguous(),
        expand_weight.contiguous(),
        None if expand_bias is None else expand_bias.contiguous(),
        activation,
        gate,
    )
    if compiling:
        return kernels.forward(*inputs)[0]
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs[:5]):
        return _SqueezeExcite.apply(kernels, *inputs)
    with below_autograd():
        return kernels.forward(*inputs)[0]


def _fits_on_chip(x: Tensor, reduce_weight: Tensor | None, expand_weight: Tensor, *, tracing: bool) -> bool:
    """Whether the CUDA kernel, which holds a sample on chip, is the one for this call.

    Does not depend on the number of samples, and while torch.compile traces not on sizes that are left open: no guard comes
    of it, and a program exported for any batch, or any size, stays one for any.
    """
    _, channels, height, width = x.shape
    pixels = height * width
    reduces = reduce_weight is not None
    hidden = expand_weight.numel() // max(channels, 1)
    if not tracing:
        return _is_for_chip(
            x.get_device(), channels, pixels, reduces, hidden, x.element_size(), expand_weight.element_size()
        )
    from torch.fx.experimental.symbolic_shapes import has_static_value

    if not (has_static_value(channels) and has_static_value(pixels) and has_static_value(hidden)):
        return False
    return _find_out_if_for_chip(
        x.get_device(), channels, pixels, reduces, hidden, x.element_size(), expand_weight.element_size()
    )


# What a cluster reads of weights in the time that a launch takes, which the kernel saves two of.
_WEIGHTS_OF_A_LAUNCH = 1 << 18


def _find_out_if_for_chip(
    device: int, channels: int, pixels: int, reduces: bool, hidden: int, item_size: int, weight_size: int
) -> bool:
    # Each sample's cluster reads all weights, which other kernels read once for several samples. They come from the L2
    # cache, about as fast as the sample comes from memory and goes there. (Argued, not measured.)
    weights = weight_size * channels * hidden * (2 if reduces else 1)
    if weights > max(2 * item_size * channels * pixels, _WEIGHTS_OF_A_LAUNCH):
        return False
    return _extension.squeeze_excite_fits(device, channels, pixels, reduces, hidden if reduces else 0, item_size)


_find_out_if_for_chip._dynamo_marked_constant = True  # type: ignore[attr-defined]
_is_for_chip = functools.lru_cache(maxsize=4096)(_find_out_if_for_chip)


def _reference(activation: int, gate: int) -> Callable[..., Tensor]:
    return partial(reference.squeeze_excite, activation=_ACTIVATION_NAMES[activation], gate=_GATE_NAMES[gate])


class _SqueezeExcite(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: Kernels, *inputs: Any) -> Tensor:
        with below_autograd():
            outputs = kernels.forward(*inputs)
        ctx.kernels = kernels
        _save(ctx, inputs, outputs)
        return outputs[0]

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            return None, *_gradients(ctx, ctx.kernels.backward, grad_output)
        with below_autograd():
            return None, *_gradients(ctx, ctx.kernels.backward, grad_output)


def _save(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.activation, ctx.gate = inputs
    ctx.save_for_backward(*tensors, outputs[1])
    ctx.set_materialize_grads(False)


def _gradients(
    ctx: Any, backward: Callable[..., tuple[Tensor, ...]], grad_output: Tensor | None, _: Tensor | None = None
) -> tuple[Any, ...]:
    if grad_output is None:
        return (None,) * 7
    x, reduce_weight, reduce_bias, expand_weight, expand_bias, statistics = ctx.saved_tensors
    if torch.is_grad_enabled():
        inputs = (x, reduce_weight, reduce_bias, expand_weight, expand_bias)
        return *reference_gradients(_reference(ctx.activation, ctx.gate), inputs, grad_output), None, None
    grad_x, grad_reduce_weight, grad_reduce_bias, grad_expand_weight, grad_expand_bias = backward(
        as_laid_out(grad_output, x), x, reduce_weight, expand_weight, statistics, ctx.activation, ctx.gate
    )
    return (
        grad_x,
        None if reduce_weight is None else grad_reduce_weight,
        None if reduce_bias is None else grad_reduce_bias,
        grad_expand_weight,
        None if expand_bias is None else grad_expand_bias,
        None,
        None,
    )


def _fake_forward(
    x: Tensor,
    reduce_weight: Tensor | None,
    reduce_bias: Tensor | None,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    activation: int,
    gate: int,
) -> tuple[Tensor, Tensor]:
    """Returns y and the statistics that the backward needs: the rows of [N, C + R + C] are m, z1 and z2."""
    # Dispatch brings a call here where any tensor is on the meta device.
    _checks.check_same_device(
        _OP, "x", x.device, _named_parameters(reduce_weight, reduce_bias, expand_weight, expand_bias)
    )
    channels = x.shape[1]
    reduced = 0 if reduce_weight is None else reduce_weight.shape[0]
    accumulator = torch.float64 if x.dtype == torch.float64 else torch.float32
    statistics = x.new_empty((x.shape[0], channels + reduced + channels), dtype=accumulator)
    return torch.empty_like(x), statistics


def _fake_backward(
    grad_output: Tensor,
    x: Tensor,
    reduce_weight: Tensor | None,
    expand_weight: Tensor,
    statistics: Tensor,
    activation: int,
    gate: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns the gradients of x, reduce_weight, reduce_bias, expand_weight and expand_bias.

    Without reduce_weight, the second and third are empty.
    """
    grad_x = torch.empty_like(x)
    if reduce_weight is None:
        grad_reduce_weight = expand_weight.new_empty((0,))
        grad_reduce_bias = expand_weight.new_empty((0,))
    else:
        grad_reduce_weight = reduce_weight.new_empty(reduce_weight.shape)
        grad_reduce_bias = reduce_weight.new_empty((reduce_weight.shape[0],))
    grad_expand_weight = expand_weight.new_empty(expand_weight.shape)
    grad_expand_bias = expand_weight.new_empty((expand_weight.shape[0],))
    return grad_x, grad_reduce_weight, grad_reduce_bias, grad_expand_weight, grad_expand_bias


_select = register(
    _OP,
    forward=_fake_forward,
    backward=_fake_backward,
    save=_save,
    gradients=_gradients,
    native=("cpu", "cuda"),
    serves={"cuda": _fits_on_chip},
)


def _check(
    x: Tensor,
    reduce_weight: Tensor | None,
    reduce_bias: Tensor | None,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    activation: str,
    gate: str,
) -> None:
    tensors = _named_parameters(reduce_weight, reduce_bias, expand_weight, expand_bias)
    _checks.check_tensor(_OP, "x", x)
    for argument, value in tensors:
        _checks.check_tensor(_OP, argument, value, optional=argument != "expand_weight")
    _checks.check_choice(_OP, "activation", activation, reference.ACTIVATIONS)
    _checks.check_choice(_OP, "gate", gate, reference.GATES)

    if x.dim() != 4:
        _checks.bad_value(_OP, "x", "of shape [N, C, H, W]", _checks.shape_of(x))
    _checks.check_floating(_OP, "x", x)
    dtype = expand_weight.dtype
    if dtype != x.dtype and not (dtype == torch.float32 and x.dtype in (torch.bfloat16, torch.float16)):
        allowed = f"{x.dtype} or torch.float32" if x.dtype in (torch.bfloat16, torch.float16) else f"{x.dtype}"
        _checks.bad_type(_OP, "expand_weight", f"{allowed} beside x of {x.dtype}", dtype)
    for argument, value in tensors:
        if value is not None and value.dtype != dtype:
            _checks.bad_type(_OP, argument, f"{dtype} as expand_weight is", value.dtype)
    _checks.check_same_device(_OP, "x", x.device, tensors)

    channels = x.shape[1]
    if reduce_weight is None:
        reduced = channels
        if reduce_bias is not None:
            _checks.bad_value(_OP, "reduce_bias", "None without reduce_weight", _checks.shape_of(reduce_bias))
    else:
        reduced = reduce_weight.shape[0] if reduce_weight.dim() else 0
        _check_weight("reduce_weight", reduce_weight, (reduced, channels), f"[R, {channels}]")
        _check_bias("reduce_bias", reduce_bias, reduced)
    _check_weight("expand_weight", expand_weight, (channels, reduced), f"[{channels}, {reduced}]")
    _check_bias("expand_bias", expand_bias, channels)


def _named_parameters(*parameters: Tensor | None) -> tuple[tuple[str, Tensor | None], ...]:
    return tuple(zip(("reduce_weight", "reduce_bias", "expand_weight", "expand_bias"), parameters, strict=True))


def _check_weight(argument: str, weight: Tensor, shape: tuple[int, int], expected: str) -> None:
    fits = weight.dim() in (2, 4) and weight.shape[0] == shape[0] and weight.shape[1] == shape[1]
    if not fits or (weight.dim() == 4 and (weight.shape[2] != 1 or weight.shape[3] != 1)):
        _checks.bad_value(_OP, argument, f"of shape {expected} or {expected[:-1]}, 1, 1]", _checks.shape_of(weight))


def _check_bias(argument: str, bias: Tensor | None, length: int) -> None:
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != length):
        _checks.bad_value(_OP, argument, f"of shape [{length}]", _checks.shape_of(bias))

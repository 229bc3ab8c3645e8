"""1x1 convolutions of the few pixels of a pyramid's levels, all of them in one call. Not a public op: what
:mod:`sod_ops.nn` and :mod:`sod_ops.accelerate` compute on a CPU in the place of convolutions that they find.

The weight of such a convolution is much larger than its maps, and what takes the time is to read it: the operator reads it
once, and in the backward writes its gradient in the same pass.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Conv2d, functional

from sod_ops.backends import Kernels
from sod_ops.ops import _checks
from sod_ops.ops._maps import dense, lies_in_planes
from sod_ops.ops._operators import below_autograd, reference_gradients, register, transforms_active

_OP = "pointwise_conv2d"

# Maps of more pixels are matrix products of PyTorch's. Measured by a script that is not here, on one core of an AMD EPYC
# with AVX2, float32, forward and backward together against such products, for 2048 channels to 512 and for 512 to 128: of 9
# pixels 4.2 and 2.1 times as fast, of 36 pixels 1.4 and 1.2, of 144 pixels 0.9 and 1.3, of 288 pixels 0.8 and 1.0; in
# channels_last of 9 pixels 1.5 and 1.0, of 36 pixels 1.0, of 144 pixels 0.8 and 1.0, of 288 pixels 0.7.
_MOST_PIXELS = 144


def pointwise_conv2d(maps: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor] = ()) -> list[Tensor]:
    """``conv2d(map, weight, bias)`` of every map with its own weight and bias, or without biases.

    Args:
        maps: ``[N, C_i, h_i, w_i]``, float32, float64, bfloat16 or float16.
        weights: ``[C_out_i, C_i, 1, 1]``.
        biases: ``[C_out_i]``, or none.

    Under autocast all tensors are cast as conv2d's are. Sums are taken in float32 (float64 for float64).

    Returns:
        ``[N, C_out_i, h_i, w_i]``, each in the dtype and memory format of its map.

    Raises:
        RuntimeError: what conv2d refuses, and tensors of several dtypes.
    """
    if torch.is_autocast_enabled(maps[0].device.type) and maps[0].dtype != torch.float64:
        dtype = torch.get_autocast_dtype(maps[0].device.type)
        with torch.autocast(maps[0].device.type, enabled=False):
            maps, weights, biases = ([tensor.to(dtype) for tensor in kind] for kind in (maps, weights, biases))
            return _call(maps, weights, biases)
    return _call(maps, weights, biases)


def is_pointwise(convolution: Any) -> bool:
    """Whether :func:`pointwise_conv2d` computes what the module ``convolution`` does, and no hook would miss its call."""
    return (
        type(convolution) is Conv2d
        and (convolution.kernel_size, convolution.stride, convolution.groups) == ((1, 1), (1, 1), 1)
        and convolution.padding in ((0, 0), "same", "valid")
        and "forward" not in convolution.__dict__
        and not any(
            getattr(convolution, f"_{kind}_hooks") for kind in ("forward_pre", "forward", "backward_pre", "backward")
        )
    )


def parameters_of(convolutions: Sequence[Any]) -> tuple[list[Tensor], list[Tensor]]:
    """The weights and biases of such modules, all of which have a bias, or none."""
    biases = [convolution.bias for convolution in convolutions if convolution.bias is not None]
    return [convolution.weight for convolution in convolutions], biases


def _call(maps: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor]) -> list[Tensor]:
    few = [i for i, map_ in enumerate(maps) if map_.shape[0] * map_.shape[2] * map_.shape[3] <= _MOST_PIXELS]
    if len(few) == len(maps):
        return _call_of_few(maps, weights, biases)
    found = iter(_call_of_few(*([kind[i] for i in few] if kind else [] for kind in (maps, weights, biases))))
    return [
        next(found) if i in few else _matrix_product(map_, weights[i], biases[i] if biases else None)
        for i, map_ in enumerate(maps)
    ]


def _call_of_few(maps: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor]) -> list[Tensor]:
    if not maps:
        return []
    device_type = maps[0].device.type
    compiling = torch.compiler.is_compiling()
    if transforms_active():
        kernels = None
    else:
        kernels = _select.traced(device_type) if compiling else _select(device_type)
    if kernels is None:
        return list(_reference(len(maps), *maps, *weights, *biases))
    maps = [dense(map_) for map_ in maps]
    weights = [weight.contiguous() for weight in weights]
    biases = [bias.contiguous() for bias in biases]
    if compiling:
        return kernels.forward(maps, weights, biases)
    tensors = (*maps, *weights, *biases)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return list(_PointwiseConv2d.apply(kernels, len(maps), *tensors))
    with below_autograd():
        return kernels.forward(maps, weights, biases)


def _matrix_product(map_: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``conv2d(map_, weight, bias)``, 1x1, of more pixels: oneDNN's convolution takes up to three times as long."""
    weight = weight.flatten(1)
    samples, channels, height, width = map_.shape
    pixels = map_.permute(0, 2, 3, 1).reshape(-1, channels)
    if not map_.is_contiguous():
        return functional.linear(pixels, weight, bias).view(samples, height, width, len(weight)).permute(0, 3, 1, 2)
    product = weight @ pixels.T if bias is None else torch.addmm(bias[:, None], weight, pixels.T)
    return product.view(len(weight), samples, height, width).transpose(0, 1).contiguous()


def _lists(count: int, tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
    """Maps, weights and biases."""
    return tensors[:count], tensors[count : 2 * count], tensors[2 * count :]


def _reference(count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
    maps, weights, biases = _lists(count, tensors)
    if not biases:
        return tuple(map(functional.conv2d, maps, weights))
    return tuple(map(functional.conv2d, maps, weights, biases))


def _like(grad: Tensor, map_: Tensor) -> Tensor:
    """``grad`` in the memory format of the convolution of ``map_``."""
    return grad.contiguous(memory_format=torch.contiguous_format if lies_in_planes(map_) else torch.channels_last)


class _PointwiseConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: Kernels, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.kernels = kernels
        ctx.count = count
        ctx.save_for_backward(*tensors)
        with below_autograd():
            return tuple(kernels.forward(*_lists(count, tensors)))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            return None, None, *_reference_gradients(ctx.count, ctx.saved_tensors, grad_outputs)
        needed = ctx.needs_input_grad[2:]
        with below_autograd():
            gradients = _backward(ctx.kernels.backward, ctx.count, ctx.saved_tensors, grad_outputs, needed)
        return None, None, *gradients


def _reference_gradients(
    count: int, tensors: Sequence[Tensor], grad_outputs: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    def reference(*tensors: Tensor) -> tuple[Tensor, ...]:
        return _reference(count, *tensors)

    return reference_gradients(reference, tensors, tuple(grad_outputs))


def _backward(
    backward: Callable[..., tuple[list[Tensor], list[Tensor], list[Tensor]]],
    count: int,
    tensors: Sequence[Tensor],
    grad_outputs: Sequence[Tensor],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of maps, weights and biases, None for kinds of which none is needed."""
    maps, weights, _ = _lists(count, tensors)
    grads = [_like(grad, map_) for grad, map_ in zip(grad_outputs, maps, strict=True)]
    kinds = [any(needed[start : start + count]) for start in range(0, 3 * count, count)]
    gradients = backward(grads, maps, weights, *kinds)
    found: list[Tensor | None] = []
    for kind in gradients:
        found += kind or [None] * count
    return found[: len(tensors)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Sequence[Tensor]) -> None:
    maps, weights, biases = inputs
    ctx.count = len(maps)
    ctx.save_for_backward(*maps, *weights, *biases)


def _gradients(ctx: Any, backward: Callable[..., Any], grad_outputs: Sequence[Tensor]) -> tuple[Any, ...]:
    count, tensors = ctx.count, ctx.saved_tensors
    if torch.is_grad_enabled():
        found: Sequence[Tensor | None] = _reference_gradients(count, tensors, grad_outputs)
    else:
        found = _backward(backward, count, tensors, grad_outputs, [True] * len(tensors))
    return tuple(list(kind) for kind in _lists(count, found))  # type: ignore[arg-type]


def _fake_forward(maps: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor]) -> list[Tensor]:
    _checks.check_same_device(_OP, "maps[0]", maps[0].device, [("weights", weight) for weight in weights])
    return [_empty(map_, weight.shape[0]) for map_, weight in zip(maps, weights, strict=True)]


def _fake_backward(
    grads: Sequence[Tensor],
    maps: Sequence[Tensor],
    weights: Sequence[Tensor],
    of_maps: bool,
    of_weights: bool,
    of_biases: bool,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The gradients of maps, weights and biases, each none where it is not wanted."""
    return (
        [_empty(map_, map_.shape[1]) for map_ in maps] if of_maps else [],
        [torch.empty_like(weight) for weight in weights] if of_weights else [],
        [weight.new_empty(weight.shape[0]) for weight in weights] if of_biases else [],
    )


def _empty(map_: Tensor, channels: int) -> Tensor:
    memory_format = torch.contiguous_format if lies_in_planes(map_) else torch.channels_last
    return torch.empty(
        (map_.shape[0], channels, *map_.shape[2:]), dtype=map_.dtype, device=map_.device, memory_format=memory_format
    )


_select = register(_OP, forward=_fake_forward, backward=_fake_backward, save=_save, gradients=_gradients, triton=False)

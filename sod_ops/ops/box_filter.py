"""The average filter: the public function, its checks and its autograd."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sod_ops.backends import Kernels
from sod_ops.ops import _checks
from sod_ops.ops._operators import below_autograd, register, transforms_active
from sod_ops.reference.box_filter import box_filter as reference

_OP = "box_filter"


def box_filter(mask: Tensor, kernel_size: int) -> Tensor:
    r"""Average over a square window around every pixel; beyond the image are zeros, and they count.

    .. math:: A_k(m)_{y,x} = \frac{1}{k^2} \sum_{|i| \le (k-1)/2} \sum_{|j| \le (k-1)/2} m_{y+i,\,x+j}

    ``torch.nn.functional.avg_pool2d(mask, k, stride=1, padding=k // 2)`` in a time that does not depend on the window: sums
    of runs of pixels are shared between windows. Nothing is subtracted, so errors do not build up along the image, and an
    infinity or NaN reaches no window but those that hold it.

    Args:
        mask: ``[..., H, W]``, float32, float64, bfloat16, float16, bool, uint8, int8, int16, int32 or int64, of any strides.
        kernel_size: k, the window's height and width in pixels: odd. It may exceed the image.

    Returns:
        The averages, in the shape and dtype of ``mask``, in float32 for integers and booleans. Sums are taken in float32, in
        float64 for float64. The gradient is the same filter of the incoming gradient.

    Raises:
        TypeError: ``mask`` is not a tensor of these dtypes or ``kernel_size`` not an integer.
        ValueError: ``mask`` has fewer than two dimensions, ``kernel_size`` is even or below 1.

    Source:
        van Herk: A fast algorithm for local minimum and maximum filters on rectangular and octagonal kernels, 1992, with
        sums in place of extrema.
    """
    try:
        return _call(mask, kernel_size)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        refusal = error
    # Only a call that failed pays for finding out which argument is at fault.
    _check(mask, kernel_size)
    raise refusal


def _call(mask: Tensor, kernel_size: int) -> Tensor:
    device_type = "cpu" if mask.is_cpu else mask.device.type
    compiling = torch.compiler.is_compiling()
    if transforms_active():
        kernels = None
    else:
        kernels = _select.traced(device_type) if compiling else _select(device_type)
    # Whole numbers of other types, and True, which is one to the operators.
    if kernels is None or compiling or not kernels.check_arguments or type(kernel_size) is not int:
        _check(mask, kernel_size)
    if kernels is None:
        return reference(mask, kernel_size)
    if compiling:
        return kernels.forward(mask, kernel_size)
    if torch.is_grad_enabled() and mask.requires_grad:
        return _BoxFilter.apply(kernels, mask, kernel_size)
    with below_autograd():
        return kernels.forward(mask, kernel_size)


class _BoxFilter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: Kernels, mask: Tensor, kernel_size: int) -> Tensor:
        ctx.kernels = kernels
        _save(ctx, (mask, kernel_size), None)
        return kernels.forward(mask, kernel_size)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> tuple[Any, ...]:
        return None, *_gradients(ctx, ctx.kernels.backward, grad_output)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, ctx.kernel_size = inputs
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, backward: Callable[..., Tensor], grad_output: Tensor | None) -> tuple[Tensor | None, None]:
    if grad_output is None:
        return None, None
    # Where it shall be differentiated again: the formula, which autograd sees.
    apply = reference if torch.is_grad_enabled() else backward
    return apply(grad_output, ctx.kernel_size), None


def _fake_forward(mask: Tensor, kernel_size: int) -> Tensor:
    return torch.empty_like(mask, dtype=mask.dtype if mask.is_floating_point() else torch.float32)


def _fake_backward(grad_output: Tensor, kernel_size: int) -> Tensor:
    return torch.empty_like(grad_output)


_select = register(_OP, forward=_fake_forward, backward=_fake_backward, save=_save, gradients=_gradients)


def _check(mask: Tensor, kernel_size: int) -> None:
    _checks.check_tensor(_OP, "mask", mask)
    if mask.dtype not in _checks.READABLE:
        _checks.bad_type(_OP, "mask", "floating, bool, uint8 or a signed integer", mask.dtype)
    if mask.dim() < 2:
        _checks.bad_value(_OP, "mask", "of shape [..., H, W]", _checks.shape_of(mask))
    _checks.check_window(_OP, "kernel_size", kernel_size)

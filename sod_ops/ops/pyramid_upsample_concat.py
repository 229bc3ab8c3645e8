"""Upsampling of a pyramid's branches into a concatenation: the public function, its checks and its autograd."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sod_ops.backends import Kernels
from sod_ops.ops import _checks
from sod_ops.ops._maps import in_supported_layout, lies_in_planes, promoted_under_autocast
from sod_ops.ops._operators import below_autograd, reference_gradients, register, transforms_active
from sod_ops.reference.pyramid_upsample_concat import pyramid_upsample_concat as reference

_OP = "pyramid_upsample_concat"


def pyramid_upsample_concat(
    x: Tensor, branches: Sequence[Tensor], *, align_corners: bool = False, x_first: bool = True
) -> Tensor:
    r"""``x`` and the bilinearly resized ``branches``, concatenated along the channels: one write of the result.

    .. math:: y = \mathrm{concat}(x, \mathrm{up}(b_1), \ldots, \mathrm{up}(b_k))

    Sums are taken in float32 (float64 for float64). The gradient of ``x`` is a slice of that of the result, as
    ``torch.cat`` has it; those of the branches are gathered: they are bitwise the same from run to run. Under autocast the
    tensors are cast to the widest dtype among them, as ``torch.cat`` does it.

    Args:
        x: ``[N, C, H, W]``, float32, float64, bfloat16 or float16; C, H and W at least 1. Contiguous and channels_last
            tensors, and slices of their batch or channels, are read in place.
        branches: one or more tensors ``[N, C_i, h_i, w_i]`` of the dtype and device of ``x``, of any size from 1 x 1;
            larger than ``x`` is allowed too.
        align_corners: where outputs lie among inputs, as in ``torch.nn.functional.interpolate``.
        x_first: whether ``x`` comes before the branches or after them.

    Returns:
        ``[N, C + sum(C_i), H, W]``, in the dtype and memory format of ``x``.

    Raises:
        TypeError: an argument is not a tensor, has a dtype that does not fit, or is not a bool.
        ValueError: a shape or a device does not fit, or there is no branch.

    Source:
        Zhao et al.: Pyramid Scene Parsing Network, CVPR 2017, section 3.2.
    """
    try:
        return _call(x, branches, align_corners, x_first)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        refusal = error
    # Only a call that failed pays for finding out which argument is at fault.
    _check(x, branches, align_corners, x_first)
    raise refusal


def _call(x: Tensor, branches: Sequence[Tensor], align_corners: bool, x_first: bool) -> Tensor:
    _check_flags(align_corners, x_first)
    device_type = "cpu" if x.is_cpu else x.device.type
    x, *branches = promoted_under_autocast(x, *branches)
    compiling = torch.compiler.is_compiling()
    if transforms_active():
        kernels = None
    else:
        kernels = _select.traced(device_type) if compiling else _select(device_type)
    if kernels is None or compiling or not kernels.check_arguments:
        _check(x, branches, align_corners, x_first)
    if kernels is None:
        return reference(x, branches, align_corners=align_corners, x_first=x_first)
    x = in_supported_layout(x)
    memory_format = torch.contiguous_format if lies_in_planes(x) else torch.channels_last
    maps = [branch.contiguous(memory_format=memory_format) for branch in branches]
    if compiling:
        return kernels.forward(x, maps, align_corners, x_first)
    if torch.is_grad_enabled() and (x.requires_grad or any(branch.requires_grad for branch in maps)):
        return _PyramidUpsampleConcat.apply(kernels, align_corners, x_first, x, *maps)
    with below_autograd():
        return kernels.forward(x, maps, align_corners, x_first)


class _PyramidUpsampleConcat(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: Kernels, align_corners: bool, x_first: bool, x: Tensor, *branches: Tensor) -> Tensor:
        with below_autograd():
            output = kernels.forward(x, branches, align_corners, x_first)
        ctx.kernels = kernels
        _save(ctx, (x, branches, align_corners, x_first), output)
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        (grad_output,) = grad_outputs
        grad_branches: Sequence[Tensor | None]
        if torch.is_grad_enabled():
            grad_x, grad_branches, *_ = _gradients(ctx, ctx.kernels.backward, grad_output)
        elif any(ctx.needs_input_grad[4:]):
            with below_autograd():
                grad_x, grad_branches, *_ = _gradients(ctx, ctx.kernels.backward, grad_output)
        else:
            grad_x, grad_branches = _of_x(ctx, grad_output), [None] * (len(ctx.shapes) - 1)
        return None, None, None, grad_x, *grad_branches


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    # The op is linear: its gradient needs nothing of x and the branches but their shapes.
    x, branches, ctx.align_corners, ctx.x_first = inputs
    ctx.shapes = [x.shape, *(branch.shape for branch in branches)]
    ctx.channels_last = not lies_in_planes(x)


def _of_x(ctx: Any, grad_output: Tensor) -> Tensor:
    """The part of ``grad_output`` that belongs to x: a view."""
    channels = ctx.shapes[0][1]
    return grad_output.narrow(1, 0 if ctx.x_first else grad_output.shape[1] - channels, channels)


def _gradients(
    ctx: Any, backward: Callable[..., list[Tensor]], grad_output: Tensor
) -> tuple[Tensor | None, Sequence[Tensor | None], None, None]:
    if torch.is_grad_enabled():
        inputs = [grad_output.new_zeros(()).expand(shape).requires_grad_() for shape in ctx.shapes]
        function = partial(_reference_of_maps, align_corners=ctx.align_corners, x_first=ctx.x_first)
        grad_x, *grad_branches = reference_gradients(function, inputs, grad_output)
        return grad_x, grad_branches, None, None
    memory_format = torch.channels_last if ctx.channels_last else torch.contiguous_format
    of_branches = backward(
        grad_output.contiguous(memory_format=memory_format),
        [size for shape in ctx.shapes[1:] for size in shape[1:]],
        ctx.align_corners,
        ctx.x_first,
        ctx.channels_last,
    )
    return _of_x(ctx, grad_output), of_branches, None, None


def _reference_of_maps(x: Tensor, *branches: Tensor, align_corners: bool, x_first: bool) -> Tensor:
    return reference(x, branches, align_corners=align_corners, x_first=x_first)


def _fake_forward(x: Tensor, branches: Sequence[Tensor], align_corners: bool, x_first: bool) -> Tensor:
    # Dispatch brings a call here where any tensor is on the meta device.
    _checks.check_same_device(_OP, "x", x.device, _named(branches))
    samples, channels, height, width = x.shape
    channels = channels + sum(branch.shape[1] for branch in branches)
    return _empty(x, (samples, channels, height, width), channels_last=not lies_in_planes(x))


def _fake_backward(
    grad_output: Tensor, branch_shapes: Sequence[int], align_corners: bool, x_first: bool, channels_last: bool
) -> list[Tensor]:
    """The gradients of the branches, whose (C_i, h_i, w_i) ``branch_shapes`` lists."""
    shapes = zip(*(branch_shapes[i::3] for i in range(3)), strict=True)
    return [_empty(grad_output, (grad_output.shape[0], *shape), channels_last=channels_last) for shape in shapes]


def _empty(like: Tensor, shape: tuple[int, ...], *, channels_last: bool) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


_select = register(_OP, forward=_fake_forward, backward=_fake_backward, save=_save, gradients=_gradients)


def _named(branches: Sequence[Tensor]) -> list[tuple[str, Tensor]]:
    return [(f"branches[{i}]", branch) for i, branch in enumerate(branches)]


def _check(x: Tensor, branches: Sequence[Tensor], align_corners: bool, x_first: bool) -> None:
    _checks.check_map(_OP, "x", x)
    if not isinstance(branches, (tuple, list)):
        _checks.bad_type(_OP, "branches", "a sequence of tensors", type(branches).__name__)
    if not branches:
        _checks.bad_value(_OP, "branches", "at least one tensor", branches)
    for argument, branch in _named(branches):
        _checks.check_map(_OP, argument, branch)
        if branch.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
            _checks.bad_type(_OP, argument, f"{x.dtype} as x is", branch.dtype)
        if branch.shape[0] != x.shape[0]:
            _checks.bad_value(_OP, argument, f"of shape [{x.shape[0]}, C, h, w] beside x", _checks.shape_of(branch))
    _checks.check_same_device(_OP, "x", x.device, _named(branches))
    _check_flags(align_corners, x_first)


def _check_flags(align_corners: bool, x_first: bool) -> None:
    """The dispatcher takes None for False."""
    for argument, value in (("align_corners", align_corners), ("x_first", x_first)):
        _checks.check_bool(_OP, argument, value)

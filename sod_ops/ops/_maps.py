"""How maps [N, C, H, W] lie in memory, for the ops that read them in place."""

from functools import reduce

import torch
from torch import Tensor

from sod_ops.ops import _checks


def in_supported_layout(x: Tensor) -> Tensor:
    """``x`` itself where the kernels read it in place: one sample's planes, or its pixels, lie at a fixed step."""
    if x.is_contiguous():
        return x
    samples, channels, height, width = x.shape
    sample_step, channel_step, row_step, column_step = x.stride()
    pixels = height * width
    planar = (
        column_step == 1
        and row_step == width
        and _are_apart(channel_step, channels, pixels)
        and _are_apart(sample_step, samples, pixels)
    )
    interleaved = (
        channel_step == 1
        and row_step == width * column_step
        and _are_apart(column_step, pixels, channels)
        and _are_apart(sample_step, samples, channels)
    )
    return x if planar or interleaved else x.contiguous()


def dense(x: Tensor) -> Tensor:
    """``x`` itself where it is contiguous or channels_last."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous()


def lies_in_planes(x: Tensor) -> bool:
    """Whether the results for ``x``, in a supported layout, are contiguous; otherwise they are channels_last."""
    _, _, height, width = x.shape
    if width > 1:
        return x.stride(3) == 1
    return height <= 1 or x.stride(2) == 1


def as_laid_out(grad_output: Tensor, x: Tensor) -> Tensor:
    """``grad_output`` with the strides that the output for ``x`` has: the kernels walk both with one index."""
    if x.is_contiguous():
        return grad_output.contiguous()
    if grad_output.stride() == x.stride():
        return grad_output
    like = torch.empty_like(x)
    return grad_output if grad_output.stride() == like.stride() else like.copy_(grad_output)


def beside_gradient(other: Tensor, channels_last: bool) -> Tensor:
    """``other``, a gradient of a map in this memory format, where a kernel can add it to what it writes."""
    other = in_supported_layout(other)
    if lies_in_planes(other) == channels_last:
        other = other.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    return other


def promoted_under_autocast(*tensors: Tensor) -> list[Tensor]:
    """``tensors`` in the widest dtype among them, where autocast is on for the device of the first."""
    dtypes = {tensor.dtype for tensor in tensors}
    unlike = len(dtypes) > 1 and dtypes.issubset(_checks.FLOATING)
    if not unlike or not torch.is_autocast_enabled(tensors[0].device.type):
        return list(tensors)
    dtype = reduce(torch.promote_types, dtypes)
    return [tensor.to(dtype) for tensor in tensors]


def _are_apart(step: int, count: int, extent: int) -> bool:
    """Whether ``count`` runs of ``extent`` elements, ``step`` from one to the next, share no memory, or share it all."""
    return count <= 1 or step == 0 or step >= extent

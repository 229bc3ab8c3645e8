"""CutMix's pasting in Triton: one launch, and one for its gradient.

The batch is walked as lines of memory: a row of a plane where planes are contiguous, a row of pixels with all their
channels where those lie side by side (channels_last). One program writes a tile of lines and columns. Which box a line
meets is read on the device; the gradient is summed in float32 (float64 for float64), two terms at most.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: N803 (compile-time constants in capitals, as everywhere in Triton)

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sod_ops.triton._planes import aligned, device_guard, map_steps, power_of_two
from sod_ops.triton._rows import store, tile

# Elements: 16 for each of 128 threads; fewer where each takes two registers, or an address and two predicates of its own, of
# which a thread has seven: with 8 unaligned bytes to a thread they are spilled.
_TILE = 2048
_DOUBLE_TILE = 1024
_NARROW_TILE = 512
_NUMBERS = ("lines", "length", "column_length", "planes", "height", "sample_step", "plane_step")
_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by size: copying is blind to the dtype


@triton.jit
def _inside(boxes, sample, y, x, column_length, real):
    """Which elements of the lines lie within their samples' boxes [B, 4]; of ``real`` lines."""
    box = boxes + sample * 4
    x1 = tl.load(box, mask=real, other=0) * column_length
    y1 = tl.load(box + 1, mask=real, other=0)
    x2 = tl.load(box + 2, mask=real, other=0) * column_length
    y2 = tl.load(box + 3, mask=real, other=0)
    return (y >= y1) & (y < y2) & (x >= x1) & (x < x2) & real


@triton.jit(do_not_specialize=_NUMBERS)
def paste_kernel(
    images,  # [B, C, H, W], its lines at their steps
    partner,  # [B]
    boxes,  # [B, 4]
    pasted,  # [B, C, H, W], dense
    lines: tl.int64,
    length: tl.int64,
    column_length: tl.int64,
    planes: tl.int64,
    height: tl.int64,
    sample_step: tl.int64,
    plane_step: tl.int64,
    ALIGNMENT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """pasted = images[partner] within the boxes, images elsewhere."""
    line, x, mask, to = tile(lines, length, ALIGNMENT, BLOCK_R, BLOCK_C)
    sample, y = line // height // planes, line % height
    place = line // height % planes * aligned(plane_step, ALIGNMENT) + y * aligned(length, ALIGNMENT) + x
    value = tl.load(images + sample * aligned(sample_step, ALIGNMENT) + place, mask=mask)
    inside = mask & _inside(boxes, sample, y, x, column_length, line < lines)
    # Most tiles meet no box.
    if tl.max(tl.max(inside.to(tl.int32), 1), 0) > 0:
        other = tl.load(partner + sample, mask=line < lines, other=0)
        others = tl.load(images + other * aligned(sample_step, ALIGNMENT) + place, mask=inside)
        value = tl.where(inside, others, value)
    tl.store(pasted + to, value, mask=mask)


@triton.jit(do_not_specialize=_NUMBERS)
def paste_backward_kernel(
    grad_output,  # [B, C, H, W], its lines at their steps
    receiver,  # [B]
    boxes,  # [B, 4]
    gradient,  # [B, C, H, W], dense
    lines: tl.int64,
    length: tl.int64,
    column_length: tl.int64,
    planes: tl.int64,
    height: tl.int64,
    sample_step: tl.int64,
    plane_step: tl.int64,
    ALIGNMENT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """gradient = grad_output outside the boxes + grad_output[receiver] within the receivers' boxes."""
    line, x, mask, to = tile(lines, length, ALIGNMENT, BLOCK_R, BLOCK_C)
    sample, y = line // height // planes, line % height
    place = line // height % planes * aligned(plane_step, ALIGNMENT) + y * aligned(length, ALIGNMENT) + x
    real = line < lines
    other = tl.load(receiver + sample, mask=real, other=0)
    kept = mask & ~_inside(boxes, sample, y, x, column_length, real)
    given = mask & _inside(boxes, other, y, x, column_length, real)
    own = tl.load(grad_output + sample * aligned(sample_step, ALIGNMENT) + place, mask=kept, other=0.0)
    others = tl.load(grad_output + other * aligned(sample_step, ALIGNMENT) + place, mask=given, other=0.0)
    if own.dtype != tl.float64:
        own, others = own.to(tl.float32), others.to(tl.float32)
    store(gradient + to, own + others, mask)


class _Walk(NamedTuple):
    grid: tuple[int]
    numbers: tuple[int, ...]  # _NUMBERS
    constants: dict[str, int]


def _plan(images: Tensor) -> _Walk:
    """One program for each tile of lines."""
    samples, channels, height, width = images.shape
    interleaved, sample_step, step = map_steps(images.shape, images.stride())
    planes, column_length, plane_step = (1, channels, 0) if interleaved else (channels, 1, step)
    lines, length = samples * planes * height, width * column_length
    bits = length | sample_step | plane_step | 16
    alignment = bits & -bits
    largest = _NARROW_TILE if alignment == 1 else _DOUBLE_TILE if images.element_size() == 8 else _TILE
    block_c = min(power_of_two(length), largest)
    block_r = min(power_of_two(lines), largest // block_c)
    return _Walk(
        (triton.cdiv(lines, block_r) * triton.cdiv(length, block_c),),
        (lines, length, column_length, planes, height, sample_step, plane_step),
        {"ALIGNMENT": alignment, "BLOCK_R": block_r, "BLOCK_C": block_c},
    )


def _empty(images: Tensor) -> Tensor:
    interleaved = map_steps(images.shape, images.stride())[0]
    memory_format = torch.channels_last if interleaved else torch.contiguous_format
    return torch.empty(images.shape, dtype=images.dtype, device=images.device, memory_format=memory_format)


def cutmix(images: Tensor, partner: Tensor, boxes: Tensor) -> Tensor:
    """The images after pasting; arguments as those of the operator, in one of the two memory formats."""
    pasted = _empty(images)
    if images.numel():
        walk, whole = _plan(images), _WHOLE[images.element_size()]
        with device_guard(images):
            paste_kernel[walk.grid](
                images.view(whole), partner, boxes, pasted.view(whole), *walk.numbers, **walk.constants
            )
    return pasted


def cutmix_backward(grad_output: Tensor, receiver: Tensor, boxes: Tensor) -> Tensor:
    """The gradient of the images."""
    gradient = _empty(grad_output)
    if gradient.numel():
        walk = _plan(grad_output)
        with device_guard(grad_output):
            paste_backward_kernel[walk.grid](grad_output, receiver, boxes, gradient, *walk.numbers, **walk.constants)
    return gradient


def ahead_of_time_cases() -> Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Launcher calls, on the meta device, whose launches together need every variant that is worth compiling ahead."""
    partner, boxes = (torch.empty(shape, dtype=torch.int64, device="meta") for shape in ((8,), (8, 4)))
    for dtype in (torch.uint8, torch.bfloat16, torch.float16, torch.float32, torch.float64):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            images = torch.empty((8, 3, 224, 224), dtype=dtype, device="meta").to(memory_format=memory_format)
            yield cutmix, (images, partner, boxes)
            if dtype.is_floating_point:
                yield cutmix_backward, (images, partner, boxes)
    yield cutmix, (torch.empty((8, 1, 321, 321), dtype=torch.uint8, device="meta"), partner, boxes)

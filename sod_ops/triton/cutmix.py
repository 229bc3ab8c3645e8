"""CutMix's pasting in Triton: one launch, and one for its gradient.

One program writes a tile of lines of memory (_lines.py) and columns. Which box a line meets is read on the device; the
gradient is summed in float32 (float64 for float64), two terms at most.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: N803 (compile-time constants in capitals, as everywhere in Triton)

from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sod_ops.triton._lines import NUMBERS, WHOLE, new_images, place_of, plan_lines
from sod_ops.triton._planes import aligned, device_guard
from sod_ops.triton._rows import store, tile


@triton.jit
def _inside(boxes, sample, y, x, column_length, real):
    """Which elements of the lines lie within their samples' boxes [B, 4]; of ``real`` lines."""
    box = boxes + sample * 4
    x1 = tl.load(box, mask=real, other=0) * column_length
    y1 = tl.load(box + 1, mask=real, other=0)
    x2 = tl.load(box + 2, mask=real, other=0) * column_length
    y2 = tl.load(box + 3, mask=real, other=0)
    return (y >= y1) & (y < y2) & (x >= x1) & (x < x2) & real


@triton.jit(do_not_specialize=NUMBERS)
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
    sample, y, place = place_of(line, x, length, planes, height, plane_step, ALIGNMENT)
    value = tl.load(images + sample * aligned(sample_step, ALIGNMENT) + place, mask=mask)
    inside = mask & _inside(boxes, sample, y, x, column_length, line < lines)
    # Most tiles meet no box.
    if tl.max(tl.max(inside.to(tl.int32), 1), 0) > 0:
        other = tl.load(partner + sample, mask=line < lines, other=0)
        others = tl.load(images + other * aligned(sample_step, ALIGNMENT) + place, mask=inside)
        value = tl.where(inside, others, value)
    tl.store(pasted + to, value, mask=mask)


@triton.jit(do_not_specialize=NUMBERS)
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
    sample, y, place = place_of(line, x, length, planes, height, plane_step, ALIGNMENT)
    real = line < lines
    other = tl.load(receiver + sample, mask=real, other=0)
    kept = mask & ~_inside(boxes, sample, y, x, column_length, real)
    given = mask & _inside(boxes, other, y, x, column_length, real)
    own = tl.load(grad_output + sample * aligned(sample_step, ALIGNMENT) + place, mask=kept, other=0.0)
    others = tl.load(grad_output + other * aligned(sample_step, ALIGNMENT) + place, mask=given, other=0.0)
    if own.dtype != tl.float64:
        own, others = own.to(tl.float32), others.to(tl.float32)
    store(gradient + to, own + others, mask)


def cutmix(images: Tensor, partner: Tensor, boxes: Tensor) -> Tensor:
    """The images after pasting; arguments as those of the operator, in one of the two memory formats."""
    pasted = new_images(images)
    if images.numel():
        walk, whole = plan_lines(images), WHOLE[images.element_size()]
        with device_guard(images):
            paste_kernel[walk.grid](
                images.view(whole), partner, boxes, pasted.view(whole), *walk.numbers, **walk.constants
            )
    return pasted


def cutmix_backward(grad_output: Tensor, receiver: Tensor, boxes: Tensor) -> Tensor:
    """The gradient of the images."""
    gradient = new_images(grad_output)
    if gradient.numel():
        walk = plan_lines(grad_output)
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

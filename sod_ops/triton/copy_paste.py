"""Copy-Paste in Triton: two launches for the masks, one for the images, three more to blend edges.

The masks' first launch writes what is pasted and what that leaves of the masks beneath, and of each block of pixels what it
holds of a mask; the second adds that up to areas and boxes, and empties the masks that are hidden, which are few. So every
mask is read once. Images are walked as lines of memory (_lines.py). With blended edges a map of weights is made first, by a
Gaussian filter along rows and one along columns whose weights are whole multiples of 2^-12: float32 sums of them are exact.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: N803 (compile-time constants in capitals, as everywhere in Triton)

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sod_ops.triton._lines import NUMBERS, WHOLE, Walk, new_images, place_of, plan_lines
from sod_ops.triton._planes import aligned, ceil_div, device_guard, map_steps
from sod_ops.triton._rows import store, tile
from sod_ops.triton.focal_loss import double

_BLOCK = 1024  # pixels of a mask
_NARROW_BLOCK = 512  # where each has an address of its own: of eight to a thread, sm_120 spills
_PART = 6  # numbers that are kept of a block: pixels before, pixels after, left, top, right, bottom
_PARTS = 128  # blocks whose numbers are added up at a time
_TILE = 1024  # elements of images: eight to a thread, each with a weight
_DOUBLE_TILE = 512  # where an element takes two registers: of eight to a thread, sm_90 spills
_WEIGHTS = 256
_UNIT = 4096  # weights of the filter are multiples of one UNITth


@triton.jit
def _store_part(part, before, seen, x, y, FAR: tl.constexpr):
    """What a block holds of a mask. The edges are set where there are any."""
    after = tl.sum(seen.to(tl.int32), 0)
    tl.store(part, before)
    tl.store(part + 1, after)
    if after > 0:
        tl.store(part + 2, tl.min(tl.where(seen, x, FAR), 0))
        tl.store(part + 3, tl.min(tl.where(seen, y, FAR), 0))
        tl.store(part + 4, tl.max(tl.where(seen, x, -1), 0))
        tl.store(part + 5, tl.max(tl.where(seen, y, -1), 0))


@triton.jit(do_not_specialize=("slots", "pixels", "width", "blocks", "sample_step", "mask_step"))
def masks_kernel(
    masks,  # [B, M, H, W] bytes, at their steps
    partner,  # [B]
    chosen,  # [B, M] bytes
    together,  # [B, 2M, H, W] bytes
    pasted,  # [B, H, W] bytes
    parts,  # [B, 2M, blocks, PART]
    slots: tl.int64,
    pixels: tl.int64,
    width: tl.int32,
    blocks: tl.int32,
    sample_step: tl.int64,
    mask_step: tl.int64,
    ALIGNMENT: tl.constexpr,
    BLOCK: tl.constexpr,
    PART: tl.constexpr,
    FAR: tl.constexpr,
):
    """One program: a block of pixels in all masks of one sample."""
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    block = (tl.program_id(0) % blocks).to(tl.int64)
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    pixels = aligned(pixels, ALIGNMENT)
    inside = pixel < pixels
    x, y = pixel.to(tl.int32) % width, pixel.to(tl.int32) // width
    step = aligned(mask_step, ALIGNMENT)
    own = masks + sample * aligned(sample_step, ALIGNMENT) + pixel
    others = masks + tl.load(partner + sample) * aligned(sample_step, ALIGNMENT) + pixel
    to = together + sample * 2 * slots * pixels + pixel
    part = parts + (sample * 2 * slots * blocks + block) * PART
    covered = tl.zeros([BLOCK], tl.int1)
    for slot in range(slots):
        taken = tl.load(chosen + sample * slots + slot) != 0
        seen = tl.load(others + slot * step, mask=inside & taken, other=0) != 0
        covered = covered | seen
        tl.store(to + (slots + slot) * pixels, seen.to(tl.uint8), mask=inside)
        _store_part(part + (slots + slot) * blocks * PART, tl.sum(seen.to(tl.int32), 0), seen, x, y, FAR)
    tl.store(pasted + sample * pixels + pixel, covered.to(tl.uint8), mask=inside)
    for slot in range(slots):
        mask = tl.load(own + slot * step, mask=inside, other=0) != 0
        seen = mask & (covered == 0)
        tl.store(to + slot * pixels, seen.to(tl.uint8), mask=inside)
        _store_part(part + slot * blocks * PART, tl.sum(mask.to(tl.int32), 0), seen, x, y, FAR)


@triton.jit(do_not_specialize=("slots", "pixels", "blocks", "min_visible"))
def measure_kernel(
    parts,  # [B, 2M, blocks, PART]
    together,  # [B, 2M, H, W] bytes
    boxes,  # [B, 2M, 4]
    visible,  # [B, 2M] bytes
    slots: tl.int64,
    pixels: tl.int64,
    blocks: tl.int32,
    min_visible: tl.float64,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
    PART: tl.constexpr,
    FAR: tl.constexpr,
):
    """One program: a mask's box, and whether it is seen; one of the sample's own that is hidden is made empty."""
    mask = tl.program_id(0).to(tl.int64)
    before = tl.zeros([PARTS], tl.int64)
    after = tl.zeros([PARTS], tl.int64)
    left = tl.full([PARTS], FAR, tl.int32)
    top = tl.full([PARTS], FAR, tl.int32)
    right = tl.full([PARTS], -1, tl.int32)
    bottom = tl.full([PARTS], -1, tl.int32)
    for start in range(0, blocks, PARTS):
        block = start + tl.arange(0, PARTS)
        part = parts + (mask * blocks + block) * PART
        before += tl.load(part, mask=block < blocks, other=0)
        some = tl.load(part + 1, mask=block < blocks, other=0)
        after += some
        left = tl.minimum(left, tl.load(part + 2, mask=some > 0, other=FAR))
        top = tl.minimum(top, tl.load(part + 3, mask=some > 0, other=FAR))
        right = tl.maximum(right, tl.load(part + 4, mask=some > 0, other=-1))
        bottom = tl.maximum(bottom, tl.load(part + 5, mask=some > 0, other=-1))
    area = tl.sum(after, 0)
    least = double(min_visible) * tl.sum(before, 0).to(tl.float64)
    hidden = (mask % (2 * slots) < slots) & (area.to(tl.float64) < least)
    seen = (area > 0) & (hidden == 0)
    box = boxes + mask * 4
    tl.store(box, tl.where(seen, tl.min(left, 0), 0).to(tl.int64))
    tl.store(box + 1, tl.where(seen, tl.min(top, 0), 0).to(tl.int64))
    tl.store(box + 2, tl.where(seen, tl.max(right, 0), 0).to(tl.int64))
    tl.store(box + 3, tl.where(seen, tl.max(bottom, 0), 0).to(tl.int64))
    tl.store(visible + mask, seen.to(tl.uint8))
    if (area > 0) & hidden:
        for first in range(0, pixels, BLOCK):
            pixel = first + tl.arange(0, BLOCK).to(tl.int64)
            tl.store(together + mask * pixels + pixel, tl.zeros([BLOCK], tl.uint8), mask=pixel < pixels)


@triton.jit(do_not_specialize=("reach", "sigma", "whole"))
def blend_weights_kernel(
    weights,  # [reach + 1] float32
    reach: tl.int32,
    sigma: tl.float64,
    whole: tl.float64,
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The filter's weights from its middle outwards; the tails' sums go from the ends inwards, as in the reference."""
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tail = tl.zeros([BLOCK], tl.float64)  # of t and on
    rest = tl.zeros([BLOCK], tl.float64)  # of t + 1 and on
    for i in range(reach):
        distance = reach - i
        deviations = tl.full([BLOCK], 1.0, tl.float64) * distance / double(sigma)
        number = tl.exp(-0.5 * (deviations * deviations))
        tail += tl.where(t <= distance, number, 0.0)
        rest += tl.where(t < distance, number, 0.0)
    tail = tl.floor(UNIT * tail / double(whole) + 0.5)
    rest = tl.floor(UNIT * rest / double(whole) + 0.5)
    weight = tl.where(t == 0, UNIT - 2 * rest, tail - rest) / UNIT
    tl.store(weights + t, weight.to(tl.float32), mask=t <= reach)


@triton.jit(do_not_specialize=("pixels", "size", "step", "reach"))
def filter_kernel(
    source,  # [B, H, W], bytes or float32
    weights,  # [reach + 1]
    filtered,  # [B, H, W] float32
    pixels: tl.int64,  # of all samples
    size: tl.int64,  # of the axis that is filtered, and its step
    step: tl.int64,
    reach: tl.int32,
    BLOCK: tl.constexpr,
):
    """Along one axis; beyond the image lies its border."""
    pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    at = pixel // step % size
    start = source + (pixel - at * step)
    value = tl.load(weights) * tl.load(source + pixel, mask=inside, other=0).to(tl.float32)
    for t in range(1, reach + 1):
        before = tl.load(start + tl.maximum(at - t, 0) * step, mask=inside, other=0).to(tl.float32)
        behind = tl.load(start + tl.minimum(at + t, size - 1) * step, mask=inside, other=0).to(tl.float32)
        value += tl.load(weights + t) * (before + behind)
    tl.store(filtered + pixel, value, mask=inside)


@triton.jit
def _weight(weights, sample, y, x, length, column_length, height, mask, INTERLEAVED: tl.constexpr):
    """The weights [B, H, W] of the pixels of the elements ``x`` in lines ``y`` of ``sample``, in their dtype."""
    width = length // column_length
    if INTERLEAVED:
        x = x.to(tl.int32) // column_length.to(tl.int32)
    return tl.load(weights + (sample * height + y) * width + x, mask=mask, other=0)


@triton.jit(do_not_specialize=NUMBERS)
def compose_kernel(
    images,  # [B, C, H, W], its lines at their steps
    partner,  # [B]
    weights,  # [B, H, W]: bytes or, where MIXED, float32
    composed,  # [B, C, H, W], dense
    lines: tl.int64,
    length: tl.int64,
    column_length: tl.int64,
    planes: tl.int64,
    height: tl.int64,
    sample_step: tl.int64,
    plane_step: tl.int64,
    INTERLEAVED: tl.constexpr,
    MIXED: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """composed = (1 - a) images + a images[partner]; a copy where a is 0 or 1."""
    line, x, mask, to = tile(lines, length, ALIGNMENT, BLOCK_R, BLOCK_C)
    sample, y, place = place_of(line, x, length, planes, height, plane_step, ALIGNMENT)
    a = _weight(weights, sample, y, x, length, column_length, height, mask, INTERLEAVED)
    value = tl.load(images + sample * aligned(sample_step, ALIGNMENT) + place, mask=mask)
    # Most tiles get nothing.
    if tl.max(tl.max((a > 0).to(tl.int32), 1), 0) > 0:
        other = tl.load(partner + sample, mask=line < lines, other=0)
        others = tl.load(images + other * aligned(sample_step, ALIGNMENT) + place, mask=mask & (a > 0), other=0)
        if MIXED:
            if value.dtype == tl.uint8:
                # In whole numbers of 2^-24: 255 of them and a half fit into 32 bits.
                whole = (a * 16777216.0).to(tl.uint32)
                mixed = (16777216 - whole) * value.to(tl.uint32) + whole * others.to(tl.uint32)
                mixed = ((mixed + 8388608) >> 24).to(tl.uint8)
            else:
                wide = a.to(tl.float64) if value.dtype == tl.float64 else a
                mixed = (1 - wide) * value.to(wide.dtype) + wide * others.to(wide.dtype)
                if value.dtype == tl.float16 or value.dtype == tl.bfloat16:
                    mixed = mixed.to(value.dtype)
            value = tl.where(a <= 0, value, tl.where(a >= 1, others, mixed))
        else:
            value = tl.where(a > 0, others, value)
    tl.store(composed + to, value, mask=mask)


@triton.jit(do_not_specialize=NUMBERS)
def compose_backward_kernel(
    grad_output,  # [B, C, H, W], its lines at their steps
    receiver,  # [B]
    weights,  # [B, H, W]: bytes or float32
    gradient,  # [B, C, H, W], dense
    lines: tl.int64,
    length: tl.int64,
    column_length: tl.int64,
    planes: tl.int64,
    height: tl.int64,
    sample_step: tl.int64,
    plane_step: tl.int64,
    INTERLEAVED: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """gradient = (1 - a) grad_output + a[receiver] grad_output[receiver]."""
    line, x, mask, to = tile(lines, length, ALIGNMENT, BLOCK_R, BLOCK_C)
    sample, y, place = place_of(line, x, length, planes, height, plane_step, ALIGNMENT)
    other = tl.load(receiver + sample, mask=line < lines, other=0)
    a = _weight(weights, sample, y, x, length, column_length, height, mask, INTERLEAVED).to(tl.float32)
    b = _weight(weights, other, y, x, length, column_length, height, mask, INTERLEAVED).to(tl.float32)
    own = tl.load(grad_output + sample * aligned(sample_step, ALIGNMENT) + place, mask=mask & (a < 1), other=0.0)
    others = tl.load(grad_output + other * aligned(sample_step, ALIGNMENT) + place, mask=mask & (b > 0), other=0.0)
    if own.dtype == tl.float64:
        a, b = a.to(tl.float64), b.to(tl.float64)
    store(gradient + to, (1 - a) * own.to(a.dtype) + b * others.to(a.dtype), mask)


_FAR = 2**31 - 1


def copy_paste(
    images: Tensor, masks: Tensor, partner: Tensor, chosen: Tensor, blend_sigma: float, min_visible: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What is pasted; arguments and results as those of the operator."""
    samples, slots, height, width = masks.shape
    pixels = height * width
    composed = new_images(images)
    together = torch.empty((samples, 2 * slots, height, width), dtype=torch.bool, device=masks.device)
    boxes = torch.empty((samples, 2 * slots, 4), dtype=torch.int64, device=masks.device)
    visible = torch.empty((samples, 2 * slots), dtype=torch.bool, device=masks.device)
    pasted = torch.empty((samples, height, width), dtype=torch.bool, device=masks.device)
    if images.numel():
        sample_step, mask_step = (masks.stride(0), masks.stride(1)) if slots else (0, 0)
        bits = pixels | sample_step | mask_step | 16
        alignment = bits & -bits
        block = _BLOCK if alignment > 1 else _NARROW_BLOCK
        blocks = ceil_div(pixels, block)
        parts = torch.empty((samples, 2 * slots, blocks, _PART), dtype=torch.int32, device=masks.device)
        with device_guard(images):
            masks_kernel[samples * blocks,](
                masks.view(torch.uint8), partner, chosen.view(torch.uint8), together.view(torch.uint8),
                pasted.view(torch.uint8), parts, slots, pixels, width, blocks, sample_step, mask_step,
                ALIGNMENT=alignment, BLOCK=block, PART=_PART, FAR=_FAR,
            )  # fmt: skip
            if slots:
                measure_kernel[samples * 2 * slots,](
                    parts, together.view(torch.uint8), boxes, visible.view(torch.uint8), slots, pixels, blocks,
                    min_visible, BLOCK=_BLOCK, PARTS=_PARTS, PART=_PART, FAR=_FAR,
                )  # fmt: skip
            weights = _weights(pasted, blend_sigma)
            mixed = weights.is_floating_point()
            walk = _walk(images)
            dtype = images.dtype if mixed else WHOLE[images.element_size()]
            compose_kernel[walk.grid](
                images.view(dtype), partner, weights, composed.view(dtype), *walk.numbers,
                INTERLEAVED=_interleaved(images), MIXED=mixed, **walk.constants,
            )  # fmt: skip
    return composed, together, boxes, visible, pasted


def copy_paste_backward(grad_output: Tensor, pasted: Tensor, receiver: Tensor, blend_sigma: float) -> Tensor:
    """The gradient of the images."""
    gradient = new_images(grad_output)
    if gradient.numel():
        walk = _walk(grad_output)
        with device_guard(grad_output):
            compose_backward_kernel[walk.grid](
                grad_output, receiver, _weights(pasted, blend_sigma), gradient, *walk.numbers,
                INTERLEAVED=_interleaved(grad_output), **walk.constants,
            )  # fmt: skip
    return gradient


def _walk(images: Tensor) -> Walk:
    return plan_lines(images, _DOUBLE_TILE if images.element_size() == 8 else _TILE)


def _interleaved(images: Tensor) -> bool:
    return map_steps(images.shape, images.stride())[0]


def _weights(pasted: Tensor, sigma: float) -> Tensor:
    """[B, H, W]: ``pasted`` as bytes or, where edges are blended, in float32 after the filter."""
    if sigma == 0:
        return pasted.view(torch.uint8)
    samples, height, width = pasted.shape
    reach, whole = _reach_and_whole(sigma)
    weights = torch.empty(reach + 1, dtype=torch.float32, device=pasted.device)
    blend_weights_kernel[ceil_div(reach + 1, _WEIGHTS),](weights, reach, sigma, whole, UNIT=_UNIT, BLOCK=_WEIGHTS)
    filtered = [torch.empty(pasted.shape, dtype=torch.float32, device=pasted.device) for _ in range(2)]
    pixels = samples * height * width
    for source, size, step, target in (
        (pasted.view(torch.uint8), width, 1, filtered[0]),
        (filtered[0], height, width, filtered[1]),
    ):
        filter_kernel[ceil_div(pixels, _BLOCK),](source, weights, target, pixels, size, step, reach, BLOCK=_BLOCK)
    return filtered[1]


@functools.cache
def _reach_and_whole(sigma: float) -> tuple[int, float]:
    """How far the filter reaches, and the sum of its unscaled weights, added up as the reference does."""
    reach = int(4 * sigma + 0.5)
    tail = 0.0
    for t in range(reach, 0, -1):
        tail += math.exp(-0.5 * (t / sigma) ** 2)
    return reach, 2 * tail + 1


def ahead_of_time_cases() -> Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Launcher calls, on the meta device, whose launches together need every variant that is worth compiling ahead."""

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    partner, chosen = empty(4, dtype=torch.int64), empty(4, 8, dtype=torch.bool)
    for size in (224, 321):
        masks, pasted = empty(4, 8, size, size, dtype=torch.bool), empty(4, size, size, dtype=torch.bool)
        for dtype in (torch.uint8, torch.bfloat16, torch.float16, torch.float32, torch.float64):
            for memory_format in (torch.contiguous_format, torch.channels_last):
                images = empty(4, 3, size, size, dtype=dtype).to(memory_format=memory_format)
                for sigma in (0.0, 2.0):
                    yield copy_paste, (images, masks, partner, chosen, sigma, 0.3)
                    if dtype.is_floating_point:
                        yield copy_paste_backward, (images, pasted, partner, sigma)

"""The pairwise complete IoU in Triton: sod_ops/reference/complete_box_iou.py has the formula, boxes.py the parts of it.

One launch; in the backward one for each box set whose gradient is wanted, and a second that adds up partial sums where few
boxes meet many.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: N803 (compile-time constants in capitals, as everywhere in Triton)

from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sod_ops.triton._planes import ceil_div, device_guard, power_of_two
from sod_ops.triton.boxes import (
    angle_of,
    aspect_of,
    enclosing_of,
    load_corners,
    overlap_of,
    shape_gradient,
    sides_gradient,
    store_corners,
)
from sod_ops.triton.division import divide

_COLUMNS = 128  # of a tile of the forward, at most
# A tile of the backward: one pair to a thread, as two would need more registers than there are.
_MINE = 32
_OTHERS = 8
# So many of the others make a part at least: its partial sum is then under a tenth of the gradients that it meets.
_SHORTEST_PART = 64
_PROGRAMS = 1024  # enough to fill the largest GPUs with several for each multiprocessor
_FIELDS = tl.constexpr(6)  # of a partial sum: x1, y1, x2, y2, the area and the angle


@triton.jit
def _pair(ax1, ay1, ax2, ay2, a_angle, bx1, by1, bx2, by2, b_angle, EPS: tl.constexpr):
    """The complete IoU, and what its gradient is made from."""
    intersection, by_overlap_width, by_overlap_height = overlap_of(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, True)
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - intersection
    # The smallest normal number of the type.
    tiny: tl.constexpr = 2.2250738585072014e-308 if union.dtype == tl.float64 else 1.1754943508222875e-38
    covers = tl.abs(union) > tiny
    safe_union = tl.where(covers, union, 1.0)
    iou = tl.where(covers, divide(intersection, safe_union), 0.0)
    width, height = enclosing_of(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2)
    width = tl.maximum(width, 0.0)
    height = tl.maximum(height, 0.0)
    diagonal = width * width + height * height + EPS
    dx = ((ax1 + ax2) - (bx1 + bx2)) * 0.5
    dy = ((ay1 + ay2) - (by1 + by2)) * 0.5
    penalty = divide(dx * dx + dy * dy, diagonal)
    aspect, by_angle = aspect_of(a_angle, b_angle, iou, EPS)
    value = iou - penalty - aspect
    return (
        value, iou, covers, safe_union, by_overlap_width, by_overlap_height,
        width, height, diagonal, dx, dy, penalty, by_angle,
    )  # fmt: skip


@triton.jit(do_not_specialize=("rows", "columns", "first_step", "second_step"))
def complete_box_iou_kernel(
    boxes1,  # [N, 4]
    boxes2,  # [M, 4]
    result,  # [N, M]
    rows: tl.int64,
    columns: tl.int64,
    first_step: tl.int64,
    second_step: tl.int64,
    EPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A tile [ROWS, COLUMNS] of the result, in float32 (float64 for float64 boxes)."""
    dtype: tl.constexpr = tl.float64 if boxes1.dtype.element_ty == tl.float64 else tl.float32
    across = tl.cdiv(columns, COLUMNS)
    i = tl.program_id(0) // across * ROWS + tl.arange(0, ROWS)
    j = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)
    ax1, ay1, ax2, ay2 = load_corners(boxes1, i, first_step, i < rows, dtype)
    bx1, by1, bx2, by2 = load_corners(boxes2, j, second_step, j < columns, dtype)
    a_angle = angle_of(ax2 - ax1, ay2 - ay1)
    b_angle = angle_of(bx2 - bx1, by2 - by1)
    value, _, _, _, _, _, _, _, _, _, _, _, _ = _pair(
        ax1[:, None], ay1[:, None], ax2[:, None], ay2[:, None], a_angle[:, None],
        bx1[None, :], by1[None, :], bx2[None, :], by2[None, :], b_angle[None, :], EPS,
    )  # fmt: skip
    inside = (i < rows)[:, None] & (j < columns)[None, :]
    tl.store(result + i.to(tl.int64)[:, None] * columns + j[None, :], value, mask=inside)


@triton.jit
def _store_gradient(gradient, i, inside, x1, y1, x2, y2, gx1, gy1, gx2, gy2, area, angle):
    """From the sums over all pairs to the gradient of the boxes numbered ``i``."""
    by_width, by_height = shape_gradient(x2 - x1, y2 - y1, area, angle)
    store_corners(gradient, i, inside, gx1 - by_width, gy1 - by_height, gx2 + by_width, gy2 + by_height)


@triton.jit(
    do_not_specialize=("count", "other_count", "step", "other_step", "grad_step", "other_grad_step", "blocks", "part")
)
def box_gradient_kernel(
    mine,  # [count, 4], the boxes whose gradient it is
    others,  # [other_count, 4]
    grad_output,
    sums,  # [parts, _FIELDS, count], or None where there is one part
    gradient,  # [count, 4], side by side
    count: tl.int64,
    other_count: tl.int64,
    step: tl.int64,
    other_step: tl.int64,
    grad_step: tl.int64,  # in grad_output, from one of mine to the next
    other_grad_step: tl.int64,
    blocks: tl.int64,  # of MINE boxes
    part: tl.int64,  # how many of the others a program meets
    EPS: tl.constexpr,
    MINE: tl.constexpr,
    OTHERS: tl.constexpr,
):
    """MINE boxes meet a part of the others. All pairs are symmetric but for the strides of the incoming gradient."""
    dtype: tl.constexpr = tl.float64 if mine.dtype.element_ty == tl.float64 else tl.float32
    program = tl.program_id(0).to(tl.int64)
    i = program % blocks * MINE + tl.arange(0, MINE)
    first = program // blocks * part
    last = tl.minimum(first + part, other_count)
    x1, y1, x2, y2 = load_corners(mine, i, step, i < count, dtype)
    ax1, ay1, ax2, ay2 = x1[:, None], y1[:, None], x2[:, None], y2[:, None]
    a_angle = angle_of(x2 - x1, y2 - y1)[:, None]
    sum_x1 = tl.zeros([MINE, OTHERS], dtype=dtype)
    sum_y1, sum_x2, sum_y2, sum_area, sum_angle = sum_x1, sum_x1, sum_x1, sum_x1, sum_x1
    for start in range(first, last, OTHERS):
        j = start + tl.arange(0, OTHERS)
        bx1, by1, bx2, by2 = load_corners(others, j, other_step, j < last, dtype)
        b_angle = angle_of(bx2 - bx1, by2 - by1)[None, :]
        bx1, by1, bx2, by2 = bx1[None, :], by1[None, :], bx2[None, :], by2[None, :]
        grad = tl.load(
            grad_output + i.to(tl.int64)[:, None] * grad_step + j[None, :] * other_grad_step,
            mask=(i < count)[:, None] & (j < last)[None, :],
            other=0.0,
        )
        (
            _, iou, covers, safe_union, by_overlap_width, by_overlap_height,
            width, height, diagonal, dx, dy, penalty, by_angle,
        ) = _pair(ax1, ay1, ax2, ay2, a_angle, bx1, by1, bx2, by2, b_angle, EPS)  # fmt: skip
        by_iou = tl.where(covers, divide(grad, safe_union), 0.0)
        g_area = -by_iou * iou
        by_intersection = by_iou - g_area  # the union loses what the intersection gains
        by_distance = divide(-grad, diagonal)
        by_side = -2.0 * by_distance * penalty
        gx1, gy1, gx2, gy2 = sides_gradient(
            ax1, ay1, ax2, ay2, bx1, by1, bx2, by2,
            by_intersection * by_overlap_width, by_intersection * by_overlap_height,
            by_side * width, by_side * height, by_distance * dx, by_distance * dy,
        )  # fmt: skip
        sum_x1 += gx1
        sum_y1 += gy1
        sum_x2 += gx2
        sum_y2 += gy2
        sum_area += g_area
        sum_angle -= grad * by_angle
    gx1, gy1, gx2, gy2 = tl.sum(sum_x1, 1), tl.sum(sum_y1, 1), tl.sum(sum_x2, 1), tl.sum(sum_y2, 1)
    area, angle = tl.sum(sum_area, 1), tl.sum(sum_angle, 1)
    if sums is None:
        _store_gradient(gradient, i, i < count, x1, y1, x2, y2, gx1, gy1, gx2, gy2, area, angle)
    else:
        at = sums + program // blocks * _FIELDS * count + i
        tl.store(at, gx1, mask=i < count)
        tl.store(at + count, gy1, mask=i < count)
        tl.store(at + 2 * count, gx2, mask=i < count)
        tl.store(at + 3 * count, gy2, mask=i < count)
        tl.store(at + 4 * count, area, mask=i < count)
        tl.store(at + 5 * count, angle, mask=i < count)


@triton.jit(do_not_specialize=("count", "step", "parts"))
def sum_gradient_kernel(
    mine,  # [count, 4]
    sums,  # [parts, _FIELDS, count]
    gradient,  # [count, 4], side by side
    count: tl.int64,
    step: tl.int64,
    parts: tl.int32,
    BLOCK: tl.constexpr,
):
    """The gradient of BLOCK boxes from the sums of all parts."""
    dtype: tl.constexpr = sums.dtype.element_ty
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    gx1 = tl.zeros([BLOCK], dtype=dtype)
    gy1, gx2, gy2, area, angle = gx1, gx1, gx1, gx1, gx1
    at = sums + i
    for _ in range(parts):
        gx1 += tl.load(at, mask=inside, other=0.0)
        gy1 += tl.load(at + count, mask=inside, other=0.0)
        gx2 += tl.load(at + 2 * count, mask=inside, other=0.0)
        gy2 += tl.load(at + 3 * count, mask=inside, other=0.0)
        area += tl.load(at + 4 * count, mask=inside, other=0.0)
        angle += tl.load(at + 5 * count, mask=inside, other=0.0)
        at += _FIELDS * count
    x1, y1, x2, y2 = load_corners(mine, i, step, inside, dtype)
    _store_gradient(gradient, i, inside, x1, y1, x2, y2, gx1, gy1, gx2, gy2, area, angle)


def complete_box_iou(boxes1: Tensor, boxes2: Tensor, eps: float) -> Tensor:
    """The complete IoU of all pairs, [N, M]."""
    rows, columns = boxes1.shape[0], boxes2.shape[0]
    result = boxes1.new_empty((rows, columns), dtype=_computed_in(boxes1))
    if result.numel() == 0:
        return result
    # Four pairs to a thread, two in float64: more would need more registers than there are.
    tile = 512 if result.dtype == torch.float64 else 1024
    block_columns = min(_COLUMNS, power_of_two(columns))
    block_rows = min(tile // block_columns, power_of_two(rows))
    programs = ceil_div(rows, block_rows) * ceil_div(columns, block_columns)
    # Areas of equal boxes cancel exactly only where no product is fused with the sum that it goes into.
    with device_guard(boxes1):
        complete_box_iou_kernel[(programs,)](
            boxes1, boxes2, result, rows, columns, boxes1.stride(0), boxes2.stride(0),
            EPS=eps, ROWS=block_rows, COLUMNS=block_columns, num_warps=8, enable_fp_fusion=False,
        )  # fmt: skip
    return result


def complete_box_iou_backward(
    grad_output: Tensor, boxes1: Tensor, boxes2: Tensor, eps: float, first: bool, second: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of boxes1 and boxes2; one that is not wanted is empty."""
    return (
        _gradient(grad_output, boxes1, boxes2, eps) if first else boxes1.new_empty((0,)),
        _gradient(grad_output.t(), boxes2, boxes1, eps) if second else boxes2.new_empty((0,)),
    )


def _gradient(grad_output: Tensor, mine: Tensor, others: Tensor, eps: float) -> Tensor:
    """The gradient of ``mine``, which are the rows of ``grad_output``."""
    count, other_count = mine.shape[0], others.shape[0]
    gradient = mine.new_empty(mine.shape)
    if count == 0:
        return gradient
    blocks = ceil_div(count, _MINE)
    part = max(_SHORTEST_PART, ceil_div(other_count, max(1, _PROGRAMS // blocks)))
    parts = max(1, ceil_div(other_count, part))
    sums = mine.new_empty((parts, _FIELDS.value, count), dtype=_computed_in(mine)) if parts > 1 else None
    with device_guard(mine):
        box_gradient_kernel[(blocks * parts,)](
            mine, others, grad_output, sums, gradient, count, other_count, mine.stride(0), others.stride(0),
            *grad_output.stride(), blocks, part,
            EPS=eps, MINE=_MINE, OTHERS=_OTHERS, num_warps=_MINE * _OTHERS // 32, enable_fp_fusion=False,
        )  # fmt: skip
        if sums is not None:
            sum_gradient_kernel[(ceil_div(count, 128),)](
                mine, sums, gradient, count, mine.stride(0), parts, BLOCK=128, num_warps=4, enable_fp_fusion=False
            )
    return gradient


def _computed_in(boxes: Tensor) -> torch.dtype:
    return torch.float64 if boxes.dtype == torch.float64 else torch.float32


def ahead_of_time_cases() -> Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Launcher calls, on the meta device, whose launches together need every variant that is worth compiling ahead."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        # Few boxes against many, and the other way round.
        for rows, columns in ((2000, 20), (20, 2000), (2000, 500)):
            boxes1, boxes2 = (torch.empty((n, 4), dtype=dtype, device="meta") for n in (rows, columns))
            grad_output = boxes1.new_empty((rows, columns), dtype=_computed_in(boxes1))
            yield complete_box_iou, (boxes1, boxes2, 1e-7)
            yield complete_box_iou_backward, (grad_output, boxes1, boxes2, 1e-7, True, True)

"""What two boxes have in common, on tiles of float32 or float64: csrc/math/boxes.h in Triton.

Names: a box's corners are x1, y1, x2, y2; ``a`` is the first of a pair, ``b`` the second.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: N803 (compile-time constants in capitals, as everywhere in Triton)

import triton
import triton.language as tl

from sod_ops.triton.arctangent import arctangent
from sod_ops.triton.division import divide


@triton.jit
def load_corners(boxes, row, step, mask, DTYPE: tl.constexpr):
    """x1, y1, x2, y2 of the boxes numbered ``row``; those that ``mask`` leaves out are 0."""
    at = boxes + row.to(tl.int64) * step
    x1 = tl.load(at, mask=mask, other=0.0).to(DTYPE)
    y1 = tl.load(at + 1, mask=mask, other=0.0).to(DTYPE)
    x2 = tl.load(at + 2, mask=mask, other=0.0).to(DTYPE)
    y2 = tl.load(at + 3, mask=mask, other=0.0).to(DTYPE)
    return x1, y1, x2, y2


@triton.jit
def store_corners(boxes, row, mask, x1, y1, x2, y2):
    """To boxes that lie side by side, in their dtype."""
    at = boxes + row.to(tl.int64) * 4
    tl.store(at, x1.to(boxes.dtype.element_ty), mask=mask)
    tl.store(at + 1, y1.to(boxes.dtype.element_ty), mask=mask)
    tl.store(at + 2, x2.to(boxes.dtype.element_ty), mask=mask)
    tl.store(at + 3, y2.to(boxes.dtype.element_ty), mask=mask)


@triton.jit
def angle_of(width, height):
    """atan(width / height); NaN for a box without size, which has no aspect ratio."""
    sized = width * width + height * height > 0.0
    return tl.where(sized, arctangent(width, tl.where(sized, height, 1.0)), float("nan"))


@triton.jit
def overlap_of(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, CLAMP: tl.constexpr):
    """The area of the intersection and its derivatives by its width and height.

    CLAMP: both are clamped at 0 on their own, as PyTorch clamps (the derivative at 0 is 1). Otherwise boxes that only touch
    count as apart.
    """
    width = tl.minimum(ax2, bx2) - tl.maximum(ax1, bx1)
    height = tl.minimum(ay2, by2) - tl.maximum(ay1, by1)
    if CLAMP:
        across = tl.maximum(width, 0.0)
        down = tl.maximum(height, 0.0)
        area = across * down
        by_width = tl.where(width < 0.0, 0.0, down)
        by_height = tl.where(height < 0.0, 0.0, across)
    else:
        overlaps = (width > 0.0) & (height > 0.0)
        by_width = tl.where(overlaps, height, 0.0)
        by_height = tl.where(overlaps, width, 0.0)
        area = by_width * by_height
    return area, by_width, by_height


@triton.jit
def enclosing_of(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2):
    """Width and height of the smallest box around both."""
    return tl.maximum(ax2, bx2) - tl.minimum(ax1, bx1), tl.maximum(ay2, by2) - tl.minimum(ay1, by1)


@triton.jit
def aspect_of(a_angle, b_angle, iou, EPS: tl.constexpr):
    """The penalty alpha v, and its derivative by the angle of a; that by the angle of b has the other sign."""
    difference = a_angle - b_angle
    # NaN, where a box has no aspect ratio, is not greater than 0 either.
    difference = tl.where(difference * difference > 0.0, difference, 0.0)
    v = 0.40528473456935108577 * difference * difference  # 4 / pi^2
    alpha = divide(v, 1.0 - iou + v + EPS)
    return alpha * v, 2.0 * 0.40528473456935108577 * alpha * difference


@triton.jit
def corners_gradient(
    x1, y1, x2, y2, other_x1, other_y1, other_x2, other_y2,
    overlap_width, overlap_height, enclosing_width, enclosing_height, area, dx, dy, angle,
):  # fmt: skip
    """From the gradient of a pair's value by what it is computed from to that by one box's corners.

    ``overlap_*`` and ``enclosing_*`` are the gradients by these boxes' sides, ``area`` by the box's area, ``dx`` and ``dy``
    by its centre (halved), ``angle`` by its angle.
    """
    gx1, gy1, gx2, gy2 = sides_gradient(
        x1, y1, x2, y2, other_x1, other_y1, other_x2, other_y2,
        overlap_width, overlap_height, enclosing_width, enclosing_height, dx, dy,
    )  # fmt: skip
    by_width, by_height = shape_gradient(x2 - x1, y2 - y1, area, angle)
    return gx1 - by_width, gy1 - by_height, gx2 + by_width, gy2 + by_height


@triton.jit
def sides_gradient(
    x1, y1, x2, y2, other_x1, other_y1, other_x2, other_y2,
    overlap_width, overlap_height, enclosing_width, enclosing_height, dx, dy,
):  # fmt: skip
    """The same but for what comes by the box's area and its angle."""
    return (
        dx - _side(x1, other_x1, overlap_width, enclosing_width),
        dy - _side(y1, other_y1, overlap_height, enclosing_height),
        dx + _side(other_x2, x2, overlap_width, enclosing_width),
        dy + _side(other_y2, y2, overlap_height, enclosing_height),
    )


@triton.jit
def shape_gradient(width, height, area, angle):
    """From the gradient by a box's area and its angle to that by its width and height."""
    size = width * width + height * height
    by_angle = tl.where(size > 0.0, divide(angle, tl.where(size > 0.0, size, 1.0)), 0.0)
    return area * height + by_angle * height, area * width - by_angle * width


@triton.jit
def _side(side, bound, overlap, enclosing):
    """The gradient by a side that bounds the overlap where it lies inside the other box's, otherwise the enclosing box."""
    return tl.where(side > bound, overlap, tl.where(bound > side, enclosing, (overlap + enclosing) * 0.5))

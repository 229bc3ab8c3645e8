"""The IoU losses in Triton: sod_ops/reference/box_iou_loss.py has the formulas, boxes.py what two boxes have in common.

One launch, and a second that adds up the programs' sums where a mean or a sum is taken over more than one program.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: N803 (compile-time constants in capitals, as everywhere in Triton)

from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sod_ops.triton._planes import ceil_div, device_guard
from sod_ops.triton.boxes import (
    angle_of,
    aspect_of,
    corners_gradient,
    enclosing_of,
    load_corners,
    overlap_of,
    store_corners,
)
from sod_ops.triton.division import divide

# In the order of LOSSES in sod_ops/reference/box_iou_loss.py.
GENERALIZED = tl.constexpr(0)
DISTANCE = tl.constexpr(1)
COMPLETE = tl.constexpr(2)
_LOSSES = 3  # those of the padded follow

_OWN_EPS = tl.constexpr(1e-7)  # of complete, but for alpha's
_NONE, _MEAN = 0, 1  # reductions

# 1,000 pairs, a usual number, are one program's: a second launch would cost more than the loop.
_ALONE = 2048
_PARTIALS = tl.constexpr(1024)  # the most sums that the second launch adds up


@triton.jit(do_not_specialize=("pairs", "part", "first_step", "second_step"))
def box_iou_loss_kernel(
    boxes1,  # [N, 4], like boxes2
    boxes2,
    grad_output,  # [N]; [] where GRAD_STEP is 0; None: 1
    losses,  # [N] or None
    sums,  # [programs] or None
    grad_boxes1,  # [N, 4], side by side, or None
    grad_boxes2,
    pairs: tl.int64,
    part: tl.int64,
    first_step: tl.int64,
    second_step: tl.int64,
    LOSS: tl.constexpr,
    EPS: tl.constexpr,
    PADDED: tl.constexpr,
    MEAN: tl.constexpr,
    GRAD_STEP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The losses of ``part`` pairs, their sum, and their gradients; whichever have a place to go.

    Computes in float32 (float64 for float64 boxes).
    """
    dtype: tl.constexpr = tl.float64 if boxes1.dtype.element_ty == tl.float64 else tl.float32
    first = tl.program_id(0).to(tl.int64) * part
    last = tl.minimum(first + part, pairs)
    total = tl.zeros([BLOCK], dtype=dtype)
    grad = tl.full([BLOCK], 1.0, dtype=dtype)
    denominator_eps: tl.constexpr = _OWN_EPS if LOSS == COMPLETE and not PADDED else EPS
    padding: tl.constexpr = EPS if PADDED else 0.0
    if GRAD_STEP == 0:
        grad *= tl.load(grad_output)
    if MEAN:
        grad = divide(grad, tl.full([BLOCK], 1.0, dtype=dtype) * pairs.to(dtype))
    for start in range(first, last, BLOCK):
        i = start + tl.arange(0, BLOCK)
        inside = i < last
        ax1, ay1, ax2, ay2 = load_corners(boxes1, i, first_step, inside, dtype)
        bx1, by1, bx2, by2 = load_corners(boxes2, i, second_step, inside, dtype)
        if GRAD_STEP == 1:
            grad = tl.load(grad_output + i, mask=inside, other=0.0)

        a_area = (ax2 - ax1) * (ay2 - ay1 + padding)
        b_area = (bx2 - bx1) * (by2 - by1 + padding)
        intersection, by_overlap_width, by_overlap_height = overlap_of(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, PADDED)
        union = a_area + b_area - intersection
        width, height = enclosing_of(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2)
        padded = union + denominator_eps
        iou = divide(intersection, padded)
        by_iou = divide(grad, padded)
        g_area = by_iou * iou
        g_dx = tl.zeros([BLOCK], dtype=dtype)
        g_dy = g_dx
        g_angle = g_dx
        if LOSS == GENERALIZED:
            enclosing = width * height
            empty = divide(enclosing - union, enclosing + EPS)
            loss = 1.0 - (iou - empty)
            by_empty = divide(grad, enclosing + EPS)
            g_area -= by_empty
            g_width = by_empty * (1.0 - empty) * height
            g_height = by_empty * (1.0 - empty) * width
        else:
            diagonal = width * width + height * height + denominator_eps
            dx = ((ax1 + ax2) - (bx1 + bx2)) * 0.5
            dy = ((ay1 + ay2) - (by1 + by2)) * 0.5
            penalty = divide(dx * dx + dy * dy, diagonal)
            loss = 1.0 - iou + penalty
            by_distance = divide(grad, diagonal)
            g_dx = by_distance * dx
            g_dy = by_distance * dy
            g_width = -2.0 * by_distance * penalty * width
            g_height = -2.0 * by_distance * penalty * height
            if LOSS == COMPLETE:
                a_angle = angle_of(ax2 - ax1, ay2 - ay1 + padding)
                b_angle = angle_of(bx2 - bx1, by2 - by1 + padding)
                aspect, by_angle = aspect_of(a_angle, b_angle, iou, EPS)
                loss += aspect
                g_angle = grad * by_angle
        by_intersection = -by_iou - g_area  # the union loses what the intersection gains
        g_overlap_width = by_intersection * by_overlap_width
        g_overlap_height = by_intersection * by_overlap_height

        if losses is not None:
            tl.store(losses + i, loss, mask=inside)
        if sums is not None:
            total += tl.where(inside, loss, 0.0)
        if grad_boxes1 is not None:
            gx1, gy1, gx2, gy2 = corners_gradient(
                ax1, ay1, ax2, ay2, bx1, by1, bx2, by2,
                g_overlap_width, g_overlap_height, g_width, g_height, g_area, g_dx, g_dy, g_angle, padding,
            )  # fmt: skip
            store_corners(grad_boxes1, i, inside, gx1, gy1, gx2, gy2)
        if grad_boxes2 is not None:
            gx1, gy1, gx2, gy2 = corners_gradient(
                bx1, by1, bx2, by2, ax1, ay1, ax2, ay2,
                g_overlap_width, g_overlap_height, g_width, g_height, g_area, -g_dx, -g_dy, -g_angle, padding,
            )  # fmt: skip
            store_corners(grad_boxes2, i, inside, gx1, gy1, gx2, gy2)
    if sums is not None:
        value = tl.sum(total, 0)
        if tl.num_programs(0) == 1 and MEAN:
            value = divide(value, pairs.to(dtype))
        tl.store(sums + tl.program_id(0), value)


@triton.jit(do_not_specialize=("count", "pairs"))
def sum_losses_kernel(
    sums,  # [count], count <= _PARTIALS
    result,  # []
    count: tl.int32,
    pairs: tl.int64,
    MEAN: tl.constexpr,
):
    """The sum of the programs' sums; divided by the number of pairs where MEAN."""
    i = tl.arange(0, _PARTIALS)
    total = tl.sum(tl.load(sums + i, mask=i < count, other=0.0), 0)
    if MEAN:
        total = divide(total, pairs.to(total.dtype))
    tl.store(result, total)


def box_iou_loss(
    boxes1: Tensor, boxes2: Tensor, loss: int, reduction: int, eps: float, first: bool, second: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and, for a mean or a sum in float32 or float64, the gradients that are wanted, otherwise empty tensors."""
    dtype = torch.float64 if boxes1.dtype == torch.float64 else torch.float32
    keeps = reduction != _NONE and boxes1.dtype == dtype
    gradients = _empty_gradient(boxes1, keeps and first), _empty_gradient(boxes2, keeps and second)
    launch = _Launch(boxes1, boxes2, loss, reduction, eps)
    if reduction == _NONE:
        losses = boxes1.new_empty(boxes1.shape[:-1], dtype=dtype)
        launch(losses=losses)
        return losses, *gradients
    result = boxes1.new_empty((), dtype=dtype)
    if launch.pairs == 0:
        return result.zero_(), *gradients
    sums = result if launch.programs == 1 else result.new_empty((launch.programs,))
    launch(sums=sums, gradients=gradients)
    if launch.programs > 1:
        with device_guard(boxes1):
            sum_losses_kernel[(1,)](sums, result, launch.programs, launch.pairs, MEAN=reduction == _MEAN)
    return result, *gradients


def box_iou_loss_backward(
    grad_output: Tensor,
    boxes1: Tensor,
    boxes2: Tensor,
    loss: int,
    reduction: int,
    eps: float,
    first: bool,
    second: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of boxes1 and boxes2; one that is not wanted is empty."""
    gradients = _empty_gradient(boxes1, first), _empty_gradient(boxes2, second)
    _Launch(boxes1, boxes2, loss, reduction, eps)(grad_output=grad_output, gradients=gradients)
    return gradients


class _Launch:
    """A launch of the kernel on these boxes; what it shall write comes with the call."""

    def __init__(self, boxes1: Tensor, boxes2: Tensor, loss: int, reduction: int, eps: float) -> None:
        self._boxes = boxes1, boxes2
        self.pairs = boxes1.shape[0] if boxes1.dim() == 2 else 1
        self._steps = [boxes.stride(0) if boxes.dim() == 2 else 4 for boxes in self._boxes]
        self._constants: dict[str, Any] = {
            "LOSS": loss % _LOSSES,
            "PADDED": loss >= _LOSSES,
            "EPS": eps,
            "MEAN": reduction == _MEAN,
        }
        alone = self.pairs <= _ALONE
        # One pair to a thread: two would need more registers than there are.
        # (For sm_120 the compiler spills 8 bytes of the float64 kernel with 256 threads, and none with 512.)
        block = 512 if (alone and self.pairs > 256) or boxes1.dtype == torch.float64 else 256
        blocks = ceil_div(self.pairs, block)
        together = blocks if alone else ceil_div(blocks, _PARTIALS.value)
        self._part = block * together
        self.programs = ceil_div(self.pairs, max(self._part, 1))
        self._constants |= {"BLOCK": block, "num_warps": block // 32}

    def __call__(
        self,
        *,
        losses: Tensor | None = None,
        sums: Tensor | None = None,
        grad_output: Tensor | None = None,
        gradients: tuple[Tensor, ...] = (),
    ) -> None:
        """``gradients`` that are empty are not written; without ``grad_output`` they are those of the result itself."""
        if self.pairs == 0:
            return
        grad_boxes1, grad_boxes2 = (g if g.numel() else None for g in gradients) if gradients else (None, None)
        # Areas of equal boxes cancel exactly only where no product is fused with the sum that it goes into.
        with device_guard(self._boxes[0]):
            box_iou_loss_kernel[(self.programs,)](
                *self._boxes, grad_output, losses, sums, grad_boxes1, grad_boxes2,
                self.pairs, self._part, *self._steps,
                GRAD_STEP=_step(grad_output), enable_fp_fusion=False, **self._constants,
            )  # fmt: skip


def _step(grad_output: Tensor | None) -> int:
    """0 for one number for all pairs, 1 for one for each, -1 for none."""
    if grad_output is None:
        return -1
    return grad_output.stride(0) if grad_output.dim() == 1 and grad_output.shape[0] > 1 else 0


def _empty_gradient(boxes: Tensor, wanted: bool) -> Tensor:
    return boxes.new_empty(boxes.shape if wanted else (0,))


def ahead_of_time_cases() -> Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Launcher calls, on the meta device, whose launches together need every variant that is worth compiling ahead."""
    cases = [(dtype, loss) for dtype in (torch.float32, torch.float64) for loss in range(_LOSSES)]
    cases += [(torch.bfloat16, COMPLETE.value), (torch.float16, COMPLETE.value)]
    cases += [(dtype, loss + _LOSSES) for dtype, loss in cases[:6]]
    for dtype, loss in cases:
        for pairs in (1000, 100000):
            boxes = torch.empty((pairs, 4), dtype=dtype, device="meta")
            grad_output = boxes.new_empty((pairs,), dtype=torch.promote_types(dtype, torch.float32))
            # Both gradients: one alone takes fewer registers.
            for reduction, grad in ((_NONE, grad_output), (_MEAN, grad_output[0])):
                arguments = (boxes, boxes, loss, reduction, 1e-7, True, True)
                yield box_iou_loss, arguments
                yield box_iou_loss_backward, (grad, *arguments)

"""Tensors of one shape walked together, without copying those that are slices of others: csrc/rows.h in Python."""

from itertools import pairwise
from typing import NamedTuple

from torch import Tensor


class Steps(NamedTuple):
    """From one row, and from one column, to the next: in elements."""

    row: int
    column: int


class Rows(NamedTuple):
    rows: int
    columns: int
    steps: tuple[Steps, ...]  # one for each tensor


def as_rows(*tensors: Tensor) -> Rows | None:
    """How ``tensors`` lie in memory as rows and columns at fixed steps.

    Dimensions are taken in the memory order of the first tensor, which is also that of ``torch.empty_like`` for it: element
    ``i`` of such a result belongs to row ``i // columns`` and column ``i % columns``.

    Returns:
        None where more than two steps are needed, or where the first tensor has no such order because it is expanded or
        overlaps itself.
    """
    first = tensors[0]
    if first.numel() == 0:
        return Rows(0, 0, (Steps(0, 0),) * len(tensors))
    order: list[int] = []
    for d in range(first.dim()):  # an insertion sort: torch.compile has none for sizes that it keeps symbolic
        if first.shape[d] != 1:
            place = len(order)
            while place and first.stride(order[place - 1]) < first.stride(d):
                place -= 1
            order.insert(place, d)
    strides = [first.stride(d) for d in order]
    if any(stride == following for stride, following in pairwise([*strides, 0])):
        return None
    lengths: list[int] = []  # of the columns, then of the rows
    steps: list[tuple[int, ...]] = []
    for d in reversed(order):
        step = tuple(tensor.stride(d) for tensor in tensors)
        if lengths and all(s == inner * lengths[-1] for s, inner in zip(step, steps[-1], strict=True)):
            lengths[-1] *= first.shape[d]
        else:
            lengths.append(first.shape[d])
            steps.append(step)
    if len(lengths) > 2:
        return None
    none = (0,) * len(tensors)
    columns, rows, *_ = (*lengths, 1, 1)
    column_steps, row_steps, *_ = (*steps, none, none)
    return Rows(rows, columns, tuple(map(Steps, row_steps, column_steps)))

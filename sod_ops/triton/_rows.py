"""How kernels walk tensors of one shape as rows and columns (sod_ops/_rows.py), and what losses are summed with."""
# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: N803 (compile-time constants in capitals, as everywhere in Triton)

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from sod_ops._rows import as_rows
from sod_ops.triton._planes import aligned, ceil_div, power_of_two

# Elements to a program of 128 threads: 16 to a thread, whose loads are under way together; fewer where each element needs
# an address of its own, or two registers for a number, so that none is spilled.
_TILE = 2048
_NARROW_TILE = 1024
_DOUBLE_TILE = 512
SUM_BLOCK = 1024  # numbers that sum_kernel takes at a time


class Walk(NamedTuple):
    """The grid of a kernel that visits every element once, and its arguments.

    Attributes:
        programs: one for each tile of rows and columns.
        sizes: rows and columns.
        steps: the row step and the column step of each tensor, one tensor after the other.
        constants: ALIGNMENT (a power of two that divides every row step and the number of columns), DENSE (all column steps
            are 1), BLOCK_R and BLOCK_C.
    """

    programs: int
    sizes: tuple[int, int]
    steps: tuple[int, ...]
    constants: dict[str, Any]


def plan_rows(op: str, *tensors: Tensor, double: bool) -> Walk:
    """Plans the walk over tensors of one shape, in the memory order of the first; ``double`` for work in float64."""
    found = as_rows(*tensors)
    if found is None:
        raise ValueError(f"{op}: the tensors must lie in memory as rows and columns at fixed steps")
    rows, columns, steps = found
    bits = columns | 16
    for step in steps:
        bits |= step.row
    alignment = bits & -bits
    dense = all(step.column == 1 for step in steps)
    largest = _DOUBLE_TILE if double else _TILE if dense and alignment > 1 else _NARROW_TILE
    block_c = min(power_of_two(columns), largest)
    block_r = min(power_of_two(rows), largest // block_c)
    constants = {"ALIGNMENT": alignment, "DENSE": dense, "BLOCK_R": block_r, "BLOCK_C": block_c}
    programs = ceil_div(rows, block_r) * ceil_div(columns, block_c)
    return Walk(programs, (rows, columns), tuple(number for step in steps for number in step), constants)


@triton.jit
def tile(rows, columns, ALIGNMENT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """This program's rows [BLOCK_R, 1], columns [1, BLOCK_C], mask, and offsets in a dense tensor."""
    across = tl.cdiv(columns, BLOCK_C)
    row = (tl.program_id(0) // across).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    column = (tl.program_id(0) % across).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    columns = aligned(columns, ALIGNMENT)
    return row, column, (row < rows) & (column < columns), row * columns + column


@triton.jit
def offsets(row, column, row_step, column_step, DENSE: tl.constexpr, ALIGNMENT: tl.constexpr):
    """Where a tensor's elements of a tile lie."""
    if DENSE:
        place = row * aligned(row_step, ALIGNMENT) + column
    else:
        place = row * row_step + column * column_step
    return place


@triton.jit
def store(pointer, value, mask):
    """tl.store of ``value`` in the pointer's dtype; the interpreter cannot go from float64 to two bytes at once."""
    if value.dtype == tl.float64 and pointer.dtype.element_ty.primitive_bitwidth < 32:
        value = value.to(tl.float32)
    tl.store(pointer, value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=("count",))
def sum_kernel(
    partial,  # [count]
    total,  # [1], any floating dtype
    count: tl.int32,
    BLOCK: tl.constexpr,
):
    """total = sum of partial, by one program and always in the same order."""
    sums = tl.zeros([BLOCK], dtype=tl.float64)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        sums += tl.load(partial + i, mask=i < count, other=0.0).to(tl.float64)
    store(total, tl.sum(sums, 0), None)

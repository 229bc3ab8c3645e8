"""How the losses of several heads against one mask walk maps [B, 1, H, W] of any strides."""
# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: N803 (compile-time constants in capitals, as everywhere in Triton)

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sod_ops.triton._planes import ceil_div, device_guard, power_of_two
from sod_ops.triton._rows import SUM_BLOCK, store, sum_kernel

NONE, MEAN = 0, 1  # in the order of REDUCTIONS in sod_ops/reference/sigmoid_focal_loss.py

# Arguments of the kernels that are not to be compiled in: the map's size, and the steps of a head, mask and gradient.
SIZES = ("height", "width")
HEAD_STEPS = ("x_n_step", "x_h_step", "x_w_step")
MASK_STEPS = ("y_n_step", "y_h_step", "y_w_step")
GRADIENT_STEPS = ("g_n_step", "g_h_step", "g_w_step")

_TILE = 1024
_WIDEST = 128


class Tiles:
    """The grid of a kernel that visits every pixel once.

    Attributes:
        per_sample: programs for each sample; they follow each other.
        constants: BLOCK_R, BLOCK_C.
    """

    def __init__(self, height: int, width: int, tile: int | None = None) -> None:
        """``tile``: pixels to a program, at least 128."""
        block_c = min(power_of_two(width), _WIDEST)
        block_r = min(power_of_two(height), (tile or _TILE) // block_c)
        self.per_sample = ceil_div(height, block_r) * ceil_div(width, block_c)
        self.constants: dict[str, Any] = {"BLOCK_R": block_r, "BLOCK_C": block_c}


def steps(tensor: Tensor) -> tuple[int, int, int]:
    """From sample to sample, from row to row and from column to column."""
    return tensor.stride(0), tensor.stride(2), tensor.stride(3)


def accumulator(heads: Sequence[Tensor], mask: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (heads[0].dtype, mask.dtype) else torch.float32


def empty_results(
    heads: Sequence[Tensor], mask: Tensor, reduction: int, with_gradient: bool
) -> tuple[Tensor, list[Tensor]]:
    """What a forward operator returns, to be filled: the loss, and for a mean or a sum its gradients where wanted."""
    dtype = torch.promote_types(heads[0].dtype, mask.dtype)
    loss = mask.new_empty(() if reduction else mask.shape[:1], dtype=dtype)
    return loss, [torch.empty_like(head) for head in heads] if with_gradient and reduction else []


def reduce_terms(terms: Tensor, loss: Tensor, reduction: int) -> None:
    """``loss`` from the ``terms [heads, samples]``, in which a mean is already divided."""
    heads, samples = terms.shape
    with device_guard(loss):
        if reduction == NONE:
            heads_losses_kernel[(samples,)](terms, loss, heads, samples, BLOCK=SUM_BLOCK)
        else:
            sum_kernel[(1,)](terms, loss, terms.numel(), BLOCK=SUM_BLOCK)


def grad_step(grad_output: Tensor | None, reduction: int) -> int:
    """From sample to sample in the incoming gradient; 0 where it is one number, or none."""
    return grad_output.stride(0) if grad_output is not None and reduction == NONE else 0


@triton.jit
def tile_of(height, width, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """This program's sample, rows [BLOCK_R, 1], columns [1, BLOCK_C], and what lies inside."""
    across = tl.cdiv(width, BLOCK_C)
    per_sample = tl.cdiv(height, BLOCK_R) * across
    program = tl.program_id(0).to(tl.int64)
    tile = program % per_sample
    row = tile // across * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    column = tile % across * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    return program // per_sample, row, column, (row < height) & (column < width)


@triton.jit
def load_tile(pointer, sample, row, column, inside, n_step, h_step, w_step, DTYPE: tl.constexpr):
    """A map's elements of a tile; 0 beyond the map."""
    place = sample * n_step + row * h_step + column * w_step
    return tl.load(pointer + place, mask=inside, other=0).to(DTYPE)


@triton.jit
def sum_of_parts(parts, first, count, step, BLOCK: tl.constexpr):
    """The sum in float64 of ``count`` numbers that lie ``step`` apart, always in the same order."""
    sums = tl.zeros([BLOCK], dtype=tl.float64)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        sums += tl.load(parts + (first + i) * step, mask=i < count, other=0.0).to(tl.float64)
    return tl.sum(sums, 0)


@triton.jit(do_not_specialize=("heads", "samples"))
def heads_losses_kernel(
    terms,  # [heads, samples]
    losses,  # [samples]
    heads: tl.int32,
    samples: tl.int64,
    BLOCK: tl.constexpr,
):
    """A sample's loss from its terms."""
    b = tl.program_id(0).to(tl.int64)
    store(losses + b, sum_of_parts(terms + b, 0, heads, samples, BLOCK), None)

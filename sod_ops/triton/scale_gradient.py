"""A stored gradient scaled in place (sod_ops/ops/_stored_gradient.py), without the host reading the factor."""
# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: N803 (compile-time constants in capitals, as everywhere in Triton)

from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sod_ops.triton._planes import ceil_div, device_guard

_BLOCK = 1024


@triton.jit(do_not_specialize=("count",))
def scale_gradient_kernel(
    gradient,  # [count]
    factor,  # [1], any floating dtype
    count: tl.int64,
    BLOCK: tl.constexpr,
):
    """gradient *= factor; nothing is read or written where the factor is 1."""
    dtype: tl.constexpr = tl.float64 if gradient.dtype.element_ty == tl.float64 else tl.float32
    scale = tl.load(factor).to(dtype)
    if scale != 1.0:
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(gradient + i, mask=i < count, other=0.0).to(dtype) * scale
        tl.store(gradient + i, value.to(gradient.dtype.element_ty), mask=i < count)


def scale_gradient_(gradient: Tensor, factor: Tensor) -> None:
    """Multiplies the dense tensor ``gradient`` by the one number in ``factor``."""
    count = gradient.numel()
    if count > 0:
        with device_guard(gradient):
            scale_gradient_kernel[(ceil_div(count, _BLOCK),)](gradient, factor, count, BLOCK=_BLOCK)


def ahead_of_time_cases() -> Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Launcher calls, on the meta device, whose launches together need every variant that is worth compiling ahead."""
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        gradient = torch.empty((8, 1, 320, 320), dtype=dtype, device="meta")
        yield scale_gradient_, (gradient, gradient.new_empty(()))

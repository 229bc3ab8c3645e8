"""Squeeze-and-excitation in Triton: what is launched. The kernels are in _squeeze_excite_kernels.py.

Forward, 3 launches: the means m; z1; z2 and y. Backward, 4: dz2; dz1; dm and grad_x; the weights' gradients. A program
that scales needs z2 (dm, in the backward) of its own channels only, and computes them itself from R numbers. Where
large weights would be read too often that way, and without a reduction, z2 (dm) is computed by a launch of its own.

Traffic of the maps: the forward reads x twice, the second time from the cache as far as it fits, and writes y. The
backward reads x once and the output's gradient twice, likewise, and writes x's.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sod_ops.reference.squeeze_excite import ACTIVATIONS, GATES
from sod_ops.triton._planes import Walk, ceil_div, device_guard, plan_walk, power_of_two
from sod_ops.triton._squeeze_excite_kernels import (
    pool_kernel,
    product_kernel,
    scale_backward_kernel,
    scale_kernel,
    weight_gradient_kernel,
)
from sod_ops.triton.activation import GELU, IDENTITY, MISH, RELU, SIGMOID

# How many numbers of a weight all programs together may read before a launch of its own is cheaper: about what an L2
# cache delivers in the time that a launch takes.
_REREAD_LIMIT = 1 << 22

_IDENTITY = IDENTITY.value


class _Product(NamedTuple):
    """A launch of product_kernel: its grid and compile-time sizes."""

    grid: tuple[int]
    constants: dict[str, int]


class _Plan(NamedTuple):
    """Everything about the launches that depends on shapes, strides and item size alone.

    Attributes:
        walk: over x and y, or over x, y's gradient and x's.
        block_r: R at a time, for the programs that scale and compute z2 (dm) as well.
        hidden: what the first weight maps the channels to: R, or C without a reduction.
        squeeze: the launch for z1 and for dz1; without a reduction for z2 and dm.
        excite: the launch for z2 and for dm, or None where the programs that scale compute them.
        gradient_grid, gradient_constants: of weight_gradient_kernel.
    """

    walk: Walk
    block_r: int
    hidden: int
    squeeze: _Product
    excite: _Product | None
    gradient_grid: tuple[int]
    gradient_constants: dict[str, int]


def squeeze_excite(
    x: Tensor,
    reduce_weight: Tensor | None,
    reduce_bias: Tensor | None,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    activation: int,
    gate: int,
) -> tuple[Tensor, Tensor]:
    """y and statistics; arguments as those of the operator, in one of the two memory formats."""
    samples, channels, height, width = x.shape
    pixels = height * width
    has_reduction = reduce_weight is not None
    reduced = reduce_weight.shape[0] if reduce_weight is not None else 0
    row = 2 * channels + reduced
    y = torch.empty_like(x)
    statistics = x.new_empty((samples, row), dtype=_accumulator(x))
    if not samples or not channels:
        return y, statistics.zero_()

    plan = _plan(x.shape, (x.stride(), y.stride()), x.element_size(), reduced, has_reduction)
    walk, parts = plan.walk, plan.walk.parts
    sums = statistics.new_empty((samples, parts, channels)) if parts > 1 else None
    with device_guard(x):
        pool_kernel[walk.grid](
            x, None, None, statistics if sums is None else sums,
            channels, reduced, pixels, parts, walk.part_blocks, *walk.steps,
            GATE=gate, SPLIT=parts > 1, **walk.constants,
        )  # fmt: skip
        weight, bias = (reduce_weight, reduce_bias) if has_reduction else (expand_weight, expand_bias)
        product_kernel[plan.squeeze.grid](
            sums, statistics, None, weight, bias, samples, parts, channels, plan.hidden, row, 0, channels,
            INPUT_ACTIVATION=_IDENTITY, OUTPUT_ACTIVATION=_IDENTITY, TRANSPOSED=False, **plan.squeeze.constants,
        )  # fmt: skip
        if plan.excite is not None:
            product_kernel[plan.excite.grid](
                None, statistics, None, expand_weight, expand_bias, samples, 1, reduced, channels, row,
                channels, channels + reduced,
                INPUT_ACTIVATION=activation, OUTPUT_ACTIVATION=_IDENTITY, TRANSPOSED=False, **plan.excite.constants,
            )  # fmt: skip
        in_place = has_reduction and plan.excite is None
        scale_kernel[walk.grid](
            x, expand_weight if in_place else None, expand_bias if in_place else None, statistics, y,
            channels, reduced, pixels, parts, walk.part_blocks, *walk.steps,
            ACTIVATION=activation if in_place else _IDENTITY, GATE=gate, BLOCK_R=plan.block_r, **walk.constants,
        )  # fmt: skip
    return y, statistics


def squeeze_excite_backward(
    grad_output: Tensor,
    x: Tensor,
    reduce_weight: Tensor | None,
    expand_weight: Tensor,
    statistics: Tensor,
    activation: int,
    gate: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, reduce_weight, reduce_bias, expand_weight and expand_bias.

    Those of a reduction that is not there are empty. ``grad_output`` is in the memory format of ``x``.
    """
    samples, channels, height, width = x.shape
    pixels = height * width
    has_reduction = reduce_weight is not None
    grad_x = torch.empty_like(x)
    grad_expand_weight = torch.empty_like(expand_weight)
    grad_expand_bias = expand_weight.new_empty((channels,))
    if reduce_weight is not None:
        reduced = reduce_weight.shape[0]
        grad_reduce_weight = torch.empty_like(reduce_weight)
        grad_reduce_bias = reduce_weight.new_empty((reduced,))
    else:
        reduced = 0
        grad_reduce_weight = expand_weight.new_empty((0,))
        grad_reduce_bias = expand_weight.new_empty((0,))
    if not samples or not channels:
        for gradient in (grad_reduce_weight, grad_reduce_bias, grad_expand_weight, grad_expand_bias):
            gradient.zero_()
        return grad_x, grad_reduce_weight, grad_reduce_bias, grad_expand_weight, grad_expand_bias

    strides = x.stride(), grad_output.stride(), grad_x.stride()
    plan = _plan(x.shape, strides, x.element_size(), reduced, has_reduction)
    walk, parts = plan.walk, plan.walk.parts
    row = 2 * channels + reduced
    gradients = torch.empty_like(statistics)
    sums = statistics.new_empty((samples, parts, channels)) if parts > 1 else None
    with device_guard(x):
        pool_kernel[walk.grid](
            x, grad_output, statistics, gradients if sums is None else sums,
            channels, reduced, pixels, parts, walk.part_blocks, *walk.steps[:4],
            GATE=gate, SPLIT=parts > 1, **walk.constants,
        )  # fmt: skip
        product_kernel[plan.squeeze.grid](
            sums, gradients, statistics if has_reduction else None, expand_weight, None, samples, parts,
            channels, plan.hidden, row, channels + reduced, channels if has_reduction else 0,
            INPUT_ACTIVATION=_IDENTITY, OUTPUT_ACTIVATION=activation, TRANSPOSED=True, **plan.squeeze.constants,
        )  # fmt: skip
        if plan.excite is not None:
            product_kernel[plan.excite.grid](
                None, gradients, None, reduce_weight, None, samples, 1, reduced, channels, row, channels, 0,
                INPUT_ACTIVATION=_IDENTITY, OUTPUT_ACTIVATION=_IDENTITY, TRANSPOSED=True, **plan.excite.constants,
            )  # fmt: skip
        scale_backward_kernel[walk.grid](
            grad_output, reduce_weight if plan.excite is None else None, statistics, gradients, grad_x,
            channels, reduced, pixels, parts, walk.part_blocks, *walk.steps[2:],
            GATE=gate, BLOCK_R=plan.block_r, **walk.constants,
        )  # fmt: skip
        weight_gradient_kernel[plan.gradient_grid](
            statistics, gradients, grad_reduce_weight if has_reduction else None,
            grad_reduce_bias if has_reduction else None, grad_expand_weight, grad_expand_bias,
            samples, channels, reduced, ACTIVATION=activation, **plan.gradient_constants,
        )  # fmt: skip
    return grad_x, grad_reduce_weight, grad_reduce_bias, grad_expand_weight, grad_expand_bias


def _accumulator(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@functools.lru_cache(maxsize=4096)
def _plan(
    shape: torch.Size, strides: tuple[tuple[int, ...], ...], item_size: int, reduced: int, has_reduction: bool
) -> _Plan:
    samples, channels = shape[:2]
    hidden = reduced if has_reduction else channels
    walk = plan_walk(shape, strides, item_size)
    separate = has_reduction and samples * walk.parts * channels * reduced > _REREAD_LIMIT
    block_h = 16 if hidden <= 16 else 32
    block_c = 32
    return _Plan(
        walk=walk,
        block_r=min(max(2048 // walk.constants["BLOCK_C"], 16), 256),
        hidden=hidden,
        squeeze=_plan_product(samples, channels, hidden),
        excite=_plan_product(samples, reduced, channels) if separate else None,
        gradient_grid=(ceil_div(channels, block_c) * max(ceil_div(hidden, block_h), 1) * (1 + has_reduction),),
        gradient_constants={"BLOCK_N": 16, "BLOCK_C": block_c, "BLOCK_H": block_h, "num_warps": block_h // 4},
    )


def _plan_product(samples: int, inputs: int, outputs: int) -> _Product:
    """Few outputs to a program, so that there are many programs; 32 products to a thread."""
    block_n = min(power_of_two(samples), 4)
    block_o = 8
    num_warps = 8 if inputs >= 1024 else 4
    block_i = min(max(power_of_two(inputs), 64), num_warps * 1024 // (block_n * block_o))
    grid = (ceil_div(samples, block_n) * max(ceil_div(outputs, block_o), 1),)
    return _Product(grid, {"BLOCK_N": block_n, "BLOCK_O": block_o, "BLOCK_I": block_i, "num_warps": num_warps})


def ahead_of_time_cases() -> Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Launcher calls, on the meta device, whose launches together need every variant that is worth compiling ahead."""
    float32, bfloat16, float16, float64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
    for case in (
        _Case((8, 256, 56, 56), 16, float32),  # a tile is a row of pixels
        _Case((8, 1024, 14, 14), 64, bfloat16),  # a tile is several rows, divisible by 4
        _Case((32, 2048, 7, 7), 128, float32),  # rows of 49; z2 and dm by launches of their own
        _Case((8, 256, 56, 56), 16, float32, channels_last=True),  # pixels in parts
        _Case((32, 1024, 14, 14), 64, bfloat16, float32, channels_last=True),  # pixels not in parts
        _Case((2, 96, 28, 28), None, float16, channels_last=True),  # no reduction
        _Case((2, 8, 8, 8), 4, float64, channels_last=True),
    ):
        yield from (case.forward(), case.backward())
    # A backward computes both the activation and its derivative. In float64, those that take most registers.
    variants = [(float32, index) for index in range(len(ACTIVATIONS))] + [(float64, GELU.value), (float64, MISH.value)]
    for dtype, activation in variants:
        yield _Case((2, 8, 8, 8), 4, dtype, activation=activation, gate=activation % len(GATES)).backward()


class _Case(NamedTuple):
    """A call by shapes and dtypes; ``reduced`` is R, or None without a reduction."""

    shape: tuple[int, int, int, int]
    reduced: int | None
    dtype: torch.dtype
    parameter_dtype: torch.dtype | None = None
    channels_last: bool = False
    activation: int = RELU.value
    gate: int = SIGMOID.value

    def forward(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        reduce_weight, expand_weight = self._weights()
        reduce_bias = None if reduce_weight is None else reduce_weight[:, 0]
        x = self._map()
        return squeeze_excite, (
            x, reduce_weight, reduce_bias, expand_weight, expand_weight[:, 0], self.activation, self.gate
        )  # fmt: skip

    def backward(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        reduce_weight, expand_weight = self._weights()
        x = self._map()
        statistics = x.new_empty((x.shape[0], 2 * x.shape[1] + (self.reduced or 0)), dtype=_accumulator(x))
        return squeeze_excite_backward, (
            x, x, reduce_weight, expand_weight, statistics, self.activation, self.gate
        )  # fmt: skip

    def _map(self) -> Tensor:
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        return torch.empty(self.shape, dtype=self.dtype, device="meta", memory_format=memory_format)

    def _weights(self) -> tuple[Tensor | None, Tensor]:
        channels, reduced = self.shape[1], self.reduced
        like = torch.empty(0, dtype=self.parameter_dtype or self.dtype, device="meta")
        reduce_weight = None if reduced is None else like.new_empty((reduced, channels))
        return reduce_weight, like.new_empty((channels, channels if reduced is None else reduced))

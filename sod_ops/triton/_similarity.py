"""The structural similarity in Triton, for the ops that contain it: csrc/math/ssim.h has the arithmetic.

A window's averages are taken along rows and then along columns: a launch for each, and one for each on the way back, where
the derivatives by the averages pass through the same filter. In between, maps of numbers lie in a workspace: planes are
taken in groups, so that it is bounded and stays in the GPU's second-level cache.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: N803 (compile-time constants in capitals, as everywhere in Triton)

import functools
import math
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from sod_ops.triton._heads import SIZES, Tiles, load_tile, tile_of
from sod_ops.triton._planes import ceil_div, device_guard, power_of_two
from sod_ops.triton.focal_loss import double

# The maps, and in the same order the index's derivatives by their averages: x, x^2 + y^2, x y, y.
_MAPS = 4
_TILE = 512  # pixels, four to a thread: of eight, with an average of four maps each, float64 would be spilled
_WORKSPACE = 2**22  # numbers: 16 MB in float32; a single plane may need more

FIRST_STEPS = ("x_n_step", "x_c_step", "x_h_step", "x_w_step")
SECOND_STEPS = ("y_n_step", "y_c_step", "y_h_step", "y_w_step")


@triton.jit(do_not_specialize=("count", "half", "sigma", "scale"))
def gaussian_weights_kernel(
    weights,  # [count]
    count: tl.int64,
    half: tl.int64,
    sigma: tl.float64,
    scale: tl.float64,
    BLOCK: tl.constexpr,
):
    """The weights at distances -half ... half from the centre."""
    t = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    deviations = (t - half).to(tl.float64) / double(sigma)
    weight = tl.exp(-0.5 * deviations * deviations) * double(scale)
    tl.store(weights + t, weight.to(weights.dtype.element_ty), mask=t < count)


@triton.jit
def start_of(plane, channels, n_step, c_step):
    """Where a plane of a map [N, C, H, W] starts."""
    return plane // channels * n_step + plane % channels * c_step


@triton.jit(do_not_specialize=(*SIZES, "half", "first", "channels", "map_step", *FIRST_STEPS, *SECOND_STEPS))
def maps_across_kernel(
    x,  # [N, C, H, W] at its steps, like y
    y,
    averages,  # [_MAPS, planes, H, W], dense
    weights,  # [2 half + 1]
    height: tl.int64,
    width: tl.int64,
    half: tl.int64,
    first: tl.int64,
    channels: tl.int64,
    map_step: tl.int64,
    x_n_step: tl.int64,
    x_c_step: tl.int64,
    x_h_step: tl.int64,
    x_w_step: tl.int64,
    y_n_step: tl.int64,
    y_c_step: tl.int64,
    y_h_step: tl.int64,
    y_w_step: tl.int64,
    WITH_Y: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The maps' averages along rows, from plane ``first`` on; without WITH_Y, that of y is there already."""
    dtype: tl.constexpr = averages.dtype.element_ty
    plane, row, column, inside = tile_of(height, width, BLOCK_R, BLOCK_C)
    from_x = x + start_of(first + plane, channels, x_n_step, x_c_step)
    from_y = y + start_of(first + plane, channels, y_n_step, y_c_step)
    of_x = tl.zeros([BLOCK_R, BLOCK_C], dtype)
    of_squares = tl.zeros([BLOCK_R, BLOCK_C], dtype)
    of_product = tl.zeros([BLOCK_R, BLOCK_C], dtype)
    of_y = tl.zeros([BLOCK_R, BLOCK_C], dtype)
    for t in range(2 * half + 1):
        near = column + t - half
        there = (row < height) & (near >= 0) & (near < width)
        a = load_tile(from_x, 0, row, near, there, 0, x_h_step, x_w_step, dtype)
        b = load_tile(from_y, 0, row, near, there, 0, y_h_step, y_w_step, dtype)
        weight = tl.load(weights + t)
        of_x += weight * a
        of_squares += weight * (a * a + b * b)
        of_product += weight * (a * b)
        if WITH_Y:
            of_y += weight * b
    place = averages + (plane * height + row) * width + column
    tl.store(place, of_x, mask=inside)
    tl.store(place + map_step, of_squares, mask=inside)
    tl.store(place + 2 * map_step, of_product, mask=inside)
    if WITH_Y:
        tl.store(place + 3 * map_step, of_y, mask=inside)


@triton.jit(do_not_specialize=(*SIZES, "half"))
def derivatives_across_kernel(
    derivatives,  # [planes, H, W], dense, like averages
    averages,
    weights,  # [2 half + 1]
    height: tl.int64,
    width: tl.int64,
    half: tl.int64,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Averages along rows."""
    dtype: tl.constexpr = averages.dtype.element_ty
    plane, row, column, inside = tile_of(height, width, BLOCK_R, BLOCK_C)
    total = tl.zeros([BLOCK_R, BLOCK_C], dtype)
    for t in range(2 * half + 1):
        near = column + t - half
        there = (row < height) & (near >= 0) & (near < width)
        total += tl.load(weights + t) * load_tile(derivatives, plane, row, near, there, height * width, width, 1, dtype)
    tl.store(averages + (plane * height + row) * width + column, total, mask=inside)


@triton.jit
def averages_down(averages, weights, plane, row, column, height, width, half, map_step, WITH_Y: tl.constexpr):
    """Four averages over windows from those along rows; without WITH_Y the last is 0."""
    dtype: tl.constexpr = averages.dtype.element_ty
    zero = (row + column).to(dtype) * 0.0
    of_x = zero
    of_squares = zero
    of_product = zero
    of_y = zero
    for t in range(2 * half + 1):
        near = row + t - half
        there = (column < width) & (near >= 0) & (near < height)
        place = averages + (plane * height + near) * width + column
        weight = tl.load(weights + t)
        of_x += weight * tl.load(place, mask=there, other=0.0)
        of_squares += weight * tl.load(place + map_step, mask=there, other=0.0)
        of_product += weight * tl.load(place + 2 * map_step, mask=there, other=0.0)
        if WITH_Y:
            of_y += weight * tl.load(place + 3 * map_step, mask=there, other=0.0)
    return of_x, of_squares, of_product, of_y


@triton.jit(do_not_specialize=(*SIZES, "half", "map_step"))
def similarity_kernel(
    averages,  # [_MAPS, planes, H, W], dense, like derivatives
    derivatives,  # or None
    parts,  # [programs]
    weights,  # [2 half + 1]
    height: tl.int64,
    width: tl.int64,
    half: tl.int64,
    map_step: tl.int64,
    BOTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """This program's sum of indices, and their derivatives by the averages; that of y's where BOTH holds."""
    plane, row, column, inside = tile_of(height, width, BLOCK_R, BLOCK_C)
    mx, squares, product, my = averages_down(averages, weights, plane, row, column, height, width, half, map_step, True)
    both = mx * my
    means = mx * mx + my * my
    by_means = 1.0 / (means + 1e-4)
    by_variances = 1.0 / (squares - means + 9e-4)
    luminance = (2.0 * both + 1e-4) * by_means
    contrast = (2.0 * (product - both) + 9e-4) * by_variances
    index = luminance * contrast
    tl.store(parts + tl.program_id(0), tl.sum(tl.sum(tl.where(inside, index, 0.0), 1), 0))
    if derivatives is not None:
        place = derivatives + (plane * height + row) * width + column
        by_product = 2.0 * luminance * by_variances
        by_squares = -0.5 * contrast * by_product
        scale = 2.0 * contrast * by_means
        by_mean = scale * (my - mx * luminance) - (2.0 * mx * by_squares + my * by_product)
        tl.store(place, by_mean, mask=inside)
        tl.store(place + map_step, by_squares, mask=inside)
        tl.store(place + 2 * map_step, by_product, mask=inside)
        if BOTH:
            by_mean = scale * (mx - my * luminance) - (2.0 * my * by_squares + mx * by_product)
            tl.store(place + 3 * map_step, by_mean, mask=inside)


@triton.jit
def derivative_by_own(by_mean, by_squares, by_product, own, other):
    """The derivative by a pixel of x, or of y, from averages of the derivatives by the maps' averages."""
    return by_mean + 2.0 * own * by_squares + other * by_product


class Similarity:
    """The launches for planes of one size and one window.

    Attributes:
        per_plane: sums of indices that :meth:`run` gives for a plane; they follow each other.
        averages: where it leaves the derivatives' averages along rows.
        constants: BLOCK_R and BLOCK_C, of a kernel with ``per_plane`` programs for each plane.
    """

    def __init__(self, x: Tensor, window_size: int, sigma: float, dtype: torch.dtype, *, derivatives: int) -> None:
        """``derivatives``: 0, 3 for those by x, 4 for those by y too."""
        samples, self._channels, self._height, self._width = x.shape
        tiles = Tiles(self._height, self._width, _TILE)
        self.per_plane, self.constants = tiles.per_sample, tiles.constants
        self._count, pixels = samples * self._channels, self._height * self._width
        self._group = min(self._count, max(1, _WORKSPACE // ((_MAPS + derivatives) * pixels)))
        self._map_step, self._derivatives = self._group * pixels, derivatives
        self.averages = x.new_empty((_MAPS * self._map_step,), dtype=dtype)
        self._by_averages = x.new_empty((derivatives * self._map_step,), dtype=dtype) if derivatives else None
        self._halves = tuple(min(window_size // 2, size - 1) for size in (self._height, self._width))
        half = max(self._halves)
        self._weights = x.new_empty((2 * half + 1,), dtype=dtype)
        block = min(power_of_two(2 * half + 1), 256)
        with device_guard(x):
            gaussian_weights_kernel[(ceil_div(2 * half + 1, block),)](
                self._weights, 2 * half + 1, half, float(sigma), _scale(window_size, sigma), BLOCK=block
            )

    def groups(self) -> Iterator[tuple[int, int]]:
        """The first plane and the number of planes of each part that fits into the workspace."""
        for first in range(0, self._count, self._group):
            yield first, min(self._group, self._count - first)

    def axis(self, axis: int) -> tuple[Tensor, int, int, int]:
        """Arguments of a kernel that filters along columns (0) or rows (1): weights, height, width, half."""
        half = self._halves[axis]
        return self._weights[max(self._halves) - half :], self._height, self._width, half

    @property
    def map_step(self) -> int:
        """From one map to the next in ``averages``."""
        return self._map_step

    def run(self, x: Tensor, y: Tensor, first: int, planes: int, parts: Tensor, *, with_y: bool = True) -> None:
        """Writes the sums of a group's indices to ``parts``, and leaves the derivatives' averages along rows.

        Without ``with_y`` the averages along rows of y are those of the last call; derivatives are then those by x.
        """
        grid = (planes * self.per_plane,)
        across = self.axis(1)
        with device_guard(x):
            maps_across_kernel[grid](
                x, y, self.averages, *across, first, self._channels, self._map_step, *x.stride(), *y.stride(),
                WITH_Y=with_y, **self.constants,
            )  # fmt: skip
            similarity_kernel[grid](
                self.averages, self._by_averages, parts, *self.axis(0), self._map_step,
                BOTH=self._derivatives == _MAPS, **self.constants,
            )  # fmt: skip
            if self._by_averages is not None:
                for index in range(self._derivatives):
                    part = slice(index * self._map_step, (index + 1) * self._map_step)
                    derivatives_across_kernel[grid](
                        self._by_averages[part], self.averages[part], *across, **self.constants
                    )


@functools.lru_cache(maxsize=16)
def _scale(window_size: int, sigma: float) -> float:
    """What makes the weights add up to 1."""
    deviations = ((t - window_size // 2) / sigma for t in range(window_size))
    return 1 / math.fsum(math.exp(-0.5 * d * d) for d in deviations)

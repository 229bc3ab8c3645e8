"""Whether it pays to convolve a branch before it is upsampled: the cost model of pyramid_conv2d, on a CPU.

Per number of output, a convolution over the upsampled branch multiplies ``taps * C`` times, f^2 times as often as at the
branch's own size (f^2 the pixels of the output to one of the branch), and moves the upsampled branch and its copy in the
concatenation, which all numbers of a pixel share. At its own size, products are interpolated along the rows, ``taps`` for
each number of the branch's size, and added up by a pass over the output.
"""

from typing import NamedTuple

from torch import Tensor


class _Costs(NamedTuple):
    """In nanoseconds, of float32 (other types change all alike), on the processor that benchmarks/results names.

    Fitted to the times of both forms on the grid of benchmarks/cost_of_upsampling.py: few choices are to lose more than 3 %.
    """

    multiplication: float
    number: float  # of the upsampled branch, moved to or from memory
    product: float
    output: float


_FORWARD = _Costs(multiplication=0.014, number=0.64, product=0.88, output=1.08)
_WITH_BACKWARD = _Costs(multiplication=0.057, number=1.36, product=2.4, output=1.83)


# What a product and a number of the output cost of a branch that nearest neighbours double, of what they do otherwise: such
# a branch has kernels of its own (csrc/simd/doubled_branch.h), from a number of rows and columns on, and of pixels for each
# channel (csrc/cpu/doubled_branch.h).
_DOUBLED = 0.35
_DOUBLED_SHORTEST, _DOUBLED_PIXELS = 24, 16


def pays_before_upsampling(
    branch: Tensor, weight: Tensor, size: tuple[int, int], with_backward: bool, mode: str
) -> bool:
    """Whether ``branch [N, C, h, w]`` is cheaper to convolve with ``weight`` at its own size than upsampled to ``size``."""
    costs = _WITH_BACKWARD if with_backward else _FORWARD
    out_channels, taps = weight.shape[0], weight.shape[2] * weight.shape[3]
    channels = branch.shape[1]
    share = branch.shape[2] * branch.shape[3] / (size[0] * size[1])  # 1 / f^2
    multiplications = taps * channels * (1 - share) * costs.multiplication
    upsampled = 3 * channels * costs.number / out_channels  # written, read and written again
    added = taps * share * costs.product + costs.output
    if taps > 1 and mode == "nearest" and _is_doubled(branch, size):
        added *= _DOUBLED
    return multiplications + upsampled > added


def _is_doubled(branch: Tensor, size: tuple[int, int]) -> bool:
    samples, channels, height, width = branch.shape
    return (
        (2 * height, 2 * width) == size
        and min(height, width) >= _DOUBLED_SHORTEST
        and samples * height * width >= _DOUBLED_PIXELS * channels
    )

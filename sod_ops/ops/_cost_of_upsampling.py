"""Whether it pays to convolve a branch before it is upsampled: the cost model of pyramid_conv2d, on a CPU.

Per number of output, a convolution over the upsampled branch multiplies ``taps * C`` times, f^2 times as often as at the
branch's own size (f^2 the pixels of the output to one of the branch), and moves the upsampled branch and its copy in the
concatenation, which all numbers of a pixel share. At its own size, products are written and read again for each tap, and a
pass over the output adds them up.
"""

from torch import Tensor

# In nanoseconds, of float32 (other types change all three alike), on the processor that benchmarks/results names: fitted to
# the times of both forms at the stages of a U-Net, 16 to 128 channels at twice their size.
_MULTIPLICATION = 0.007
_NUMBER = 0.32  # moved to or from memory
_PASS = 0.5


def pays_before_upsampling(branch: Tensor, weight: Tensor, size: tuple[int, int]) -> bool:
    """Whether ``branch [N, C, h, w]`` is cheaper to convolve with ``weight`` at its own size than upsampled to ``size``."""
    out_channels, taps = weight.shape[0], weight.shape[2] * weight.shape[3]
    channels = branch.shape[1]
    share = branch.shape[2] * branch.shape[3] / (size[0] * size[1])  # 1 / f^2
    multiplications = taps * channels * (1 - share) * _MULTIPLICATION
    upsampled = 3 * channels * _NUMBER / out_channels  # written, read and written again
    products = 2 * taps * share * _NUMBER + _PASS
    return multiplications + upsampled > products

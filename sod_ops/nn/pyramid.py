"""Pyramid pooling: the module that concatenates its levels with the map, and the head that convolves them with it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import BatchNorm2d, Conv2d, Module, ModuleList, ReLU, Sequential

from sod_ops.ops import _checks
from sod_ops.ops._pointwise_conv2d import is_pointwise, parameters_of, pointwise_conv2d
from sod_ops.ops.pyramid_conv2d import pyramid_conv2d
from sod_ops.ops.pyramid_pool import check_bins, pool_and_pass_on
from sod_ops.ops.pyramid_upsample_concat import pyramid_upsample_concat


class _Layers(NamedTuple):
    """What a block of convolution, norm and activation is made of."""

    norm: Callable[[int], Module] | None
    activation: Callable[[], Module] | None
    device: torch.device | str | None
    dtype: torch.dtype | None

    def check(self, module: str) -> None:
        for argument, factory in (("norm", self.norm), ("activation", self.activation)):
            if factory is not None and (isinstance(factory, Module) or not callable(factory)):
                _checks.bad_type(module, argument, "a class or function that makes a module, or None", repr(factory))

    def block(self, in_channels: int, out_channels: int, kernel_size: int) -> Sequential:
        block = Sequential(
            Conv2d(
                in_channels,
                out_channels,
                kernel_size,
                padding=kernel_size // 2,
                bias=self.norm is None,
                device=self.device,
                dtype=self.dtype,
            )
        )
        if self.norm is not None:
            block.append(self.norm(out_channels).to(device=self.device, dtype=self.dtype))
        if self.activation is not None:
            block.append(self.activation())
        return block


class _Pyramid(Module):
    """What both modules have: levels pooled from x, each with its 1x1 convolution."""

    def __init__(
        self, in_channels: int, channels: int, bins: Sequence[int], layers: _Layers, align_corners: bool, x_first: bool
    ) -> None:
        super().__init__()
        name = type(self).__name__
        for argument, count in (("in_channels", in_channels), ("channels", channels)):
            _checks.check_count(name, argument, count)
        layers.check(name)
        for argument, flag in (("align_corners", align_corners), ("x_first", x_first)):
            _checks.check_bool(name, argument, flag)
        self.in_channels = in_channels
        self.bins = tuple(bins)
        self.align_corners = align_corners
        self.x_first = x_first
        self.branches = ModuleList(layers.block(in_channels, channels, 1) for _ in self.bins)

    def pooled(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """``x`` for who reads it next, and every level of it through its branch, at its own size."""
        x, levels = pool_and_pass_on(x, self.bins)
        if x.shape[1] != self.in_channels:
            expected = f"of shape [N, {self.in_channels}, H, W]"
            _checks.bad_value(type(self).__name__, "x", expected, _checks.shape_of(x))
        branches: Any = self.branches
        pooled = []
        for branch, y in zip(branches, _convolved([branch[0] for branch in branches], levels), strict=True):
            for module in branch[1:]:
                y = module(y)
            pooled.append(y)
        return x, pooled

    def extra_repr(self) -> str:
        return f"bins={self.bins}, align_corners={self.align_corners}, x_first={self.x_first}"


def _convolved(convolutions: Sequence[Any], levels: Sequence[Tensor]) -> list[Tensor]:
    """Every level through its convolution: on a CPU all in one operator, which reads each weight once."""
    plain = levels[0].is_cpu and all(map(is_pointwise, convolutions))
    if not plain or len({convolution.bias is None for convolution in convolutions}) > 1:
        return [convolution(level) for convolution, level in zip(convolutions, levels, strict=True)]
    return pointwise_conv2d(levels, *parameters_of(convolutions))


class PyramidPooling(_Pyramid):
    """Pyramid pooling module: levels of pooled x, each convolved 1x1, upsampled and concatenated with x.

    :func:`sod_ops.pyramid_pool`, then for every level a branch of convolution, norm and activation on its few pixels, which
    are PyTorch's modules, then :func:`sod_ops.pyramid_upsample_concat`. On a CPU the convolutions are computed all at once
    and not called, unless there is a hook on one of them.

    The state_dict holds ``branches.<i>.0.weight`` ``[channels, C, 1, 1]``, its bias where there is no norm, and what the
    norms ``branches.<i>.1`` hold.

    Args:
        in_channels: C, the channels of the input.
        bins: the levels, each of s x s bins.
        channels: those of every branch; None for C divided by the number of levels, as in the paper.
        norm: what makes the norm behind a convolution, given the number of channels; None for none, and then the
            convolutions have biases. Batch normalisation in training refuses a batch of one image where a level has one
            bin: one value for each channel has no variance.
        activation: what makes the activation behind it, without arguments; None for none.
        align_corners: as :func:`sod_ops.pyramid_upsample_concat` has it.
        x_first: likewise.
        device: of the parameters.
        dtype: of the parameters.

    Input and output:
        ``[N, C, H, W]``, and ``[N, C + len(bins) * channels, H, W]`` in the input's memory format.

    Raises:
        TypeError: an argument is not of the type named above.
        ValueError: a number of channels or a bin is below 1, there are no bins, or C is smaller than their number; in a
            call, the input has other channels.

    Source:
        Zhao et al.: Pyramid Scene Parsing Network, CVPR 2017.
    """

    def __init__(
        self,
        in_channels: int,
        bins: Sequence[int] = (1, 2, 3, 6),
        channels: int | None = None,
        *,
        norm: Callable[[int], Module] | None = BatchNorm2d,
        activation: Callable[[], Module] | None = ReLU,
        align_corners: bool = False,
        x_first: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_bins("PyramidPooling", bins)
        _checks.check_count("PyramidPooling", "in_channels", in_channels)
        if channels is None:
            if in_channels < len(bins):
                _checks.bad_value("PyramidPooling", "in_channels", f"at least {len(bins)}, one per bin", in_channels)
            channels = in_channels // len(bins)
        layers = _Layers(norm, activation, device, dtype)
        super().__init__(in_channels, channels, bins, layers, align_corners, x_first)

    def forward(self, x: Tensor) -> Tensor:
        return pyramid_upsample_concat(*self.pooled(x), align_corners=self.align_corners, x_first=self.x_first)


class PyramidPoolingHead(_Pyramid):
    """Head of PSPNet and UPerNet: a 3x3 convolution over x and its pooled levels, which are never upsampled.

    The branches of :class:`PyramidPooling`, then ``bottleneck``: convolution, norm and activation. Its convolution is
    computed by :func:`sod_ops.pyramid_conv2d` on its weight: it is never called itself, and hooks on it don't run.

    The state_dict is that of :class:`PyramidPooling`, with ``bottleneck.0.weight``
    ``[channels, C + len(bins) * channels, 3, 3]``, its bias where there is no norm, and what the norm ``bottleneck.1``
    holds.

    Args:
        in_channels: C, the channels of the input.
        channels: those of every branch and of the output.
        bins: the levels, each of s x s bins.

    The other arguments are those of :class:`PyramidPooling`, and so are the errors.

    Input and output:
        ``[N, C, H, W]``, and ``[N, channels, H, W]``.

    Source:
        Zhao et al.: Pyramid Scene Parsing Network, CVPR 2017; Xiao et al.: Unified Perceptual Parsing for Scene
        Understanding, ECCV 2018.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int = 512,
        bins: Sequence[int] = (1, 2, 3, 6),
        *,
        norm: Callable[[int], Module] | None = BatchNorm2d,
        activation: Callable[[], Module] | None = ReLU,
        align_corners: bool = False,
        x_first: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_bins("PyramidPoolingHead", bins)
        layers = _Layers(norm, activation, device, dtype)
        super().__init__(in_channels, channels, bins, layers, align_corners, x_first)
        self.bottleneck = layers.block(in_channels + len(bins) * channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        convolution: Any
        convolution, *rest = self.bottleneck
        y = pyramid_conv2d(
            *self.pooled(x),
            convolution.weight,
            convolution.bias,
            align_corners=self.align_corners,
            x_first=self.x_first,
        )
        for module in rest:
            y = module(y)
        return y

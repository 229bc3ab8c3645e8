"""The convolution over a map and upsampled maps, with weights of its own."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sod_ops.ops import _checks
from sod_ops.ops._check_pyramid_conv2d import check_options
from sod_ops.ops.pyramid_conv2d import pyramid_conv2d


class UpsampleConcatConv2d(torch.nn.Module):
    """A decoder's ``interpolate -> cat -> conv2d``: :func:`sod_ops.pyramid_conv2d` on weights of its own.

    The state_dict is that of the ``torch.nn.Conv2d`` over the concatenation, ``weight`` and ``bias``, and they are
    initialised likewise.

    Args:
        in_channels: those of all maps together.
        out_channels: those of the output.
        kernel_size: 3 (padded by 1) or 1.
        bias: whether there is one.
        mode: how branches are upsampled: ``"bilinear"`` or ``"nearest"``.
        align_corners: as in ``torch.nn.functional.interpolate``; for mode ``"bilinear"``.
        x_first: whether x comes before the branches in the concatenation, or after them.
        device: of the parameters.
        dtype: of the parameters.

    Input and output:
        x ``[N, C, H, W]`` and a list or tuple of branches ``[N, C_i, H_i, W_i]``, C and all C_i of which are in_channels;
        ``[N, out_channels, H, W]``. Without a skip connection, x is None and ``size`` (H, W).

    Raises:
        TypeError: an argument is not of the type named above.
        ValueError: a number of channels is below 1, or an option none of those named above.

    Source:
        Ronneberger, Fischer, Brox: U-Net: Convolutional Networks for Biomedical Image Segmentation, MICCAI 2015.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        bias: bool = True,
        mode: str = "bilinear",
        align_corners: bool = False,
        x_first: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        for argument, count in (("in_channels", in_channels), ("out_channels", out_channels)):
            _checks.check_count(name, argument, count)
        _checks.check_count(name, "kernel_size", kernel_size)
        if kernel_size not in (1, 3):
            _checks.bad_value(name, "kernel_size", "1 or 3", kernel_size)
        _checks.check_bool(name, "bias", bias)
        check_options(name, align_corners, x_first, mode)
        convolution = torch.nn.Conv2d(in_channels, out_channels, kernel_size, bias=bias, device=device, dtype=dtype)
        self.weight, self.bias = convolution.weight, convolution.bias
        self.mode = mode
        self.align_corners = align_corners
        self.x_first = x_first

    def forward(self, x: Tensor | None, branches: Sequence[Tensor], size: tuple[int, int] | None = None) -> Tensor:
        return pyramid_conv2d(
            x,
            branches,
            self.weight,
            self.bias,
            padding=self.weight.shape[2] // 2,
            align_corners=self.align_corners,
            x_first=self.x_first,
            mode=self.mode,
            size=size,
        )

    def extra_repr(self) -> str:
        out_channels, in_channels, kernel_size, _ = self.weight.shape
        return (
            f"{in_channels}, {out_channels}, kernel_size={kernel_size}, bias={self.bias is not None}, mode={self.mode!r}, "
            f"align_corners={self.align_corners}, x_first={self.x_first}"
        )

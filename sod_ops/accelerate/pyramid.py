"""The convolution that a head or a decoder takes over a map and upsampled maps, without their concatenation."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules import module as torch_module

from sod_ops.accelerate.functions import path_of
from sod_ops.accelerate.squeeze_excite import are_untouched, leaves_pytorch
from sod_ops.accelerate.swap import NotServedError
from sod_ops.ops.pyramid_conv2d import pyramid_conv2d

_ATTRIBUTES = {"stride": (1, 1), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}


def check_head(name: str, head: Any) -> None:
    """Raises NotServedError unless ``head`` is a Sequential that begins with a convolution that pyramid_conv2d computes."""
    if not isinstance(head, torch.nn.Sequential) or type(head).forward is not torch.nn.Sequential.forward or not head:
        raise NotServedError(f"its {name} is {path_of(type(head))}, not a Sequential that begins with a convolution")
    convolution: Any = head[0]
    if type(convolution) is not torch.nn.Conv2d:
        raise NotServedError(f"its {name} begins with {path_of(type(convolution))}, not a plain Conv2d")
    for attribute, value in _ATTRIBUTES.items():
        if getattr(convolution, attribute) != value:
            got = getattr(convolution, attribute)
            raise NotServedError(f"the convolution of its {name} has {attribute}={got!r}, not {value!r}")
    kernel = convolution.kernel_size
    if kernel not in ((1, 1), (3, 3)) or convolution.padding != (kernel[0] // 2, kernel[0] // 2):
        raise NotServedError(
            f"the convolution of its {name} has kernel_size={kernel} and padding={convolution.padding}: not 3x3 with 1, "
            "nor 1x1 with 0"
        )
    if not are_untouched((head, convolution)):
        raise NotServedError(f"its {name} or the convolution in it has hooks, or a forward of its own")


def serves(head: Any, x: Any) -> bool:
    """Whether :func:`convolve` may stand for ``head`` in this call; ``x`` is one of the maps."""
    return (
        isinstance(x, Tensor)
        and x.dim() == 4
        and x.is_floating_point()
        and (x.dtype == head[0].weight.dtype or torch.is_autocast_enabled(x.device.type))
        and are_untouched((head, head[0]))
        and type(head[0]) is torch.nn.Conv2d
        and not torch_module._has_any_global_hook()
        and not leaves_pytorch()
    )


def convolve(head: Any, x: Tensor, branches: Sequence[Tensor], *, align_corners: bool, x_first: bool) -> Tensor:
    """``head(cat[x, branches upsampled to the size of x])``, from the weights that it has now."""
    convolution, *rest = head
    y = pyramid_conv2d(
        x,
        branches,
        convolution.weight,
        convolution.bias,
        padding=convolution.padding[0],
        align_corners=align_corners,
        x_first=x_first,
    )
    for module in rest:
        y = module(y)
    return y

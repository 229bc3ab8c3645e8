"""The heads of mmseg (mmsegmentation), whose blocks are mmcv's ConvModule."""

from functools import partial
from typing import Any

import torch

from sod_ops.accelerate import uper_head
from sod_ops.accelerate.pyramid import Block
from sod_ops.accelerate.swap import NotServedError, Swap

_CONV_MODULE = "mmcv.cnn.bricks.conv_module.ConvModule"
_HEADS = "mmseg.models.decode_heads"


def _levels(pyramid: Any) -> list[tuple[Any, Any]]:
    return [(block[0], block[1:]) for block in pyramid]


def _bypassed(pyramid: Any) -> dict[str, torch.nn.Module]:
    return {str(i): block for i, block in enumerate(pyramid)}


def _inputs(module: Any, inputs: Any) -> Any:
    return module._transform_inputs(inputs)


def _align_corners(module: Any) -> bool:
    return bool(module.align_corners)


_PYRAMID_NAMES = uper_head.Names(
    bottleneck="bottleneck",
    classify="cls_seg",
    levels=_levels,
    bypassed=_bypassed,
    inputs=_inputs,
    align_corners=_align_corners,
    blocks={},
)


def _head(module: Any, *, convolutions: tuple[str, ...], swap: Any) -> Swap:
    """A head's swap, with what follows the convolution in its ConvModules."""
    rests = {_rest(name, getattr(module, name)) for name in convolutions}
    if len(rests) > 1:
        raise NotServedError(f"its {' and '.join(convolutions)} differ in what follows the convolution")
    result: Swap = swap(module, _PYRAMID_NAMES._replace(blocks={_CONV_MODULE: Block("conv", rests.pop())}))
    return result


def _rest(name: str, block: Any) -> tuple[str, ...]:
    """The attributes of a ConvModule that it calls after its convolution."""
    if block.order != ("conv", "norm", "act"):
        raise NotServedError(
            f"its {name} has order={block.order!r}, in which more than the convolution reads its input"
        )
    for attribute in ("with_explicit_padding", "with_spectral_norm", "efficient_conv_bn_eval_forward"):
        if getattr(block, attribute, None):
            raise NotServedError(f"its {name} has {attribute} set")
    return ("norm",) * block.with_norm + ("activate",) * block.with_activation


CLASSES = {
    f"{_HEADS}.psp_head.PPM": partial(uper_head.swap_pyramid, names=_PYRAMID_NAMES),
    f"{_HEADS}.psp_head.PSPHead": partial(_head, convolutions=("bottleneck",), swap=uper_head.swap_psp_head),
    f"{_HEADS}.uper_head.UPerHead": partial(
        _head, convolutions=("bottleneck", "fpn_bottleneck"), swap=uper_head.swap_uper_head
    ),
}

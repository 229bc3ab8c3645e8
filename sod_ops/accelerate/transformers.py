"""The heads of transformers: UPerNet's own, and those of BEiT and Data2Vec, which is a copy of BEiT's."""

from functools import partial
from typing import Any

import torch

from sod_ops.accelerate import uper_head
from sod_ops.accelerate.pyramid import Block


def _inputs(module: Any, inputs: Any) -> Any:
    return inputs


def _upernet_levels(pyramid: Any) -> list[tuple[Any, Any]]:
    return [tuple(block.layers) for block in pyramid.blocks]


def _upernet_align_corners(module: Any) -> bool:
    return bool(module.align_corners)


def _beit_levels(pyramid: Any) -> list[tuple[Any, Any]]:
    return [(block.pooling, block.conv) for block in pyramid.blocks]


def _beit_align_corners(module: Any) -> bool:
    return False


def _bypassed(pyramid: Any) -> dict[str, torch.nn.Module]:
    return {f"blocks.{i}": block for i, block in enumerate(pyramid.blocks)}


_UPERNET = "transformers.models.upernet.modeling_upernet.UperNet"
_BEIT = "transformers.models.beit.modeling_beit.Beit"
_DATA2VEC = "transformers.models.data2vec.modeling_data2vec_vision.Data2VecVision"

_UPERNET_BLOCKS = {f"{_UPERNET}ConvModule": Block("conv", ("batch_norm", "activation"))}
_BEIT_BLOCKS = {
    f"{peer}ConvLayer": Block("convolution", ("normalization", "activation")) for peer in (_BEIT, _DATA2VEC)
}

_UPERNET_NAMES = uper_head.Names(
    bottleneck="bottleneck",
    classify="classifier",
    levels=_upernet_levels,
    bypassed=_bypassed,
    inputs=_inputs,
    align_corners=_upernet_align_corners,
    blocks=_UPERNET_BLOCKS,
    level_blocks=_UPERNET_BLOCKS,
)
_BEIT_NAMES = uper_head.Names(
    bottleneck="psp_bottleneck",
    classify="classifier",
    levels=_beit_levels,
    bypassed=_bypassed,
    inputs=_inputs,
    align_corners=_beit_align_corners,
    blocks=_BEIT_BLOCKS,
    level_blocks=_BEIT_BLOCKS,
)

CLASSES = {
    f"{_UPERNET}PyramidPoolingModule": partial(uper_head.swap_pyramid, names=_UPERNET_NAMES),
    f"{_UPERNET}Head": partial(uper_head.swap_uper_head, names=_UPERNET_NAMES),
    **{f"{p}PyramidPoolingModule": partial(uper_head.swap_pyramid, names=_BEIT_NAMES) for p in (_BEIT, _DATA2VEC)},
    **{f"{p}UperHead": partial(uper_head.swap_uper_head, names=_BEIT_NAMES) for p in (_BEIT, _DATA2VEC)},
}

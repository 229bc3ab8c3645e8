"""The heads of PSPNet and UPerNet as mmseg and transformers have them: a pyramid pooling module that returns its upsampled
maps as a list, and a head that concatenates them with the map that they came from.

The two libraries differ in names alone, which :class:`Names` holds.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from sod_ops.accelerate import pyramid
from sod_ops.accelerate.swap import Swap


class Names(NamedTuple):
    """What a library calls the parts of a head, and the functions that find the others. All must survive pickle."""

    bottleneck: str
    classify: str
    # The pyramid pooling module's levels: each a pool, and the block after it.
    levels: Callable[[Any], list[tuple[Any, Any]]]
    # The children of a head or a pyramid that a fused forward does not call, by name.
    bypassed: Callable[[Any], dict[str, torch.nn.Module]]
    # What a head computes on, from what it is called with.
    inputs: Callable[[Any, Any], Any]
    align_corners: Callable[[Any], bool]
    blocks: pyramid.Blocks
    # Those of them that a level's block may be: whose parts are the same in every instance.
    level_blocks: pyramid.Blocks = pyramid.NO_BLOCKS


class _Head(NamedTuple):
    names: Names
    bottleneck: pyramid.Block
    fusion: pyramid.Block | None = None


def swap_pyramid(module: Any, names: Names) -> Swap:
    """For a pyramid pooling module: its pools in one pass. Its maps are upsampled as before, as they are its result."""
    pyramid.check_bypassed(names.bypassed(module))
    return Swap(_pyramid_forward, names)


def _pyramid_forward(module: Any, names: Names, *args: Any, **kwargs: Any) -> Any:
    served = len(args) == 1 and not kwargs and pyramid.serves_map(args[0])
    if served and pyramid.may_bypass(names.bypassed(module).values()):
        (x,) = args
        _, maps = pyramid.branches(names.levels(module), x, names.level_blocks)
        return pyramid.upsample(maps, x, names.align_corners(module))
    return type(module).forward(module, *args, **kwargs)


def swap_psp_head(module: Any, names: Names) -> Swap:
    """For PSPNet's head: the convolution over the map and its pyramid, without upsampling or concatenating."""
    return Swap(_psp_head_forward, _Head(names, _bottleneck(module, names)))


def _psp_head_forward(module: Any, head: _Head, *args: Any, **kwargs: Any) -> Any:
    if len(args) == 1 and not kwargs:
        x = head.names.inputs(module, args[0])
        if _serves_bottleneck(module, head, x):
            return getattr(module, head.names.classify)(_bottleneck_output(module, head, x))
    return type(module).forward(module, *args, **kwargs)


def swap_uper_head(module: Any, names: Names) -> Swap:
    """For UPerNet's head: that convolution, and the one over the finest level and all coarser ones, upsampled."""
    bottleneck = _bottleneck(module, names)
    return Swap(_uper_head_forward, _Head(names, bottleneck, _block(module, "fpn_bottleneck", names)))


def _uper_head_forward(module: Any, head: _Head, *args: Any, **kwargs: Any) -> Any:
    names = head.names
    if len(args) == 1 and not kwargs and isinstance(args[0], (list, tuple)) and head.fusion is not None:
        inputs = names.inputs(module, args[0])
        x = inputs[-1]
        fusion = module.fpn_bottleneck
        if _serves_bottleneck(module, head, x) and pyramid.serves(fusion, head.fusion, x):
            laterals = [block(map_) for block, map_ in zip(module.lateral_convs, inputs, strict=False)]
            laterals.append(_bottleneck_output(module, head, x))
            align_corners = names.align_corners(module)
            for i in range(len(laterals) - 1, 0, -1):
                size = laterals[i - 1].shape[2:]
                coarser = functional.interpolate(laterals[i], size, mode="bilinear", align_corners=align_corners)
                laterals[i - 1] = laterals[i - 1] + coarser
            finer = [block(map_) for block, map_ in zip(module.fpn_convs, laterals, strict=False)]
            finest, *branches = *finer, laterals[-1]
            y = pyramid.convolve(fusion, head.fusion, finest, branches, align_corners=align_corners, x_first=True)
            return getattr(module, names.classify)(y)
    return type(module).forward(module, *args, **kwargs)


def _bottleneck(module: Any, names: Names) -> pyramid.Block:
    pyramid.check_bypassed({"psp_modules": module.psp_modules, **names.bypassed(module.psp_modules)})
    return _block(module, names.bottleneck, names)


def _block(module: Any, name: str, names: Names) -> pyramid.Block:
    return pyramid.recognise(name, getattr(module, name), names.blocks)


def _serves_bottleneck(module: Any, head: _Head, x: Any) -> bool:
    psp = module.psp_modules
    return pyramid.may_bypass((psp, *head.names.bypassed(psp).values())) and pyramid.serves(
        getattr(module, head.names.bottleneck), head.bottleneck, x
    )


def _bottleneck_output(module: Any, head: _Head, x: Tensor) -> Tensor:
    x, branches = pyramid.branches(head.names.levels(module.psp_modules), x, head.names.level_blocks)
    align_corners = head.names.align_corners(module)
    bottleneck = getattr(module, head.names.bottleneck)
    return pyramid.convolve(bottleneck, head.bottleneck, x, branches, align_corners=align_corners, x_first=True)

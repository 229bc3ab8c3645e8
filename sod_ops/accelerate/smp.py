"""The blocks of segmentation_models_pytorch."""

from typing import Any

import torch

from sod_ops.accelerate import pyramid, squeeze_excite
from sod_ops.accelerate.functions import Function
from sod_ops.accelerate.squeeze_excite import Names, are_untouched
from sod_ops.accelerate.swap import NotServedError, Swap


def _senet_se_module(module: torch.nn.Module) -> Swap:
    names = Names(pool="avg_pool", reduce="fc1", activation="relu", expand="fc2", gate="sigmoid")
    return squeeze_excite.swap(module, names)


def _mobileone_se_block(module: torch.nn.Module) -> Swap:
    names = Names(reduce="reduce", activation=Function("relu"), expand="expand", gate=Function("sigmoid"))
    return squeeze_excite.swap(module, names)


def _scse_module(module: torch.nn.Module) -> Swap:
    channel: Any = module.cSE
    if not _is_plain_sequential(channel):
        raise NotServedError("its cSE is not a plain Sequential, or has hooks, which would no longer run")
    names = Names(pool="0", reduce="1", activation="2", expand="3", gate="4")
    return Swap(_scse_forward, squeeze_excite.recognise(channel, names))


def _scse_forward(module: Any, parts: squeeze_excite.Parts, *args: Any, **kwargs: Any) -> Any:
    """``x * cSE(x) + x * sSE(x)``, the first term fused."""
    channel = module.cSE
    if len(args) == 1 and not kwargs and _is_plain_sequential(channel):
        (x,) = args
        excited = squeeze_excite.excite(channel, parts, x)
        if excited is not None:
            return excited + x * module.sSE(x)
    return type(module).forward(module, *args, **kwargs)


def _pspnet_decoder(module: torch.nn.Module) -> Swap:
    pyramid.check_head("conv", module.conv)
    psp: Any = module.psp
    for name, child in (("psp", psp), *((f"psp.blocks.{i}", block) for i, block in enumerate(psp.blocks))):
        if not are_untouched((child,)):
            raise NotServedError(f"its {name} has hooks, or a forward of its own, that would no longer run")
    return Swap(_pspnet_forward, None)


def _pspnet_forward(module: Any, _: None, *args: Any, **kwargs: Any) -> Any:
    """The 1x1 convolution over the upsampled pyramid and, last, the map."""
    if len(args) == 1 and not kwargs and isinstance(args[0], (list, tuple)) and args[0]:
        x = args[0][-1]
        blocks = module.psp.blocks
        if are_untouched((module.psp, *blocks)) and pyramid.serves(module.conv, x):
            branches = [block.pool(x) for block in blocks]
            return module.dropout(pyramid.convolve(module.conv, x, branches, align_corners=True, x_first=False))
    return type(module).forward(module, *args, **kwargs)


def _upernet_pyramid(module: torch.nn.Module) -> Swap:
    pyramid.check_head("out_conv", module.out_conv)
    return Swap(_upernet_pyramid_forward, None)


def _upernet_pyramid_forward(module: Any, _: None, *args: Any, **kwargs: Any) -> Any:
    """The 3x3 convolution over the map and its upsampled pyramid."""
    if len(args) == 1 and not kwargs and pyramid.serves(module.out_conv, args[0]):
        (x,) = args
        branches = [block(x) for block in module.blocks]
        return pyramid.convolve(module.out_conv, x, branches, align_corners=False, x_first=True)
    return type(module).forward(module, *args, **kwargs)


def _upernet_decoder(module: torch.nn.Module) -> Swap:
    pyramid.check_head("fusion_block", module.fusion_block)
    return Swap(_upernet_forward, None)


def _upernet_forward(module: Any, _: None, *args: Any, **kwargs: Any) -> Any:
    """The 3x3 convolution over the finest level and all coarser ones, upsampled."""
    if len(args) == 1 and not kwargs and isinstance(args[0], (list, tuple)):
        encoded = args[0][2:]
        if len(encoded) == len(module.feature_norms) and pyramid.serves(module.fusion_block, encoded[0]):
            maps = [norm(map_) for norm, map_ in zip(module.feature_norms, encoded, strict=True)]
            levels = [module.psp(maps[-1])]
            for block, lateral in zip(module.fpn_lateral_blocks, reversed(maps[:-1]), strict=True):
                levels.append(block(levels[-1], lateral))
            for i, block in enumerate(module.fpn_conv_blocks, start=1):
                levels[i] = block(levels[i])
            x, *branches = reversed(levels)
            return pyramid.convolve(module.fusion_block, x, branches, align_corners=False, x_first=True)
    return type(module).forward(module, *args, **kwargs)


def _is_plain_sequential(module: torch.nn.Module) -> bool:
    return type(module) is torch.nn.Sequential and are_untouched((module,))


CLASSES = {
    "segmentation_models_pytorch.decoders.pspnet.decoder.PSPDecoder": _pspnet_decoder,
    "segmentation_models_pytorch.decoders.upernet.decoder.PSPModule": _upernet_pyramid,
    "segmentation_models_pytorch.decoders.upernet.decoder.UPerNetDecoder": _upernet_decoder,
    "segmentation_models_pytorch.base.modules.SCSEModule": _scse_module,
    "segmentation_models_pytorch.encoders._senet.SEModule": _senet_se_module,
    "segmentation_models_pytorch.encoders.mobileone.SEBlock": _mobileone_se_block,
}

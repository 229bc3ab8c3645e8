"""The blocks of segmentation_models_pytorch."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sod_ops.accelerate import pyramid, squeeze_excite
from sod_ops.accelerate.functions import Function
from sod_ops.accelerate.squeeze_excite import Names, are_untouched
from sod_ops.accelerate.swap import NotServedError, Swap
from sod_ops.ops.gate import gate
from sod_ops.ops.scse import scse


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
    """``x * cSE(x) + x * sSE(x)``: one scaling by the sum of both gates, or at least the first term fused."""
    channel, spatial = module.cSE, module.sSE
    if len(args) == 1 and not kwargs and _is_plain_sequential(channel):
        (x,) = args
        if _takes_both_gates(channel, spatial, parts, x):
            parameters = _scse_parameters(channel, spatial[0], parts, x)
            if parameters is not None:
                return scse(x, *parameters)
            # The children themselves up to their last: autocast and what else is done to convolutions stays as it is.
            return gate(x, channel[:-1](x), spatial[0](x), sum_of="gates")
        excited = squeeze_excite.excite(channel, parts, x)
        if excited is not None:
            return excited + x * spatial(x)
    return type(module).forward(module, *args, **kwargs)


def _scse_parameters(channel: Any, spatial: Any, parts: squeeze_excite.Parts, x: Tensor) -> list[Any] | None:
    """What ``scse`` takes beside the map; None where it computes something else, or autocast is the children's to see to."""
    if parts.activation != "relu" or torch.is_autocast_enabled(x.device.type):
        return None
    if spatial.weight.shape != (1, x.shape[1], 1, 1) or spatial.stride != (1, 1) or spatial.padding != (0, 0):
        return None
    convolutions = (channel[1], channel[3], spatial)
    parameters = [tensor for each in convolutions for tensor in (each.weight, each.bias)]
    return parameters if all(t is None or t.dtype == x.dtype for t in parameters) else None


def _takes_both_gates(channel: Any, spatial: Any, parts: squeeze_excite.Parts, x: Any) -> bool:
    """Whether both gates are sigmoids of logits, of a map that ``gate`` scales."""
    return (
        parts.gate == "sigmoid"
        and isinstance(x, Tensor)
        and pyramid.serves_map(x)
        and _is_plain_sequential(spatial)
        and [type(child) for child in spatial] == [torch.nn.Conv2d, torch.nn.Sigmoid]
        and squeeze_excite.are_as_swapped(channel, parts)
        and are_untouched(spatial)
    )


def _pspnet_decoder(module: torch.nn.Module) -> Swap:
    block = pyramid.recognise("conv", module.conv, {})
    psp: Any = module.psp
    pyramid.check_bypassed({"psp": psp, **{f"psp.blocks.{i}": child for i, child in enumerate(psp.blocks)}})
    return Swap(_pspnet_forward, block)


def _pspnet_forward(module: Any, block: pyramid.Block, *args: Any, **kwargs: Any) -> Any:
    """The 1x1 convolution over the upsampled pyramid and, last, the map."""
    if len(args) == 1 and not kwargs and isinstance(args[0], (list, tuple)) and args[0]:
        x = args[0][-1]
        blocks = module.psp.blocks
        if pyramid.may_bypass((module.psp, *blocks)) and pyramid.serves(module.conv, block, x):
            x, branches = _branches([child.pool for child in blocks], x)
            y = pyramid.convolve(module.conv, block, x, branches, align_corners=True, x_first=False)
            return module.dropout(y)
    return type(module).forward(module, *args, **kwargs)


def _upernet_pyramid(module: torch.nn.Module) -> Swap:
    return Swap(_upernet_pyramid_forward, pyramid.recognise("out_conv", module.out_conv, {}))


def _upernet_pyramid_forward(module: Any, block: pyramid.Block, *args: Any, **kwargs: Any) -> Any:
    """The 3x3 convolution over the map and its upsampled pyramid."""
    if len(args) == 1 and not kwargs and pyramid.serves(module.out_conv, block, args[0]):
        x, branches = _branches(module.blocks, args[0])
        return pyramid.convolve(module.out_conv, block, x, branches, align_corners=False, x_first=True)
    return type(module).forward(module, *args, **kwargs)


def _branches(blocks: Iterable[Any], x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """``x`` for who reads it next, and ``x`` through each of ``blocks``, Sequentials of a pool and what follows it."""
    blocks = list(blocks)
    if blocks and all(_is_plain_sequential(block) and len(block) for block in blocks):
        return pyramid.branches([(block[0], block[1:]) for block in blocks], x)
    return x, [block(x) for block in blocks]


def _upernet_decoder(module: torch.nn.Module) -> Swap:
    return Swap(_upernet_forward, pyramid.recognise("fusion_block", module.fusion_block, {}))


def _upernet_forward(module: Any, block: pyramid.Block, *args: Any, **kwargs: Any) -> Any:
    """The 3x3 convolution over the finest level and all coarser ones, upsampled."""
    if len(args) == 1 and not kwargs and isinstance(args[0], (list, tuple)):
        encoded = args[0][2:]
        if len(encoded) == len(module.feature_norms) and pyramid.serves(module.fusion_block, block, encoded[0]):
            maps = [norm(map_) for norm, map_ in zip(module.feature_norms, encoded, strict=True)]
            levels = [module.psp(maps[-1])]
            for lateral, map_ in zip(module.fpn_lateral_blocks, reversed(maps[:-1]), strict=True):
                levels.append(lateral(levels[-1], map_))
            for i, convolution in enumerate(module.fpn_conv_blocks, start=1):
                levels[i] = convolution(levels[i])
            x, *branches = reversed(levels)
            return pyramid.convolve(module.fusion_block, block, x, branches, align_corners=False, x_first=True)
    return type(module).forward(module, *args, **kwargs)


def _unet_block(module: torch.nn.Module) -> Swap:
    return Swap(_unet_block_forward, _upsampling_convolution(module))


def _doubling_block(module: torch.nn.Module) -> Swap:
    return Swap(_doubling_block_forward, _upsampling_convolution(module))


def _upsampling_convolution(module: Any) -> pyramid.Block:
    if module.interpolation_mode not in ("nearest", "bilinear"):
        raise NotServedError(f"its interpolation_mode is {module.interpolation_mode!r}, which has no fused form")
    if not _reads_no_concatenation(module):
        raise NotServedError("its attention1 reads the concatenation, or has hooks")
    return pyramid.recognise("conv1", module.conv1, {})


def _reads_no_concatenation(module: Any) -> bool:
    """Whether nothing but conv1 does: MAnet's blocks have no attention, and those of the others may have none."""
    outer = getattr(module, "attention1", None)
    return outer is None or (type(outer.attention) is torch.nn.Identity and are_untouched((outer, outer.attention)))


def _unet_block_forward(
    module: Any,
    block: pyramid.Block,
    feature_map: Tensor,
    target_height: int,
    target_width: int,
    skip_connection: Tensor | None = None,
) -> Any:
    """U-Net's: a map upsampled to the size that is given, then the skip connection, convolved."""
    size = (target_height, target_width)
    y = _upsample_and_convolve(module, block, feature_map, skip_connection, size)
    return type(module).forward(module, feature_map, *size, skip_connection) if y is None else y


def _doubling_block_forward(module: Any, block: pyramid.Block, x: Tensor, skip: Tensor | None = None) -> Any:
    """U-Net++'s and MAnet's: the same, and the size is twice the map's."""
    size = (2 * x.shape[2], 2 * x.shape[3]) if pyramid.serves_map(x) else (0, 0)
    y = _upsample_and_convolve(module, block, x, skip, size)
    return type(module).forward(module, x, skip) if y is None else y


def _upsample_and_convolve(
    module: Any, block: pyramid.Block, x: Tensor, skip: Tensor | None, size: tuple[int, int]
) -> Tensor | None:
    """What a decoder's block returns, or None where it has to run itself."""
    if not _reads_no_concatenation(module) or not pyramid.serves(module.conv1, block, x):
        return None
    mode = module.interpolation_mode
    if skip is None:
        y = pyramid.convolve(module.conv1, block, None, [x], x_first=False, mode=mode, size=size)
    elif tuple(skip.shape[2:]) == size:
        y = pyramid.convolve(module.conv1, block, skip, [x], x_first=False, mode=mode)
    else:
        return None
    y = module.conv2(y)
    return module.attention2(y) if hasattr(module, "attention2") else y


def _is_plain_sequential(module: torch.nn.Module) -> bool:
    return type(module) is torch.nn.Sequential and are_untouched((module,))


CLASSES = {
    "segmentation_models_pytorch.decoders.pspnet.decoder.PSPDecoder": _pspnet_decoder,
    "segmentation_models_pytorch.decoders.upernet.decoder.PSPModule": _upernet_pyramid,
    "segmentation_models_pytorch.decoders.upernet.decoder.UPerNetDecoder": _upernet_decoder,
    "segmentation_models_pytorch.decoders.unet.decoder.UnetDecoderBlock": _unet_block,
    "segmentation_models_pytorch.decoders.unetplusplus.decoder.DecoderBlock": _doubling_block,
    "segmentation_models_pytorch.decoders.manet.decoder.DecoderBlock": _doubling_block,
    "segmentation_models_pytorch.base.modules.SCSEModule": _scse_module,
    "segmentation_models_pytorch.encoders._senet.SEModule": _senet_se_module,
    "segmentation_models_pytorch.encoders.mobileone.SEBlock": _mobileone_se_block,
}

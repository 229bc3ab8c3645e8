"""The blocks of segmentation_models_pytorch."""

from typing import Any

import torch

from sod_ops.accelerate import squeeze_excite
from sod_ops.accelerate.functions import Function
from sod_ops.accelerate.squeeze_excite import Names
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


def _is_plain_sequential(module: torch.nn.Module) -> bool:
    return type(module) is torch.nn.Sequential and squeeze_excite.are_untouched((module,))


CLASSES = {
    "segmentation_models_pytorch.base.modules.SCSEModule": _scse_module,
    "segmentation_models_pytorch.encoders._senet.SEModule": _senet_se_module,
    "segmentation_models_pytorch.encoders.mobileone.SEBlock": _mobileone_se_block,
}

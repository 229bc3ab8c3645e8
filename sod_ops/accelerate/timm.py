"""The blocks of timm (pytorch-image-models)."""

import torch

from sod_ops.accelerate import functions, squeeze_excite
from sod_ops.accelerate.squeeze_excite import Names
from sod_ops.accelerate.swap import NotServedError, Swap

_ACTIVATIONS: functions.Table = {
    **functions.ACTIVATIONS,
    "timm.layers.activations.Swish": "silu",
    "timm.layers.activations.Mish": "mish",
    "timm.layers.activations.HardSwish": "hardswish",
    "timm.layers.activations.GELU": "gelu",
    "timm.layers.activations.GELUTanh": "gelu_tanh",
    "timm.layers.activations_me.SwishMe": "silu",
    "timm.layers.activations_me.MishMe": "mish",
    "timm.layers.activations_me.HardSwishMe": "hardswish",
}
_GATES: functions.Table = {
    **functions.GATES,
    "timm.layers.activations.Sigmoid": "sigmoid",
    "timm.layers.activations.HardSigmoid": "hardsigmoid",
    "timm.layers.activations_me.HardSigmoidMe": "hardsigmoid",
}


def _se_module(module: torch.nn.Module) -> Swap:
    _check_pooling(module)
    names = Names(reduce="fc1", norm="bn", activation="act", expand="fc2", gate="gate")
    return squeeze_excite.swap(module, names, _ACTIVATIONS, _GATES)


def _effective_se_module(module: torch.nn.Module) -> Swap:
    _check_pooling(module)
    return squeeze_excite.swap(module, Names(expand="fc", gate="gate"), _ACTIVATIONS, _GATES)


def _efficientnet_squeeze_excite(module: torch.nn.Module) -> Swap:
    names = Names(reduce="conv_reduce", activation="act1", expand="conv_expand", gate="gate")
    return squeeze_excite.swap(module, names, _ACTIVATIONS, _GATES)


def _senet_se_module(module: torch.nn.Module) -> Swap:
    return squeeze_excite.swap(module, Names(reduce="fc1", activation="relu", expand="fc2", gate="sigmoid"))


def _check_pooling(module: torch.nn.Module) -> None:
    if module.add_maxpool:
        raise NotServedError("it adds max pooling (add_maxpool=True)")


CLASSES = {
    "timm.layers.squeeze_excite.SEModule": _se_module,
    "timm.layers.squeeze_excite.EffectiveSEModule": _effective_se_module,
    "timm.models._efficientnet_blocks.SqueezeExcite": _efficientnet_squeeze_excite,
    "timm.models.senet.SEModule": _senet_se_module,
}

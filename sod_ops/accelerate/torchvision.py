"""The blocks of torchvision."""

import torch

from sod_ops.accelerate import squeeze_excite
from sod_ops.accelerate.squeeze_excite import Names
from sod_ops.accelerate.swap import Swap


def _squeeze_excitation(module: torch.nn.Module) -> Swap:
    names = Names(pool="avgpool", reduce="fc1", activation="activation", expand="fc2", gate="scale_activation")
    return squeeze_excite.swap(module, names)


CLASSES = {"torchvision.ops.misc.SqueezeExcitation": _squeeze_excitation}

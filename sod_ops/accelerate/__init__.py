"""The drop-in swap: the blocks of somebody else's model, served by this package's ops.

``model`` walks the tree, ``swap`` binds a fused forward to one module and takes it off again, ``squeeze_excite`` (one
file per op) is such a forward, and ``timm``, ``torchvision`` and ``smp`` (one file per peer library) say which classes
it serves. A new peer is a new file and a line in ``model``.
"""

from sod_ops.accelerate.model import accelerate, restore
from sod_ops.accelerate.report import Report

__all__ = ["Report", "accelerate", "restore"]

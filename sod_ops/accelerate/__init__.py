"""The drop-in swap: the blocks of somebody else's model, served by this package's ops.

``model`` walks the tree, ``swap`` binds a fused forward to one module and takes it off again, ``squeeze_excite`` (one
file per op) is such a forward, and ``timm``, ``torchvision`` and ``smp`` (one file per peer library) say which classes
it serves. A new peer is a new file and a line in ``model``.

``custom`` serves modules that no library's file knows, on example inputs: ``observe`` watches a run for the patterns that
ops compute, which ``followers`` know; ``trace`` turns a forward with one in it into a graph; ``upsample_concat``, ``gate``
and ``attention`` replace patterns in a graph, the latter two by a ``fused_call``, and ``traced`` runs it on the module.
``tracer`` serves copies of modules that no trace holds. ``verify`` holds every swap to the module that it replaces.
"""

from sod_ops.accelerate.model import accelerate, restore
from sod_ops.accelerate.report import Report

__all__ = ["Report", "accelerate", "restore"]

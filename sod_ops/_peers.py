"""Importing a peer library (torchvision, timm, segmentation_models_pytorch) for the command line, tests and benchmarks.

``import sod_ops`` never imports a peer, and :func:`sod_ops.accelerate` looks only at peers that are already imported.
"""

import importlib
import sys
from types import ModuleType

import torch

# What torchvision's Python part asks PyTorch for at import. Its compiled part, which defines them, is built for CUDA and
# does not load beside a CPU-only torch.
_TORCHVISION_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width,"
    " int sampling_ratio, bool aligned) -> Tensor",
)

_torchvision_library: torch.library.Library | None = None


def import_peer(name: str) -> ModuleType:
    """Imports a peer's module, also where torchvision's compiled part does not load beside a CPU-only torch.

    Raises:
        ImportError: the module is not installed or fails to import for another reason.
    """
    try:
        return importlib.import_module(name)
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise ImportError(f"{name} does not import: {error}") from error
    _define_torchvision_schemas()
    _forget_half_imported(name)
    return importlib.import_module(name)


def _define_torchvision_schemas() -> None:
    global _torchvision_library
    if _torchvision_library is None:
        _torchvision_library = torch.library.Library("torchvision", "DEF")
        for schema in _TORCHVISION_SCHEMAS:
            _torchvision_library.define(schema)


def _forget_half_imported(name: str) -> None:
    """Drops the modules that the failed import left behind, so that the next one starts afresh."""
    for package in {name.partition(".")[0], "torchvision"}:
        for module in [m for m in sys.modules if m == package or m.startswith(f"{package}.")]:
            del sys.modules[module]

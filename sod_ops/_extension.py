"""The compiled part: ``sod_ops._C``, whose import also registers the native operators with PyTorch."""

import functools
import importlib
from typing import Any

import torch  # its libraries must be loaded before the module that links to them

_build_info: dict[str, Any] | None = None
_import_error: str | None = None

try:
    _build_info = importlib.import_module("sod_ops._C").build_info()
except ImportError as error:
    _import_error = str(error)


def why_missing() -> str | None:
    """None where the compiled part is loaded, otherwise the reason why it is not."""
    if _import_error is None:
        return None
    return f"the compiled part is not there: {_import_error} (build it: pip install --no-build-isolation .)"


def build_info() -> dict[str, Any] | None:
    """Compiler, instruction sets (and the one chosen here) and CUDA architectures; None without the compiled part."""
    return _build_info


@functools.cache
def why_cuda_is_missing() -> str | None:
    """None where the compiled part has CUDA kernels and a device to run them, otherwise the reason."""
    if _build_info is None or not _build_info["cuda_architectures"]:
        return "the compiled part was built without CUDA"
    if not torch.cuda.is_available():
        return "no CUDA device is available"
    return None

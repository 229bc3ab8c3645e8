"""The compiled part: ``sod_ops._C``, whose import also registers the native operators with PyTorch."""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch  # its libraries must be loaded before the module that links to them

_build_info: dict[str, Any] | None = None
_import_error: str | None = None
_squeeze_excite_fits: Callable[..., bool] | None = None

try:
    _compiled = importlib.import_module("sod_ops._C")
    _build_info = _compiled.build_info()
    _squeeze_excite_fits = getattr(_compiled, "squeeze_excite_fits", None)
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


def squeeze_excite_fits(device: int, channels: int, pixels: int, reduces: bool, reduced: int, item_size: int) -> bool:
    """Whether squeeze_excite's CUDA kernel holds a sample on the chip of a device; False without CUDA kernels."""
    fits = _squeeze_excite_fits
    return fits is not None and fits(device, channels, pixels, reduces, reduced, item_size)

"""Replacements that serve what they can, and leave every other call to the function that they replace."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# What a subclass of Tensor computes is its own affair.
_PLAIN = (Tensor, torch.nn.Parameter)


def falling_back(ours: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """A function with the name and signature of ``original``: ``ours``, and ``original`` wherever that refuses a call.

    ``ours`` refuses by ValueError or TypeError, before it computes anything. So a call that neither serves ends with the
    error that its caller knows.
    """

    @functools.wraps(original)
    def replacement(*args: Any, **kwargs: Any) -> Any:
        # A trace for TorchScript or ONNX shall hold the operators of PyTorch itself.
        if torch._C._get_tracing_state() is None and all(map(_is_served, (*args, *kwargs.values()))):
            try:
                return ours(*args, **kwargs)
            except (TypeError, ValueError):
                pass
        return original(*args, **kwargs)

    return replacement


def _is_served(value: Any) -> bool:
    return not isinstance(value, Tensor) or (type(value) in _PLAIN and (value.is_cpu or value.is_cuda))


def as_autocast_has_it(logits: Tensor) -> Tensor:
    """``logits`` in float32 under autocast, where PyTorch computes binary cross entropies in that and returns it."""
    return logits.float() if torch.is_autocast_enabled(logits.device.type) else logits

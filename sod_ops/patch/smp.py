"""The focal loss of segmentation_models_pytorch.

``FocalLoss`` holds, as ``focal_loss_fn``, a function of logits and targets with the module's options. On targets of 0 and 1
that is the sigmoid focal loss, in every mode ("multiclass" gives it one class after the other); between them it is not.
So bool and integer targets are served, and floating ones, which may be soft, are not.
"""

import functools
from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from sod_ops.ops.sigmoid_focal_loss import sigmoid_focal_loss
from sod_ops.patch.fallback import as_autocast_has_it, falling_back

_CLASS = "segmentation_models_pytorch.losses.focal.FocalLoss"
_FUNCTION = "segmentation_models_pytorch.losses._functional.focal_loss_with_logits"
_UNSERVED_OPTIONS = ("reduced_threshold", "normalized")


def _forward(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        function = self.focal_loss_fn
        # A subclass may use more of the module than its attributes.
        if _path_of(type(self)) == _CLASS and _is_served(function):
            fused = falling_back(partial(_focal_loss, function.keywords), function)
            self = SimpleNamespace(**{**vars(self), "focal_loss_fn": fused})
        return original(self, *args, **kwargs)

    return forward


def _is_served(function: Any) -> bool:
    if not isinstance(function, partial) or _path_of(function.func) != _FUNCTION:
        return False
    return not any(function.keywords.get(option) for option in _UNSERVED_OPTIONS)


def _focal_loss(options: dict[str, Any], logits: Tensor, targets: Tensor) -> Tensor:
    """Refuses by ValueError or TypeError what is computed otherwise there."""
    if targets.is_floating_point():
        raise TypeError("targets may be soft")
    alpha = options.get("alpha")
    if alpha is not None and not 0 <= alpha <= 1:
        raise ValueError("alpha is not a weight")
    alpha = -1 if alpha is None else alpha
    return sigmoid_focal_loss(as_autocast_has_it(logits), targets, alpha, options["gamma"], options["reduction"])


def _path_of(what: Any) -> str:
    return f"{what.__module__}.{what.__qualname__}"


FUNCTIONS: Mapping[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {f"{_CLASS}.forward": _forward}

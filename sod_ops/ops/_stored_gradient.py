"""The gradient of a mean or a sum that its forward has written: scaled in place by the incoming gradient, mostly 1.

A forward that reduces knows its gradient but for one factor. Writing it there saves the backward from reading the inputs
again; where the factor is 1, the backward touches no memory at all, and no kernel's result is read by the host to see that.

The stored tensor is scaled in place, so it serves one backward only: the first takes it out of its graph (and autograd may
keep it as ``.grad`` without a copy); a later one, as ``retain_graph=True`` allows, computes its gradient afresh. Compiled
code, whose graphs know no in-place change of what a forward saved, multiplies out of place instead.

A float16 gradient is not stored: divided by the number of elements it would underflow before a loss scale of, say, 65,536
could lift it.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sod_ops.backends import Kernels
from sod_ops.ops._operators import below_autograd, register_in_place


def _fake_scale_gradient(gradient: Tensor, factor: Tensor) -> None:
    """Multiplies the dense tensor ``gradient`` by the one number in ``factor``."""


register_in_place("scale_gradient_", _fake_scale_gradient, mutates=("gradient",))


def stores_gradient(inputs: Tensor, reduction: int) -> bool:
    """Whether the forward of a loss writes its gradient: for a mean or a sum, in a dtype that can hold it unscaled."""
    return reduction != 0 and inputs.dtype != torch.float16


def take_gradient(ctx: Any, kernels: Kernels, factor: Tensor) -> Tensor:
    """The gradient that the forward left in ``ctx.gradient``, times the one-element tensor ``factor``; ctx loses it."""
    gradient: Tensor = ctx.gradient
    ctx.gradient = None
    scale_in_place(kernels, (gradient,), factor)
    return gradient


def scale_in_place(kernels: Kernels, gradients: Iterable[Tensor], factor: Tensor) -> None:
    """Multiplies each of the dense ``gradients``, in place, by the one-element tensor ``factor``."""
    forward: Any = kernels.forward
    scale = getattr(torch.ops, forward.namespace).scale_gradient_.default
    with below_autograd():
        for gradient in gradients:
            scale(gradient, factor)


def scaled(gradient: Tensor, factor: Tensor) -> Tensor:
    """The same out of place, by operators that a compiler fuses; the product is rounded once."""
    return (gradient.to(factor.dtype) * factor).to(gradient.dtype)

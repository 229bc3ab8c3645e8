"""From an op's formulas to dispatcher operators that PyTorch's other parts understand.

Each op has two pairs of operators of one signature: ``sod_ops::<op>`` and ``sod_ops::<op>_backward`` are native (defined in
csrc/schemas.cpp, with a CPU and, for some, a CUDA kernel), ``sod_ops_triton::<op>`` and ``..._backward`` call the Triton
kernels. All get fake kernels, for tracing, and autograd, for those who call ``torch.ops`` directly and for torch.compile.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sod_ops import _extension
from sod_ops.backends import Kernels, Selector

# Entered around an operator call that autograd need not see: without it the operator's Python autograd kernel runs at
# every call and costs 3 us.
below_autograd = torch._C._AutoDispatchBelowAutograd

# True under torch.func transforms (grad, vmap, jvp, ...), which only the reference formula can follow.
transforms_active: Callable[[], bool] = torch._C._are_functorch_transforms_active

_triton_library = torch.library.Library("sod_ops_triton", "FRAGMENT")


def register(
    name: str,
    *,
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    save: Callable[[Any, tuple[Any, ...], Any], None],
    gradients: Callable[..., tuple[Any, ...]],
    native: Sequence[str] = ("cpu",),
    triton: bool = True,
    serves: Mapping[str, Callable[..., bool]] | None = None,
) -> Selector:
    """Registers the operators of an op and returns the selector of its kernels.

    Args:
        name: the op's stem.
        forward: the forward operator's fake kernel; its annotations are the operator's schema.
        backward: the same for the backward operator.
        save: given ``ctx`` and the forward operator's inputs and outputs, stores in ``ctx`` what the backward needs.
        gradients: given ``ctx``, the backward operator and the gradients of the outputs (None where there is none), returns
            the gradient of every input of the forward operator (None where there is none).
        native: the backends that the compiled part has kernels for: ``"cpu"``, ``"cuda"``.
        triton: whether there are Triton kernels. Where there are none, the op is PyTorch's own on every other backend.
        serves: by backend, where its kernels don't serve every call: :attr:`Kernels.serves`.
    """
    fakes = {name: forward, f"{name}_backward": backward}
    kernels: dict[str, Kernels | None] = {}

    if triton:
        for operator, fake in fakes.items():
            _triton_library.define(operator + torch.library.infer_schema(fake, mutates_args=()))
            for device in ("CPU", "CUDA"):
                _triton_library.impl(operator, _triton_kernel(name, operator), device)
        kernels["triton"] = _finish("sod_ops_triton", name, fakes, save, gradients)
    else:
        kernels.update(triton=None, cuda=None)

    if _extension.why_missing() is None:
        pair = _finish("sod_ops", name, fakes, save, gradients)
        kernels.update({backend: pair._replace(serves=(serves or {}).get(backend)) for backend in native})
    return Selector(name, kernels)


def register_in_place(name: str, fake: Callable[..., None], *, mutates: Sequence[str]) -> None:
    """Registers an operator that changes arguments in place and has no gradient, in both namespaces.

    Args:
        name: the operator's name; it ends in an underscore, which its file's name does not.
        fake: its fake kernel, whose annotations are the operator's schema.
        mutates: the arguments that it changes.
    """
    _triton_library.define(name + torch.library.infer_schema(fake, mutates_args=mutates))
    for device in ("CPU", "CUDA"):
        _triton_library.impl(name, _triton_kernel(name.rstrip("_"), name), device)
    for namespace in ("sod_ops_triton", "sod_ops") if _extension.why_missing() is None else ("sod_ops_triton",):
        torch.library.register_fake(f"{namespace}::{name}", fake)


def _triton_kernel(module: str, operator: str) -> Callable[..., Any]:
    """The Triton launcher ``operator`` of sod_ops.triton.<module>, imported at its first call: Triton is optional."""

    launchers: list[Any] = []

    def kernel(*args: Any) -> Any:
        if not launchers:
            launchers.append(importlib.import_module(f"sod_ops.triton.{module}"))
        return getattr(launchers[0], operator)(*args)

    return kernel


def _finish(
    namespace: str,
    name: str,
    fakes: dict[str, Callable[..., Any]],
    save: Callable[..., None],
    gradients: Callable[..., tuple[Any, ...]],
) -> Kernels:
    """Gives the operators of one namespace their fake kernels and autograd."""
    for operator, fake in fakes.items():
        torch.library.register_fake(f"{namespace}::{operator}", fake)
    operators = getattr(torch.ops, namespace)
    pair = Kernels(
        forward=getattr(operators, name).default,
        backward=getattr(operators, f"{name}_backward").default,
        check_arguments=namespace == "sod_ops",
    )

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        save(ctx, inputs, output)

    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Any, ...]:
        return gradients(ctx, pair.backward, *grad_outputs)

    torch.library.register_autograd(f"{namespace}::{name}", backward, setup_context=setup_context)
    return pair


def reference_gradients(
    reference: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Sequence[Any],
    grad_output: Tensor | tuple[Tensor, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of ``reference(*inputs)``: those that no kernel gives, and the double backward of a fused op.

    A kernel's backward is invisible to autograd, so differentiating through it would be silently wrong. Where grad mode is
    on, these can be differentiated again.

    Returns:
        One entry per input: its gradient where it requires one, otherwise None.
    """
    wanted = [i for i, value in enumerate(inputs) if isinstance(value, Tensor) and value.requires_grad]
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        output = reference(*inputs)
        leaves = [inputs[i] for i in wanted]
        found = torch.autograd.grad(output, leaves, grad_output, create_graph=again, allow_unused=True)
    gradients: list[Tensor | None] = [None] * len(inputs)
    for i, gradient in zip(wanted, found, strict=True):
        gradients[i] = gradient
    return tuple(gradients)

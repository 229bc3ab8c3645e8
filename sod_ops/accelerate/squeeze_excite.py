"""The fused forward of squeeze-and-excitation blocks, whatever their children are called."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.modules import module as torch_module

from sod_ops.accelerate.functions import ACTIVATIONS, GATES, Function, Table, function_of, path_of
from sod_ops.accelerate.swap import NotServedError, Swap
from sod_ops.ops.squeeze_excite import squeeze_excite

# torch.fx keeps the call as one node instead of tracing into its checks.
torch.fx.wrap("squeeze_excite")

_HALF_PRECISION = (torch.bfloat16, torch.float16)
_POINTWISE = {"kernel_size": (1, 1), "stride": (1, 1), "padding": (0, 0), "groups": 1}


class Names(NamedTuple):
    """The names of a block's children in their roles, None where it has no such part.

    A Function stands for an activation or a gate that is written into the block's forward.
    """

    expand: str
    gate: str | Function
    reduce: str | None = None
    activation: str | Function | None = None
    pool: str | None = None
    norm: str | None = None


class Parts(NamedTuple):
    """What a block was found to consist of, and what must still hold of it at a call."""

    reduce: str | None
    norm: str | None
    expand: str
    activation: str
    gate: str
    classes: tuple[type, ...]  # of all children, in their order
    conditions: tuple[tuple[str, str, Any], ...]  # child, attribute, value


def swap(parent: torch.nn.Module, names: Names, activations: Table = ACTIVATIONS, gates: Table = GATES) -> Swap:
    """The swap of a block that is squeeze-and-excitation and nothing else; arguments as :func:`recognise`."""
    return Swap(forward, recognise(parent, names, activations, gates))


def forward(module: torch.nn.Module, parts: Parts, *args: Any, **kwargs: Any) -> Any:
    """``x * gate(expand(activation(norm(reduce(mean(x))))))``."""
    if len(args) == 1 and not kwargs:
        output = excite(module, parts, args[0])
        if output is not None:
            return output
    return type(module).forward(module, *args, **kwargs)


def recognise(parent: torch.nn.Module, names: Names, activations: Table = ACTIVATIONS, gates: Table = GATES) -> Parts:
    """The parts of a block whose children have the names given.

    Args:
        parent: the block, or its child that holds the convolutions.
        names: what its children are called.
        activations: the classes known as activations.
        gates: the classes known as gates.

    Raises:
        NotServedError: the fused forward does not compute what these children do.
    """
    children = {name: child for name, child in parent._modules.items() if child is not None}
    roles = (names.pool, names.reduce, names.norm, names.activation, names.expand, names.gate)
    expected = [name for name in roles if isinstance(name, str)]
    if children.keys() != set(expected):
        raise NotServedError(f"its children are {', '.join(children)}, where {', '.join(expected)} were expected")
    if names.pool is not None:
        _check_pool(names.pool, children[names.pool])
    if names.reduce is not None:
        _check_convolution(names.reduce, children[names.reduce])
    _check_convolution(names.expand, children[names.expand])
    activation = _function(children, names.activation, activations, "activation")
    gate = _function(children, names.gate, gates, "gate")
    norm = _norm(children, names.norm)
    for name, child in children.items():
        if not are_untouched((child,)):
            raise NotServedError(f"its child {name} has hooks, or a forward of its own, that would no longer run")
    return Parts(
        reduce=names.reduce,
        norm=norm,
        expand=names.expand,
        activation=activation.name,
        gate=gate.name,
        classes=tuple(map(type, children.values())),
        conditions=tuple(function.condition for function in (activation, gate) if function.condition is not None),
    )


def excite(parent: torch.nn.Module, parts: Parts, x: Any) -> Tensor | None:
    """The block's result, from the weights that ``parent``'s children have now.

    Returns:
        None where the children have changed since the swap, or the module's own forward treats ``x`` otherwise: a call
        that it refuses must fail in its words.
    """
    children: Any = parent._modules
    if not are_as_swapped(parent, parts) or leaves_pytorch():
        return None
    expand_weight, expand_bias = _weight_and_bias(children[parts.expand])
    if isinstance(x, Tensor):
        if not has_served_dtype(x, expand_weight):
            return None
    elif parts.norm is not None or not isinstance(x, torch.fx.Proxy):
        return None  # torch.fx would keep the weights that the norm is folded into as constants
    reduce_weight: Any = None
    reduce_bias: Any = None
    if parts.reduce is not None:
        reduce_weight, reduce_bias = _weight_and_bias(children[parts.reduce])
    if parts.norm is not None:
        norm = children[parts.norm]
        if norm.training:
            return None
        reduce_weight, reduce_bias = _fold(norm, reduce_weight, reduce_bias)
        expand_weight = expand_weight.to(reduce_weight.dtype)
        expand_bias = None if expand_bias is None else expand_bias.to(reduce_weight.dtype)
    try:
        return squeeze_excite(
            x,
            reduce_weight,
            reduce_bias,
            expand_weight,
            expand_bias,
            activation=parts.activation,
            gate=parts.gate,
        )
    except (TypeError, ValueError):
        if _is_served_map(x, expand_weight):
            raise  # it is not about x
        return None


def are_untouched(modules: Iterable[torch.nn.Module]) -> bool:
    """Whether calling any of them runs its class's forward and nothing else: no hooks, no forward of its own."""
    for module in modules:
        state = module.__dict__  # once: every attribute access on an nn.Module costs as much
        if (
            state["_forward_pre_hooks"]
            or state["_forward_hooks"]
            or state["_backward_pre_hooks"]
            or state["_backward_hooks"]
            or "forward" in state
        ):
            return False
    return True


def are_as_swapped(parent: torch.nn.Module, parts: Parts) -> bool:
    """Whether the children of the block still compute what was recognised."""
    children: Any = parent._modules
    if len(children) != len(parts.classes) or torch_module._has_any_global_hook():
        return False
    for module, kind in zip(children.values(), parts.classes, strict=True):
        if type(module) is not kind:
            return False
    return are_untouched(children.values()) and all(
        getattr(children[name], attribute) == value for name, attribute, value in parts.conditions
    )


def leaves_pytorch() -> bool:
    """Whether the call is being recorded as TorchScript or ONNX, which know the block's own operators only."""
    return torch._C._get_tracing_state() is not None or (
        torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()
    )


def _function(children: Mapping[str, Any], given: str | Function | None, table: Table, role: str) -> Function:
    if given is None:
        return Function("identity")
    return function_of(children, given, table, role) if isinstance(given, str) else given


def _check_convolution(name: str, convolution: Any) -> None:
    kind: Any = type(convolution)
    # torch.nn.utils.parametrize makes a subclass whose weight is a property: it convolves as Conv2d does.
    if not (
        issubclass(kind, torch.nn.Conv2d)
        and kind.forward is torch.nn.Conv2d.forward
        and kind._conv_forward is torch.nn.Conv2d._conv_forward
    ):
        raise NotServedError(f"its {name} is {path_of(kind)}, not a plain Conv2d")
    for attribute, value in _POINTWISE.items():
        if getattr(convolution, attribute) != value:
            raise NotServedError(f"its {name} has {attribute}={getattr(convolution, attribute)!r}, not {value!r}")


def _check_pool(name: str, pool: Any) -> None:
    if type(pool) is not torch.nn.AdaptiveAvgPool2d or pool.output_size not in (1, (1, 1)):
        raise NotServedError(f"its {name} is {pool}, not AdaptiveAvgPool2d(1)")


def _norm(children: Mapping[str, Any], name: str | None) -> str | None:
    """The name of the batch norm between the convolutions; None where there is none."""
    norm = None if name is None else children[name]
    if norm is None or type(norm) is torch.nn.Identity:
        return None
    if type(norm) is not torch.nn.BatchNorm2d:
        raise NotServedError(f"its {name} is {path_of(type(norm))}, not BatchNorm2d")
    if norm.running_mean is None:
        raise NotServedError(f"its {name} normalises by the batch's own statistics")
    if norm.training:
        raise NotServedError(f"its {name} is in training mode (call model.eval() before accelerate)")
    return name


def _weight_and_bias(convolution: Any) -> tuple[Any, Any]:
    parameters = convolution._parameters
    if "weight" in parameters and "bias" in parameters:
        return parameters["weight"], parameters["bias"]
    # Properties where they are parametrized, plain attributes in the replicas of DataParallel.
    return convolution.weight, convolution.bias


def has_served_dtype(x: Tensor, weight: Tensor) -> bool:
    """Whether the module's own forward takes ``x`` beside ``weight`` and answers in the dtype of ``x``."""
    dtype = x.dtype
    if dtype not in _HALF_PRECISION:
        return dtype is weight.dtype
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type) is dtype and weight.dtype in (dtype, torch.float32)
    return dtype is weight.dtype


def _is_served_map(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dim() == 4
        and x.shape[1] == weight.shape[0]
        and x.is_floating_point()
        and x.layout is torch.strided
        and x.device == weight.device
    )


def _fold(norm: Any, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The convolution that equals ``weight`` and ``bias`` followed by ``norm``, in at least float32."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    scale = torch.rsqrt(norm.running_var.to(dtype) + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.to(dtype)
    mean = norm.running_mean.to(dtype)
    shift = (-mean if bias is None else bias.to(dtype) - mean) * scale
    if norm.bias is not None:
        shift = shift + norm.bias.to(dtype)
    return weight.to(dtype) * scale.view(-1, 1, 1, 1), shift

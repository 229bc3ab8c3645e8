"""What a part of a graph computes, known by its values: it is run on numbers and compared with what ops compute."""

from collections.abc import Callable, Collection, Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, fx

from sod_ops.reference import squeeze_excite as reference

PRODUCTS = ("mul", "multiply")
# What leaves the values of a tensor as they are.
_VIEWS = {"view", "reshape", "flatten", "squeeze", "unsqueeze", "expand", "expand_as", "contiguous", "getitem"}
_RANGE, _POINTS, _SAME = 12.0, 481, 1e-6
# Of the maps on which reductions are compared; no size of one is one of the other.
_SHAPES = ((2, 3, 5, 4), (1, 6, 3, 7))
_MEANS = ("mean", "avg_pool2d", "adaptive_avg_pool2d", "AdaptiveAvgPool2d")
_MAXIMA = ("max_pool2d", "adaptive_max_pool2d", "AdaptiveMaxPool2d")
# From a map to its reduction, with views and sizes of every kind.
_LARGEST_CONE = 24


def name_of(node: fx.Node) -> str:
    """Of the function or the method that ``node`` calls; empty for a module."""
    return node.target if node.op == "call_method" else getattr(node.target, "__name__", "")  # type: ignore[return-value]


def is_view(node: fx.Node) -> bool:
    """Whether ``node`` has the values of what it is called on."""
    return node.op in ("call_method", "call_function") and name_of(node) in _VIEWS and isinstance(node.args[0], fx.Node)


def function_of_one_number(module: torch.nn.Module, source: fx.Node, segment: set[fx.Node], end: fx.Node) -> set[str]:
    """The names of the functions of squeeze_excite that ``segment`` computes: none, or one, and sometimes two."""
    modes = []
    for training in (False, True):
        z = torch.linspace(-_RANGE, _RANGE, _POINTS, dtype=torch.float64).view(1, -1, 1, 1)
        try:
            modes.append(_run(module, source, segment, end, z, training, views=False))
        except Exception:  # whatever a module of a user's own does with numbers that it was not made for
            return set()
    return {name for name, values in _values().items() if all(_is_close(found, values) for found in modes)}


@cache
def _values() -> Mapping[str, Tensor]:
    z = torch.linspace(-_RANGE, _RANGE, _POINTS, dtype=torch.float64).view(1, -1, 1, 1)
    return {name: function(z.clone()) for name, function in (*reference.ACTIVATIONS.items(), *reference.GATES.items())}


def computes(module: torch.nn.Module, x: fx.Node, end: fx.Node, function: Callable[[Tensor], Tensor]) -> bool:
    """Whether ``end`` is ``function`` of the map ``x``, and its gradient: on maps of several sizes, with equal values."""
    part = cone(module, x, end)
    if not part:
        return False
    generator = torch.Generator().manual_seed(0)
    for shape in _SHAPES:
        for scale in (1.0, 8.0):  # rounded, many numbers are equal, or few
            map_ = torch.randn(shape, generator=generator, dtype=torch.float64).mul(scale).round().requires_grad_()
            expected = _with_gradient(function, map_)
            for training in (False, True):
                try:
                    found = _with_gradient(lambda m: _run(module, x, part, end, m, training), map_)  # noqa: B023
                except Exception:
                    return False
                if not all(map(_is_close, found, expected)):
                    return False
    return True


def _in_dimensions(dimensions: int, function: Callable[[Tensor], Tensor], map_: Tensor) -> Tensor:
    result = function(map_)
    return result.flatten(dimensions - 1) if dimensions < 4 else result


def _mean(map_: Tensor) -> Tensor:
    return map_.mean((2, 3), keepdim=True)


def _maximum(map_: Tensor) -> Tensor:
    return map_.flatten(2).max(2, keepdim=True)[0].unsqueeze(3)


def _with_gradient(function: Callable[[Tensor], Tensor], map_: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        y = function(map_)
        weights = torch.arange(1.0, y.numel() + 1, dtype=y.dtype).view(y.shape)
        (gradient,) = torch.autograd.grad(y, map_, weights)
    return y.detach(), gradient


def is_mean_over_space(module: torch.nn.Module, node: fx.Node) -> tuple[fx.Node, int] | None:
    """The map whose means over space ``node`` holds, and in how many dimensions; None where it is not that."""
    return _reduces(module, node, _MEANS, _mean)


def is_maximum_over_space(module: torch.nn.Module, node: fx.Node) -> tuple[fx.Node, int] | None:
    """The same of the maxima, whose gradient goes to the first of several."""
    return _reduces(module, node, _MAXIMA, _maximum)


def _reduces(
    module: torch.nn.Module, node: fx.Node, names: Collection[str], function: Callable[[Tensor], Tensor]
) -> tuple[fx.Node, int] | None:
    name = name_of(node) if node.op != "call_module" else type(module.get_submodule(str(node.target))).__name__
    x = node.args[0] if name in names and node.args else None
    while isinstance(x, fx.Node):
        for dimensions in (4, 3, 2):
            if computes(module, x, node, partial(_in_dimensions, dimensions, function)):
                return x, dimensions
        x = x.args[0] if is_view(x) else None
    return None


def cone(module: torch.nn.Module, x: fx.Node, end: fx.Node) -> set[fx.Node]:
    """The nodes in which ``end`` is computed from ``x`` alone; none where that is not so."""
    part: set[fx.Node] = set()
    pending = [end]
    while pending:
        node = pending.pop()
        if node is x or node in part:
            continue
        if len(part) == _LARGEST_CONE or not node.all_input_nodes or not _has_no_state(module, node):
            return set()
        part.add(node)
        pending.extend(node.all_input_nodes)
    return part


def _has_no_state(module: torch.nn.Module, node: fx.Node) -> bool:
    if node.op != "call_module":
        return node.op in ("call_method", "call_function")
    layer = module.get_submodule(str(node.target))
    return next(layer.children(), None) is None and not layer._parameters and not layer._buffers


def _is_close(found: Any, values: Tensor) -> bool:
    alike = isinstance(found, Tensor) and found.shape == values.shape and found.dtype == values.dtype
    return alike and bool(((found - values).abs() < _SAME).all())


def _run(
    module: torch.nn.Module,
    source: fx.Node,
    part: set[fx.Node],
    end: fx.Node,
    value: Tensor,
    training: bool,
    views: bool = True,
) -> Any:
    """``end`` for ``value`` in the place of ``source``; without ``views``, as if there were none."""
    values: dict[fx.Node, Any] = {source: value}
    for node in source.graph.nodes:
        if node not in part:
            continue
        if not views and is_view(node):
            values[node] = values[node.args[0]]
            continue
        args = fx.map_arg(node.args, lambda n: values[n])
        kwargs = fx.map_arg(node.kwargs, lambda n: values[n])
        if node.op == "call_module":
            layer = module.get_submodule(str(node.target))
            before = layer.training
            layer.training = training
            try:
                values[node] = layer(*args, **kwargs)
            finally:
                layer.training = before
        elif node.op == "call_method":
            values[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        else:
            values[node] = node.target(*args, **kwargs)
    return values[end]

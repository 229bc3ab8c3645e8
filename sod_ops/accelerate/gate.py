"""Squeeze-and-excitation written out in a graph, replaced by one call: a map times a gate computed from its means.

The matrices are found by structure. What stands between them, whatever operations or modules it is made of, is known by
its values: it is run on numbers and compared with the functions that squeeze_excite has.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.nn import functional

from sod_ops.accelerate.functions import path_of
from sod_ops.accelerate.observe import MEANS, POOLS
from sod_ops.accelerate.pyramid import may_bypass, serves_map
from sod_ops.accelerate.squeeze_excite import has_served_dtype
from sod_ops.accelerate.swap import NotServedError
from sod_ops.accelerate.traced import Code, compile_graph
from sod_ops.ops.squeeze_excite import squeeze_excite
from sod_ops.reference import squeeze_excite as reference

_PRODUCTS = ("mul", "multiply")
# What leaves the values of a map of means as they are.
_VIEWS = {"view", "reshape", "flatten", "squeeze", "unsqueeze", "expand", "expand_as", "contiguous", "getitem"}
# Whatever these compute, it is a function of one number.
_ELEMENTWISE = {
    *(
        "add",
        "iadd",
        "sub",
        "isub",
        "mul",
        "imul",
        "truediv",
        "itruediv",
        "div",
        "neg",
        "pow",
        "exp",
        "tanh",
        "softplus",
    ),
    *("sigmoid", "hardsigmoid", "relu", "relu_", "relu6", "leaky_relu", "silu", "gelu", "hardswish", "mish", "clamp"),
    *("clamp_", "hardtanh", "minimum", "maximum", "logsigmoid", "elu"),
}
_LAYERS = {
    *(
        "Identity",
        "ReLU",
        "ReLU6",
        "LeakyReLU",
        "SiLU",
        "GELU",
        "Hardswish",
        "Mish",
        "Sigmoid",
        "Hardsigmoid",
        "Hardtanh",
    ),
    *("Tanh", "Softplus"),
}
_POINTWISE = {"kernel_size": (1, 1), "stride": (1, 1), "padding": (0, 0), "groups": 1}
_RANGE, _POINTS, _SAME = 12.0, 481, 1e-6


class _Matrix(NamedTuple):
    """A 1x1 convolution or a linear layer: its place and its class."""

    path: tuple[str, ...]
    kind: type

    def of(self, module: Any) -> Any:
        for name in self.path:
            module = module._modules[name]
        return module


class Excite:
    """A call of squeeze_excite in a graph.

    Args:
        matrices: reduce and expand, or expand alone.
        activation: its name in squeeze_excite.
        gate: likewise.
        bypassed: the modules that are not called, and what they were.
        otherwise: the part of the graph that it stands for, which runs where squeeze_excite does not serve the call.
    """

    __name__ = __qualname__ = "Excite"

    def __init__(
        self,
        matrices: tuple[_Matrix, ...],
        activation: str,
        gate: str,
        bypassed: tuple[_Matrix, ...],
        otherwise: Code,
    ) -> None:
        self.matrices = matrices
        self.activation = activation
        self.gate = gate
        self.bypassed = bypassed
        self.otherwise = otherwise

    def __call__(self, module: Any, x: Any, *others: Any) -> Any:
        bypassed = [each.of(module) for each in self.bypassed]
        as_before = all(type(b) is each.kind for b, each in zip(bypassed, self.bypassed, strict=True))
        *reduce, expand = (matrix.of(module) for matrix in self.matrices)
        if as_before and may_bypass(bypassed) and serves_map(x) and has_served_dtype(x, expand.weight):
            weight, bias = (reduce[0].weight, reduce[0].bias) if reduce else (None, None)
            return squeeze_excite(
                x, weight, bias, expand.weight, expand.bias, activation=self.activation, gate=self.gate
            )
        return self.otherwise.function(module, x, *others)


def replace(module: torch.nn.Module, graph: fx.Graph) -> tuple[int, list[str]]:
    """Replaces every such pattern in ``graph``, a trace of ``module``, in place.

    Returns:
        How many, and why others were left.
    """
    found, reasons = 0, []
    for node in list(graph.nodes):
        for x, gate in _factors(node):
            try:
                if _replace_one(module, graph, node, x, gate):
                    found += 1
                    break
            except NotServedError as reason:
                reasons.append(str(reason))
    return found, reasons


def _factors(node: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
    """The two ways in which ``node`` may be the product of a map and its gate."""
    factors = [arg for arg in node.args if isinstance(arg, fx.Node)]
    if _name(node) not in _PRODUCTS or len(factors) != 2 or factors[0] is factors[1]:
        return []
    return [(factors[0], factors[1]), (factors[1], factors[0])]


def _name(node: fx.Node) -> str:
    return node.target if node.op == "call_method" else getattr(node.target, "__name__", "")  # type: ignore[return-value]


def _replace_one(module: torch.nn.Module, graph: fx.Graph, product: fx.Node, x: fx.Node, gate: fx.Node) -> bool:
    """Whether ``product`` was replaced; False where ``gate`` is not computed from the means of ``x``."""
    segments: list[tuple[fx.Node, set[fx.Node], fx.Node]] = []
    matrices: list[fx.Node] = []
    node = gate
    chain = {product}
    while len(matrices) < 3:
        source, segment = _segment(module, node)
        if source is None:
            return False
        segments.append((source, segment, node))
        chain |= segment | {source}
        squeezed = _squeezed(module, source)
        if squeezed is not None:
            if squeezed is not x:
                return False
            break
        matrices.append(source)
        node = _input_of_matrix(source)
    if not 1 <= len(matrices) <= 2:
        return False
    outside = {user.name for each in chain - {product} for user in each.users if user not in chain}
    if outside:
        raise NotServedError(f"parts of its squeeze-and-excitation are used elsewhere: {', '.join(sorted(outside))}")
    gates, activations, *_ = names = [_function(module, *segment) for segment in segments]
    gate_name = next(iter(gates & reference.GATES.keys()), None)
    activation = next(iter(activations & reference.ACTIVATIONS.keys()), None)
    # Without a reduction, what would be its activation lies between the means and the only matrix.
    if gate_name is None or activation is None or "identity" not in names[-1]:
        raise NotServedError("a function in its squeeze-and-excitation has no fused form")
    found = tuple(_matrix(module, matrix) for matrix in reversed(matrices))
    _call(module, graph, product, x, chain, found, activation, gate_name)
    return True


def _call(
    module: torch.nn.Module,
    graph: fx.Graph,
    product: fx.Node,
    x: fx.Node,
    chain: set[fx.Node],
    matrices: Sequence[_Matrix],
    activation: str,
    gate: str,
) -> None:
    ordered = [node for node in graph.nodes if node in chain]
    attributes = [node for each in ordered for node in each.all_input_nodes if node.op == "get_attr"]
    inputs = dict.fromkeys((x, *(n for each in ordered for n in each.all_input_nodes if n not in chain)))
    others = [node for node in inputs if node.op != "get_attr" and node is not x]
    bypassed = [
        _Matrix(tuple(str(node.target).split(".")), type(module.get_submodule(str(node.target))))
        for node in ordered
        if node.op == "call_module"
    ]
    call = Excite(
        tuple(matrices), activation, gate, tuple(bypassed), _alone(ordered, attributes, (x, *others), product)
    )
    this = next(iter(graph.nodes))
    with graph.inserting_before(product):
        node = graph.call_function(call, (this, x, *others))
    product.replace_all_uses_with(node)
    for each in reversed(ordered):
        graph.erase_node(each)
    for attribute in dict.fromkeys(attributes):
        if not attribute.users:
            graph.erase_node(attribute)


def _alone(nodes: Sequence[fx.Node], attributes: Sequence[fx.Node], inputs: Sequence[fx.Node], output: fx.Node) -> Code:
    """``nodes`` as a function of their own."""
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in inputs}
    for node in (*dict.fromkeys(attributes), *nodes):
        copies[node] = graph.node_copy(node, lambda n: copies[n])
    graph.output(copies[output])
    return compile_graph(graph)


def _segment(module: torch.nn.Module, end: fx.Node) -> tuple[fx.Node | None, set[fx.Node]]:
    """The one node that ``end`` is a function of, element by element, and the nodes on the way."""
    segment: set[fx.Node] = set()
    sources: set[fx.Node] = set()
    pending = [end]
    while pending:
        node = pending.pop()
        if node in segment or node in sources:
            continue
        if _is_view(node):
            segment.add(node)
            pending.append(node.args[0])  # type: ignore[arg-type]
        elif _is_elementwise(module, node):
            segment.add(node)
            pending.extend(node.all_input_nodes)
        else:
            sources.add(node)
    return (sources.pop(), segment) if len(sources) == 1 else (None, segment)


def _is_view(node: fx.Node) -> bool:
    return node.op in ("call_method", "call_function") and _name(node) in _VIEWS and isinstance(node.args[0], fx.Node)


def _is_elementwise(module: torch.nn.Module, node: fx.Node) -> bool:
    if node.op != "call_module":
        return (
            node.op in ("call_method", "call_function") and _name(node) in _ELEMENTWISE and bool(node.all_input_nodes)
        )
    layer = module.get_submodule(str(node.target))
    if type(layer).__module__.startswith("torch.nn."):
        return type(layer).__name__ in _LAYERS
    return next(layer.children(), None) is None and not layer._parameters and not layer._buffers


def _squeezed(module: torch.nn.Module, node: fx.Node) -> fx.Node | None:
    """The map whose means ``node`` is, None where it is not that."""
    if not node.args or not isinstance(node.args[0], fx.Node):
        return None
    if node.op == "call_module":
        pool = module.get_submodule(str(node.target))
        squeezes = type(pool) is torch.nn.AdaptiveAvgPool2d and pool.output_size in (1, (1, 1))
    elif node.op == "call_function" and node.target in POOLS:
        size = node.args[1] if len(node.args) > 1 else node.kwargs.get("output_size")
        squeezes = size in (1, (1, 1), [1, 1])
    elif (node.op == "call_function" and node.target in MEANS) or (node.op == "call_method" and node.target == "mean"):
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        squeezes = isinstance(dims, (list, tuple)) and sorted(d % 4 for d in dims if isinstance(d, int)) == [2, 3]
    else:
        squeezes = False
    return node.args[0] if squeezes else None


def _matrix(module: torch.nn.Module, node: fx.Node) -> _Matrix:
    """The layer whose product ``node`` is.

    Raises:
        NotServedError: it is not one of a matrix alone.
    """
    name = str(node.target)
    if node.op == "call_function":
        owner = str(getattr(node.args[1], "target", "")).rpartition(".")[0]
        given = [getattr(arg, "target", arg) for arg in node.args[1:3]]
        if node.target not in (torch.conv2d, functional.linear) or given[0] != f"{owner}.weight":
            raise NotServedError(f"a matrix of its squeeze-and-excitation is {name}, not a layer's own")
        name = owner
    layer: Any = module.get_submodule(name)
    convolution = isinstance(layer, torch.nn.Conv2d)
    exact = type(layer) in (torch.nn.Conv2d, torch.nn.Linear) or node.op == "call_function"
    if not exact or not (convolution or isinstance(layer, torch.nn.Linear)):
        raise NotServedError(f"its {name} is {path_of(type(layer))}, not a plain Conv2d or Linear")
    for attribute, value in _POINTWISE.items() if convolution else ():
        if getattr(layer, attribute) != value:
            raise NotServedError(f"its {name} has {attribute}={getattr(layer, attribute)!r}, not {value!r}")
    return _Matrix(tuple(name.split(".")), type(layer))


def _input_of_matrix(node: fx.Node) -> fx.Node:
    """What the matrix is multiplied with; the node itself, of which nothing is known, where it is none."""
    return node.args[0] if node.args and isinstance(node.args[0], fx.Node) else node


def _function(module: torch.nn.Module, source: fx.Node, segment: set[fx.Node], end: fx.Node) -> set[str]:
    """The names of the functions of squeeze_excite that ``segment`` computes: none, or one, and sometimes two."""
    modes = []
    for training in (False, True):
        z = torch.linspace(-_RANGE, _RANGE, _POINTS, dtype=torch.float64).view(1, -1, 1, 1)
        try:
            modes.append(_run(module, source, segment, end, z, training))
        except Exception:  # whatever a module of a user's own does with numbers that it was not made for
            return set()
    return {name for name, values in _values().items() if all(_is_close(found, values) for found in modes)}


def _is_close(found: Any, values: Tensor) -> bool:
    return isinstance(found, Tensor) and found.shape == values.shape and bool(((found - values).abs() < _SAME).all())


@cache
def _values() -> Mapping[str, Tensor]:
    z = torch.linspace(-_RANGE, _RANGE, _POINTS, dtype=torch.float64).view(1, -1, 1, 1)
    return {name: function(z.clone()) for name, function in (*reference.ACTIVATIONS.items(), *reference.GATES.items())}


def _run(
    module: torch.nn.Module, source: fx.Node, segment: set[fx.Node], end: fx.Node, z: Tensor, training: bool
) -> Any:
    values: dict[fx.Node, Any] = {source: z}
    with torch.no_grad():
        for node in source.graph.nodes:
            if node not in segment:
                continue
            if _is_view(node):
                values[node] = values[node.args[0]]
                continue
            args = fx.map_arg(node.args, lambda n: values[n])
            kwargs = fx.map_arg(node.kwargs, lambda n: values[n])
            if node.op == "call_module":
                layer = module.get_submodule(node.target)
                before = layer.training
                layer.training = training
                try:
                    values[node] = layer(*args, **kwargs)
                finally:
                    layer.training = before
            elif node.op == "call_method":
                values[node] = getattr(args[0], node.target)(*args[1:], **kwargs)
            else:
                values[node] = node.target(*args, **kwargs)
    return values[end]

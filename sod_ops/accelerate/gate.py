"""Squeeze-and-excitation written out in a graph, replaced by one call: a map times a gate computed from its means.

The matrices are found by structure. What stands between them, whatever operations or modules it is made of, is known by
its values: it is run on numbers and compared with the functions that squeeze_excite has.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.nn import functional

from sod_ops.accelerate.functions import path_of
from sod_ops.accelerate.fused_call import Place, closed, place_of, substitute
from sod_ops.accelerate.pyramid import serves_map
from sod_ops.accelerate.squeeze_excite import has_served_dtype
from sod_ops.accelerate.swap import NotServedError
from sod_ops.accelerate.values import PRODUCTS, function_of_one_number, is_mean_over_space, is_view, name_of
from sod_ops.ops.squeeze_excite import squeeze_excite
from sod_ops.reference import squeeze_excite as reference

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


class _Excitation(NamedTuple):
    """What a call of squeeze_excite takes beside the map: reduce and expand, or expand alone, and the names of functions."""

    matrices: tuple[Place, ...]
    activation: str
    gate: str


def excite(module: Any, excitation: _Excitation, x: Any) -> Tensor | None:
    """``x`` squeezed and excited by matrices of ``module``; None where squeeze_excite does not serve the call."""
    *reduce, expand = (matrix.of(module) for matrix in excitation.matrices)
    if not serves_map(x) or not has_served_dtype(x, expand.weight):
        return None
    weight, bias = (reduce[0].weight, reduce[0].bias) if reduce else (None, None)
    return squeeze_excite(
        x, weight, bias, expand.weight, expand.bias, activation=excitation.activation, gate=excitation.gate
    )


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
    if name_of(node) not in PRODUCTS or len(factors) != 2 or factors[0] is factors[1]:
        return []
    return [(factors[0], factors[1]), (factors[1], factors[0])]


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
        squeezed = is_mean_over_space(module, source)
        if squeezed is not None:
            if squeezed[0] is not x:
                return False
            break
        matrices.append(source)
        node = _input_of_matrix(source)
    if not 1 <= len(matrices) <= 2:
        return False
    chain = closed(graph, chain)
    outside = {user.name for each in chain - {product} for user in each.users if user not in chain}
    if outside:
        raise NotServedError(f"parts of its squeeze-and-excitation are used elsewhere: {', '.join(sorted(outside))}")
    gates, activations, *_ = names = [function_of_one_number(module, *segment) for segment in segments]
    gate_name = next(iter(gates & reference.GATES.keys()), None)
    activation = next(iter(activations & reference.ACTIVATIONS.keys()), None)
    # Without a reduction, what would be its activation lies between the means and the only matrix.
    if gate_name is None or activation is None or "identity" not in names[-1]:
        raise NotServedError("a function in its squeeze-and-excitation has no fused form")
    found = tuple(_matrix(module, matrix) for matrix in reversed(matrices))
    substitute(module, graph, chain, (product,), excite, _Excitation(found, activation, gate_name), (x,))
    return True


def _segment(module: torch.nn.Module, end: fx.Node) -> tuple[fx.Node | None, set[fx.Node]]:
    """The one node that ``end`` is a function of, element by element, and the nodes on the way."""
    segment: set[fx.Node] = set()
    sources: set[fx.Node] = set()
    pending = [end]
    while pending:
        node = pending.pop()
        if node in segment or node in sources:
            continue
        if is_view(node):
            segment.add(node)
            pending.append(node.args[0])  # type: ignore[arg-type]
        elif _is_elementwise(module, node):
            segment.add(node)
            pending.extend(node.all_input_nodes)
        else:
            sources.add(node)
    return (sources.pop(), segment) if len(sources) == 1 else (None, segment)


def _is_elementwise(module: torch.nn.Module, node: fx.Node) -> bool:
    if node.op != "call_module":
        return (
            node.op in ("call_method", "call_function") and name_of(node) in _ELEMENTWISE and bool(node.all_input_nodes)
        )
    layer = module.get_submodule(str(node.target))
    if type(layer).__module__.startswith("torch.nn."):
        return type(layer).__name__ in _LAYERS
    return next(layer.children(), None) is None and not layer._parameters and not layer._buffers


def _matrix(module: torch.nn.Module, node: fx.Node) -> Place:
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
    return place_of(module, name)


def _input_of_matrix(node: fx.Node) -> fx.Node:
    """What the matrix is multiplied with; the node itself, of which nothing is known, where it is none."""
    return node.args[0] if node.args and isinstance(node.args[0], fx.Node) else node

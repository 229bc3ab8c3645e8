"""An op in the place of a part of a graph: a call of it, which falls back to that part."""

import contextlib
import operator
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx

from sod_ops.accelerate.pyramid import may_bypass
from sod_ops.accelerate.squeeze_excite import are_untouched
from sod_ops.accelerate.traced import Code, compile_graph

_proving = False


@contextlib.contextmanager
def proving() -> Iterator[None]:
    """Calls that an op serves are served by it, also where it has nothing to gain: what is proven is what it computes."""
    global _proving  # a flag that torch.compile can guard
    before, _proving = _proving, True
    try:
        yield
    finally:
        _proving = before


def is_proving() -> bool:
    """Whether :func:`proving` is in force."""
    return _proving


class Place(NamedTuple):
    """Where a module below another is, and of which class it was."""

    path: tuple[str, ...]
    kind: type

    def of(self, module: Any) -> Any:
        for name in self.path:
            module = module._modules[name]
        return module


class FusedCall:
    """What a graph calls instead of a part of it.

    Args:
        function: ``function(module, spec, *given)`` returns what that part does, or None where the op does not serve the
            call; a function of this package, so that the call can be pickled.
        spec: for it.
        bypassed: the modules that are not called, and what they were.
        otherwise: the part itself.
    """

    __name__ = __qualname__ = "FusedCall"

    def __init__(self, function: Callable[..., Any], spec: Any, bypassed: tuple[Place, ...], otherwise: Code) -> None:
        self.function = function
        self.spec = spec
        self.bypassed = bypassed
        self.otherwise = otherwise

    def __call__(self, module: Any, given: tuple[Any, ...], inputs: tuple[Any, ...]) -> Any:
        result = self.function(module, self.spec, *given) if self._may_bypass(module) else None
        return self.otherwise.function(module, *inputs) if result is None else result

    def _may_bypass(self, module: Any) -> bool:
        bypassed: list[Any] = []
        for place in self.bypassed:
            inner = place.of(module)
            if type(inner) is not place.kind:
                return False
            bypassed.append(inner)
        return are_untouched(bypassed) or may_bypass(bypassed)


def place_of(module: torch.nn.Module, name: str) -> Place:
    """The place of ``module``'s submodule ``name``."""
    return Place(tuple(name.split(".")), type(module.get_submodule(name)))


def closed(graph: fx.Graph, part: Collection[fx.Node]) -> set[fx.Node]:
    """``part`` and what lies between its nodes, as the sizes of one that another is viewed in."""
    after, before = set(part), set(part)
    for node in graph.nodes:
        if any(read in after for read in node.all_input_nodes):
            after.add(node)
    for node in reversed(graph.nodes):
        if any(user in before for user in node.users):
            before.add(node)
    return after & before


def substitute(
    module: torch.nn.Module,
    graph: fx.Graph,
    part: Collection[fx.Node],
    outputs: Sequence[fx.Node],
    function: Callable[..., Any],
    spec: Any,
    given: tuple[fx.Node, ...],
) -> None:
    """Puts a call in the place of ``part``, of which ``outputs`` are read; what else is read of it stays.

    Args:
        module: the one of whose forward ``graph`` is a trace.
        graph: changed in place.
        part: the nodes that it replaces; those of several outputs read nothing that comes after the first of these.
        outputs: nodes of ``part``, in the graph's order.
        function: as :class:`FusedCall` has it; returns a tuple where there are several outputs.
        spec: for it.
        given: its arguments.
    """
    ordered = [node for node in graph.nodes if node in part]
    read = dict.fromkeys(node for each in ordered for node in each.all_input_nodes if node not in part)
    attributes = [node for node in read if node.op == "get_attr"]
    inputs = tuple(node for node in read if node.op != "get_attr")
    bypassed = tuple(place_of(module, str(node.target)) for node in ordered if node.op == "call_module")
    call = FusedCall(function, spec, bypassed, _alone(ordered, attributes, inputs, outputs))
    this = next(iter(graph.nodes))
    with graph.inserting_before(outputs[0]):
        node = graph.call_function(call, (this, given, inputs))
        results = [node]
        if len(outputs) > 1:
            results = [graph.call_function(operator.getitem, (node, i)) for i in range(len(outputs))]
    for output, result in zip(outputs, results, strict=True):
        output.replace_all_uses_with(result)
    for each in (*reversed(ordered), *attributes):
        if not each.users:
            graph.erase_node(each)


def _alone(
    nodes: Sequence[fx.Node], attributes: Sequence[fx.Node], inputs: Sequence[fx.Node], outputs: Sequence[fx.Node]
) -> Code:
    """``nodes`` as a function of their own."""
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in inputs}
    for node in (*attributes, *nodes):
        copies[node] = graph.node_copy(node, lambda n: copies[n])
    results = tuple(copies[output] for output in outputs)
    graph.output(results[0] if len(results) == 1 else results)
    return compile_graph(graph)

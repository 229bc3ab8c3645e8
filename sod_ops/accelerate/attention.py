"""Attention written out in a graph: maps times sigmoids, the sums of such products, and the means and maxima behind them.

    x * sigmoid(a)                          gate(x, a)
    x * sigmoid(a) + x * sigmoid(b)         gate(x, a, b, sum_of="gates"), as in scSE
    x * sigmoid(a) + x                      x * (sigmoid(a) + 1), one pass of PyTorch's
    cat of mean and maximum over channels   channel_pool(x)
    mean and maximum over space             global_pool(x)

for ``a`` and ``b`` of channels or of pixels. A sigmoid is known by its name, or by its values; a pool by its values and its
gradient, whatever it is written with: among equal maxima, ``amax`` shares the gradient out, and ``max`` does not.
"""

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from sod_ops.accelerate.followers import CONCATENATIONS, is_large, is_small
from sod_ops.accelerate.fused_call import is_proving, substitute
from sod_ops.accelerate.pyramid import serves_map
from sod_ops.accelerate.values import (
    PRODUCTS,
    computes,
    cone,
    function_of_one_number,
    is_maximum_over_space,
    is_mean_over_space,
    name_of,
)
from sod_ops.ops.channel_pool import channel_pool
from sod_ops.ops.gate import gate
from sod_ops.ops.global_pool import global_pool

_SIGMOIDS = ("sigmoid",)
# Views that commute with a sigmoid, and those that gate does without.
_VIEWS = ("view", "reshape", "flatten", "squeeze", "unsqueeze", "getitem")
_EXPANSIONS = ("expand", "expand_as", "contiguous")
# A map and gates beside it, as autocast leaves them, whose product has the map's dtype.
_WIDENED = ((torch.float32, torch.bfloat16), (torch.float32, torch.float16))


def replace_sums(module: torch.nn.Module, graph: fx.Graph) -> tuple[int, list[str]]:
    """Replaces the sums of two products, or of a product and its map, in ``graph``, a trace of ``module``, in place.

    Returns:
        How many, and why others were left.
    """
    return sum(_replace_sum(module, graph, node) for node in list(graph.nodes)), []


def replace(module: torch.nn.Module, graph: fx.Graph) -> tuple[int, list[str]]:
    """Replaces products and pools likewise."""
    found = _replace_global_pools(module, graph)
    for replace_one in (_replace_product, _replace_channel_pool):
        found += sum(replace_one(module, graph, node) for node in list(graph.nodes) if not node._erased)
    return found, []


class _Product(NamedTuple):
    """A map times a sigmoid: the nodes in which it is computed, and the views between sigmoid and product."""

    x: fx.Node
    logits: fx.Node
    sigmoid: fx.Node
    views: list[fx.Node]
    part: set[fx.Node]


def _products(module: torch.nn.Module, node: fx.Node) -> Iterator[_Product]:
    """The ways in which ``node`` is one."""
    factors = [arg for arg in node.args if isinstance(arg, fx.Node)]
    if name_of(node) not in PRODUCTS or len(factors) != 2 or node.kwargs:
        return
    for x, end in (factors, reversed(factors)):
        views: list[fx.Node] = []
        while name_of(end) in (*_VIEWS, *_EXPANSIONS) and end.op != "call_module" and isinstance(end.args[0], fx.Node):
            views.append(end)
            end = end.args[0]
        # What is viewed otherwise after it was expanded is larger than its logits.
        names = [name_of(view) in _EXPANSIONS for view in views]
        if names == sorted(names, reverse=True) and _is_sigmoid(module, end) and x is not end.args[0]:
            kept = [view for view in reversed(views) if name_of(view) in _VIEWS]
            yield _Product(x, end.args[0], end, kept, {node, *views, end})  # type: ignore[arg-type]


def _is_sigmoid(module: torch.nn.Module, node: fx.Node) -> bool:
    if len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
        return False
    if node.op == "call_module":
        return "sigmoid" in function_of_one_number(module, node.args[0], {node}, node)
    return name_of(node) in _SIGMOIDS


def _viewed(graph: fx.Graph, node: fx.Node, views: list[fx.Node]) -> fx.Node:
    """``node`` as ``views`` view it; put where the graph is being written."""
    for view in views:
        node = graph.create_node(view.op, view.target, (node, *view.args[1:]), view.kwargs)
    return node


def _replace_product(module: torch.nn.Module, graph: fx.Graph, node: fx.Node) -> bool:
    for product in _products(module, node):
        with graph.inserting_before(node):
            logits = _viewed(graph, product.logits, product.views)
        substitute(module, graph, product.part, (node,), scale, None, (product.x, logits))
        return True
    return False


def scale(module: Any, spec: None, x: Any, logits: Any) -> Tensor | None:
    """``x * sigmoid(logits)``; None where gate does not serve the call, or has nothing to gain in it."""
    # What costs least first: where a small map keeps its product, it shall not wait for more.
    if not (is_proving() or _is_gained_by_gate(x, logits)) or not _scales(x, logits):
        return None
    return gate(x, logits)


def _is_gained_by_gate(x: Any, logits: Any) -> bool:
    """Whether it is faster than a product with a sigmoid, which on a CPU its backward alone is."""
    if not (isinstance(x, Tensor) and isinstance(logits, Tensor)) or not x.is_cpu:
        return True
    return torch.is_grad_enabled() and (x.requires_grad or logits.requires_grad) and is_large(x)


def _replace_sum(module: torch.nn.Module, graph: fx.Graph, node: fx.Node) -> bool:
    if node._erased or name_of(node) != "add" or len(node.args) != 2 or node.kwargs:
        return False
    terms = [list(_products(module, term)) if isinstance(term, fx.Node) else [] for term in node.args]
    for product, other in itertools.product(*terms):
        if product.x is other.x:
            with graph.inserting_before(node):
                given = [_viewed(graph, each.logits, each.views) for each in (product, other)]
            part = {node, *product.part, *other.part}
            substitute(module, graph, part, (node,), scale_by_both, None, (product.x, *given))
            return True
    for product, term in (*((p, node.args[1]) for p in terms[0]), *((p, node.args[0]) for p in terms[1])):
        if product.x is term:
            with graph.inserting_before(node):
                gates = _viewed(graph, product.sigmoid, product.views)
            substitute(module, graph, {node, *product.part}, (node,), scale_and_add, None, (product.x, gates))
            return True
    return False


def scale_by_both(module: Any, spec: None, x: Any, logits: Any, other: Any) -> Tensor | None:
    """``x * sigmoid(logits) + x * sigmoid(other)``; None where gate does not serve the call."""
    if not _scales(x, logits, other) or (is_small(x) and not is_proving()):
        return None
    channels, pixels = _shapes_of(x)
    if (logits.shape, other.shape) not in ((channels, pixels), (pixels, channels)):
        return None
    return gate(x, logits, other, sum_of="gates")


def scale_and_add(module: Any, spec: None, x: Any, gates: Any) -> Tensor | None:
    """``x * gates + x`` in one product; None where that is not the same."""
    return x * (gates.to(x.dtype) + 1) if _scales(x, gates) else None


def _scales(x: Any, *gates: Any) -> bool:
    """Whether ``gates``, or logits of some, are of the channels or of the pixels of ``x``, and leave its shape and dtype."""
    if not serves_map(x) or x.layout is not torch.strided:
        return False
    for each in gates:
        if not isinstance(each, Tensor) or each.device != x.device or each.shape not in _shapes_of(x):
            return False
        if each.dtype is not x.dtype and (x.dtype, each.dtype) not in _WIDENED:
            return False
    return True


def _shapes_of(x: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of logits of its channels, and of its pixels."""
    samples, channels, height, width = x.shape
    return (samples, channels, 1, 1), (samples, 1, height, width)


def _replace_channel_pool(module: torch.nn.Module, graph: fx.Graph, node: fx.Node) -> bool:
    if node.target not in CONCATENATIONS or not node.args or not isinstance(node.args[0], (list, tuple)):
        return False
    maps = [map_ for map_ in map(_reduced, node.args[0]) if map_ is not None]
    if len(maps) != 2 or maps[0] is not maps[1]:
        return False
    for max_first in (False, True):
        if computes(module, maps[0], node, partial(_mean_and_maximum, max_first)):
            part = cone(module, maps[0], node)
            substitute(module, graph, part, (node,), pool_channels, max_first, (maps[0],))
            return True
    return False


def _reduced(node: Any) -> fx.Node | None:
    """The map that ``node`` may be a reduction of."""
    while isinstance(node, fx.Node) and node.args:
        name, node = name_of(node), node.args[0]
        if name in ("mean", "max"):
            return node if isinstance(node, fx.Node) else None
        if name not in (*_VIEWS, "getattr"):
            return None
    return None


def _mean_and_maximum(max_first: bool, map_: Tensor) -> Tensor:
    mean, maximum = map_.mean(1, keepdim=True), map_.max(1, keepdim=True)[0]
    return torch.cat([maximum, mean] if max_first else [mean, maximum], 1)


def pool_channels(module: Any, max_first: bool, x: Any) -> Tensor | None:
    """Mean and maximum over the channels of ``x``; None where channel_pool does not serve the call."""
    if not _is_pooled(x):
        return None
    pooled = channel_pool(x)
    return pooled.flip(1) if max_first else pooled


def _is_pooled(x: Any) -> bool:
    if not serves_map(x) or x.layout is not torch.strided or x.numel() == 0:
        return False
    return is_proving() or not is_small(x)


def _replace_global_pools(module: torch.nn.Module, graph: fx.Graph) -> int:
    means: dict[fx.Node, tuple[fx.Node, int]] = {}
    maxima: dict[fx.Node, tuple[fx.Node, int]] = {}
    for node in graph.nodes:
        for pools, pool in ((means, is_mean_over_space), (maxima, is_maximum_over_space)):
            if (found := pool(module, node)) is not None:
                x, dimensions = found
                pools.setdefault(x, (node, dimensions))
    order = {node: i for i, node in enumerate(graph.nodes)}
    for x in means.keys() & maxima.keys():
        outputs = sorted(((*means[x], True), (*maxima[x], False)), key=lambda output: order[output[0]])
        part = set().union(*(cone(module, x, node) for node, _, _ in outputs))
        spec = tuple((is_mean, dimensions) for _, dimensions, is_mean in outputs)
        substitute(module, graph, part, [node for node, _, _ in outputs], pool_space, spec, (x,))
    return len(means.keys() & maxima.keys())


def pool_space(module: Any, spec: tuple[tuple[bool, int], ...], x: Any) -> tuple[Tensor, ...] | None:
    """Means and maxima over space, in the order and with as many dimensions as ``spec`` says; None where global_pool does
    not serve the call."""
    if not _is_pooled(x):
        return None
    mean, maximum = global_pool(x)
    pools = ((mean if is_mean else maximum, dimensions) for is_mean, dimensions in spec)
    return tuple(pool.flatten(dimensions - 1) if dimensions < 4 else pool for pool, dimensions in pools)

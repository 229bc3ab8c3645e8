"""``interpolate -> cat -> conv2d`` in a graph, replaced by one call that neither upsamples nor concatenates.

Also with a pad between the first two by what is missing to the size of the others, as many U-Nets have it. By how much is
known in the call: where it is nothing, as with sizes that divide, there is nothing to pad, and elsewhere all steps run.
"""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, fx
from torch.nn import functional

from sod_ops.accelerate import pyramid
from sod_ops.accelerate.followers import CONCATENATIONS
from sod_ops.accelerate.squeeze_excite import are_untouched
from sod_ops.accelerate.swap import NotServedError
from sod_ops.ops._cost_of_upsampling import pays_before_upsampling
from sod_ops.ops.pyramid_conv2d import pyramid_conv2d

_MODES = ("bilinear", "nearest")
_UPSAMPLES = (torch.nn.Upsample, torch.nn.UpsamplingBilinear2d, torch.nn.UpsamplingNearest2d)

# A map to upsample: itself, and the module that would; or itself, size, scale_factor, mode and align_corners.
Branch: TypeAlias = tuple[Any, ...]

# What is padded after it was upsampled: by how much, and with which value.
Padding: TypeAlias = tuple[Sequence[int], Any]


class _Upsampled(NamedTuple):
    """A map that is concatenated: the node that upsamples it, and the pad after that, None where there is none."""

    node: fx.Node
    branch: Branch
    padding: Padding | None


def replace(module: torch.nn.Module, graph: fx.Graph) -> tuple[int, list[str]]:
    """Replaces every such pattern in ``graph``, a trace of ``module``, in place.

    Returns:
        How many, and why others were left.
    """
    served: dict[fx.Node, dict[int, _Upsampled]] = {}
    reasons: list[str] = []
    for node in graph.nodes:
        found = {i: u for i, m in enumerate(_concatenated(node)) if (u := _upsampled(module, m)) is not None}
        if found:
            try:
                _check_users(module, node)
            except NotServedError as reason:
                reasons.append(str(reason))
            else:
                served[node] = found
    if served:
        _call(graph, served)
    return len(served), reasons


def _call(graph: fx.Graph, served: dict[fx.Node, dict[int, _Upsampled]]) -> None:
    """Puts a call in the place of each convolution that reads one of the concatenations ``served``."""
    kept = _keep(graph, served)
    for cat, upsampled in served.items():
        maps: list[fx.Node | None] = [*_concatenated(cat)]
        branches: list[Any] = [None] * len(maps)
        with graph.inserting_before(cat):
            for i, each in upsampled.items():
                maps[i], branches[i] = kept[each.node], _get_module(graph, each.branch)
                if each.padding is not None:
                    padded = graph.call_function(pad, (maps[i], branches[i], *each.padding))
                    maps[i], branches[i] = (graph.call_function(operator.getitem, (padded, part)) for part in (0, 1))
        for convolution in list(cat.users):
            with graph.inserting_before(convolution):
                call = graph.call_function(convolve, (graph.get_attr(str(convolution.target)), maps, branches))
            convolution.replace_all_uses_with(call)
            graph.erase_node(convolution)
    for cat, upsampled in reversed(served.items()):
        inputs = _concatenated(cat)
        graph.erase_node(cat)
        for node in dict.fromkeys((*(inputs[i] for i in upsampled), *(each.node for each in upsampled.values()))):
            if not node.users:
                graph.erase_node(node)


def _keep(graph: fx.Graph, served: dict[fx.Node, dict[int, _Upsampled]]) -> dict[fx.Node, fx.Node | None]:
    """For each upsampled map, what stands for it: itself where something else reads its values, or several pads do; where
    its size is read, a node that upsamples it only if need be; or nothing."""
    by_pattern = {*served, *(_concatenated(cat)[i] for cat, found in served.items() for i in found)}
    kept: dict[fx.Node, fx.Node | None] = {}
    for each in (u for found in served.values() for u in found.values()):
        if each.node in kept:
            continue
        others = [user for user in each.node.users if user not in by_pattern]
        pads = [user for user in each.node.users if user.target is functional.pad]
        if not all(map(_reads_size, others)) or len(pads) > 1:
            kept[each.node] = each.node
        elif not others:
            kept[each.node] = None
        else:
            with graph.inserting_before(each.node):
                branch = _get_module(graph, each.branch)
                kept[each.node] = if_needed = graph.call_function(upsample_if_needed, (branch,))
                size = graph.call_function(size_of, (if_needed, branch))
            for reader in others:
                _replace_reader(graph, reader, size)
    return kept


def _reads_size(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target == "size"
    return node.target is getattr and node.args[1] == "shape"


def _replace_reader(graph: fx.Graph, reader: fx.Node, size: fx.Node) -> None:
    """``reader``, of a size or of one length in it, by what it is of ``size``."""
    dim = (*reader.args[1:], *reader.kwargs.values()) if reader.op == "call_method" else ()
    with graph.inserting_before(reader):
        result = graph.call_function(operator.getitem, (size, *dim)) if dim else size
    reader.replace_all_uses_with(result)
    graph.erase_node(reader)


def _get_module(graph: fx.Graph, branch: Branch) -> Branch:
    return tuple(graph.get_attr(str(part)) if isinstance(part, _Module) else part for part in branch)


class _Module(str):
    """The name of a module in a branch, which becomes the module itself."""


def _concatenated(node: fx.Node) -> list[fx.Node]:
    """The maps that ``node`` concatenates along their channels; none where it does anything else."""
    if node.op != "call_function" or node.target not in CONCATENATIONS:
        return []
    maps = node.args[0] if node.args else node.kwargs.get("tensors")
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
    if dim not in (1, -3) or not isinstance(maps, (list, tuple)) or "out" in node.kwargs:
        return []
    return [m for m in maps if isinstance(m, fx.Node)] if all(isinstance(m, fx.Node) for m in maps) else []


def _upsampled(module: torch.nn.Module, node: fx.Node) -> _Upsampled | None:
    """``node`` as an upsampled map, perhaps padded; None where it is no such map."""
    padding = None
    if node.op == "call_function" and node.target is functional.pad:
        given: dict[str, Any] = {**dict(zip(("input", "pad", "mode", "value"), node.args, strict=False)), **node.kwargs}
        if given.get("mode", "constant") != "constant" or len(node.users) > 1:
            return None
        node, padding = given["input"], (given["pad"], given.get("value"))
    branch = _branch(module, node)
    return None if branch is None else _Upsampled(node, branch, padding)


def _branch(module: torch.nn.Module, node: fx.Node) -> Branch | None:
    """What ``node`` upsamples, and how; None where it is no such node."""
    if node.op == "call_module":
        upsample = module.get_submodule(str(node.target))
        served = type(upsample) in _UPSAMPLES and upsample.mode in _MODES and len(node.args) == 1
        return (node.args[0], _Module(node.target)) if served else None
    if node.op != "call_function" or node.target is not functional.interpolate:
        return None
    names = ("input", "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    mode = given.get("mode", "nearest")
    if mode not in _MODES or given.get("recompute_scale_factor") or given.get("antialias"):
        return None
    return given["input"], given.get("size"), given.get("scale_factor"), mode, bool(given.get("align_corners"))


def _check_users(module: torch.nn.Module, cat: fx.Node) -> None:
    for user in cat.users:
        if user.op != "call_module" or user.args != (cat,) or user.kwargs:
            raise NotServedError(f"more than a convolution reads its concatenation of upsampled maps: {user.target}")
        convolution = module.get_submodule(str(user.target))
        if type(convolution) is not torch.nn.Conv2d:
            raise NotServedError(f"its {user.target}, which reads its upsampled maps, is not a plain Conv2d")
        pyramid.check_convolution(f"its {user.target}, which reads its upsampled maps,", convolution)
    if not cat.users:
        raise NotServedError("nothing reads its concatenation of upsampled maps")


def convolve(convolution: Any, maps: Sequence[Tensor | None], branches: Sequence[Branch | None]) -> Tensor:
    """``convolution(cat(maps))``, without the upsampled ones.

    Args:
        convolution: a Conv2d.
        maps: those to concatenate, in their order; None where it does not exist and is to be upsampled.
        branches: for those that are upsampled, what and how; None for the others. A map that was upsampled in any case is
            convolved at its own size only where that is cheaper.
    """
    y = _convolve(convolution, maps, branches)
    if y is not None:
        return y
    whole = [
        _upsample(branch) if m is None and branch is not None else m for m, branch in zip(maps, branches, strict=True)
    ]
    result: Tensor = convolution(torch.cat(whole, 1))  # type: ignore[arg-type]
    return result


def upsample_if_needed(branch: Branch) -> Tensor | None:
    """The upsampled map, where its size is not known without it."""
    return None if pyramid.serves_map(branch[0]) and _target(branch) is not None else _upsample(branch)


def size_of(upsampled: Tensor | None, branch: Branch) -> torch.Size:
    """Of the map that :func:`upsample_if_needed` returns, or of what would be."""
    if upsampled is not None:
        return upsampled.shape
    return torch.Size((*branch[0].shape[:2], *_target(branch)))  # type: ignore[misc]


def pad(
    upsampled: Tensor | None, branch: Branch, amounts: Sequence[int], value: Any
) -> tuple[Tensor | None, Branch | None]:
    """The map and the branch for :func:`convolve`; where something is padded, that is a map like any other."""
    if not any(amounts):
        return upsampled, branch
    return functional.pad(_upsample(branch) if upsampled is None else upsampled, amounts, value=value), None


def _convolve(convolution: Any, maps: Sequence[Tensor | None], branches: Sequence[Branch | None]) -> Tensor | None:
    """The same, or None where it is not to be had so in this call."""
    tensors = [m if branch is None else branch[0] for m, branch in zip(maps, branches, strict=True)]
    if not all(pyramid.serves_convolution(convolution, t) for t in tensors):
        return None
    targets = [
        m.shape[2:] if branch is None and m is not None else _target(branch)
        for m, branch in zip(maps, branches, strict=True)
    ]
    size = targets[0]
    way = next((_way(branch) for branch in branches if branch is not None), None)
    if way is None or size is None or any(target != size for target in targets):
        return None
    mode, align_corners = way
    weight, ways = convolution.weight, {_way(branch) for branch in branches if branch is not None}
    channels = [int(t.shape[1]) for t in tensors if t is not None]
    if sum(channels) != weight.shape[1]:
        return None
    parts = weight.split(channels, 1)
    with_backward = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (weight, *tensors))
    plain, first, small, rest = [], [], [], []
    for m, branch, part in zip(maps, branches, parts, strict=True):
        own = branch is None or (len(ways) > 1 and _way(branch) != way)
        if not own and m is not None and branch is not None:
            own = not pays_before_upsampling(branch[0], part, (size[0], size[1]), with_backward, mode)
        if own:
            plain.append(m if m is not None else _upsample(branch))  # type: ignore[arg-type]
            first.append(part)
        else:
            small.append(branch[0])  # type: ignore[index]
            rest.append(part)
    if not small:
        return None
    x: Any = None if not plain else plain[0] if len(plain) == 1 else torch.cat(plain, 1)
    ordered = [*first, *rest]
    if all(a is b for a, b in zip(ordered, parts, strict=True)):
        x_first = True
    elif all(a is b for a, b in zip([*rest, *first], parts, strict=True)):
        x_first = False
    else:
        x_first, weight = True, torch.cat(ordered, 1)
    return pyramid_conv2d(
        pyramid.as_concatenated(x, small),
        small,
        weight,
        convolution.bias,
        padding=convolution.padding[0],
        align_corners=align_corners,
        x_first=x_first,
        mode=mode,
        size=(size[0], size[1]) if x is None else None,
    )


def _options(branch: Branch) -> tuple[Any, Any, str, bool]:
    """Size, scale factor, mode and align_corners."""
    if len(branch) == 2:
        upsample = branch[1]
        return upsample.size, upsample.scale_factor, upsample.mode, bool(upsample.align_corners)
    return branch[1], branch[2], branch[3], branch[4]


def _way(branch: Branch) -> tuple[str, bool]:
    _, _, mode, align_corners = _options(branch)
    return mode, align_corners


def _upsample(branch: Branch) -> Tensor:
    if len(branch) == 2:
        upsampled: Tensor = branch[1](branch[0])
        return upsampled
    x, size, scale_factor, mode, align_corners = branch
    return functional.interpolate(
        x, size, scale_factor, mode=mode, align_corners=align_corners if mode == "bilinear" else None
    )


def _target(branch: Branch | None) -> tuple[int, ...] | None:
    """The size that ``branch`` is upsampled to; None where that is not what pyramid_conv2d upsamples to."""
    if branch is None:
        return None
    if len(branch) == 2:
        upsample = branch[1]
        if type(upsample) not in _UPSAMPLES or not are_untouched((upsample,)) or upsample.recompute_scale_factor:
            return None
    size, factor, mode, _ = _options(branch)
    if mode not in _MODES:
        return None
    if size is not None:
        return tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    factors = factor if isinstance(factor, (tuple, list)) else (factor, factor)
    target = []
    # With a factor, PyTorch steps by it; with a size, by the sizes' ratio. They are one where nothing is rounded.
    for length, f in zip(branch[0].shape[2:], factors, strict=True):
        if f is None or f <= 0 or length * f != int(length * f):
            return None
        target.append(int(length * f))
    return tuple(target)

"""The forward of a user's module with patterns in it replaced: a trace of it, run on the module itself.

Modules that the trace calls, parameters and buffers are looked up in the module at every call, so that hooks, modes, swaps
and other weights of theirs are respected. What is settled in the trace is compared at every call: the other arguments, the
attributes of the module and of the modules that the trace goes through, and that the latter have no hooks. Where something
differs, the module's own forward runs.
"""

import sys
import types
from collections.abc import Callable, Collection, Mapping
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import fx

from sod_ops.accelerate import arguments
from sod_ops.accelerate.arguments import Template
from sod_ops.accelerate.functions import path_of
from sod_ops.accelerate.pyramid import may_bypass
from sod_ops.accelerate.squeeze_excite import leaves_pytorch
from sod_ops.accelerate.swap import NotServedError, Swap
from sod_ops.accelerate.trace import trace

# Attributes that every module has, or that a swap adds.
_OWN = frozenset(torch.nn.Module().__dict__) | {"forward", "_replicate_for_data_parallel"}
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, Enum)
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, type)


class Code:
    """A graph as a function of a module and of what its placeholders stand for."""

    def __init__(self, source: str, names: Mapping[str, Any]) -> None:
        self.source = source
        self.names = dict(names)
        namespace: dict[str, Any] = dict(self.names)
        exec(compile(source, "<traced by sod_ops>", "exec"), namespace)
        self.function: Callable[..., Any] = namespace["forward"]

    def __reduce__(self) -> tuple[Any, ...]:
        modules = {name: value.__name__ for name, value in self.names.items() if isinstance(value, types.ModuleType)}
        others = {name: value for name, value in self.names.items() if name not in modules}
        return _code, (self.source, others, modules)


def _code(source: str, names: dict[str, Any], modules: dict[str, str]) -> Code:
    return Code(source, {**names, **{name: sys.modules[module] for name, module in modules.items()}})


def compile_graph(graph: fx.Graph) -> Code:
    """``graph`` as a function of a module, and of the values of its placeholders."""
    graph.lint()
    code = graph.python_code("self")
    # What comes before the function registers names for whoever traces it again.
    source = code.src[code.src.index("def forward(") :]
    return Code(source, {name: value for name, value in code.globals.items() if name in source})


class _Guard(NamedTuple):
    """What a trace assumes of the module that it was made from, or of one that it goes through."""

    path: tuple[str, ...]
    kind: type
    training: bool | None
    plain: tuple[tuple[str, Any], ...]
    children: tuple[tuple[str, type], ...]
    tensors: tuple[tuple[str, bool], ...]

    def holds(self, module: Any) -> bool:
        state = module.__dict__
        return (
            type(module) is self.kind
            and (self.training is None or self.training == state["training"])
            and all(name in state and _is_same(state[name], value) for name, value in self.plain)
            and self.children == _children(module)
            and self.tensors == _tensors(module)
        )


def _guard(module: torch.nn.Module, name: str, depends_on_mode: bool) -> _Guard:
    return _Guard(
        path=tuple(name.split(".")) if name else (),
        kind=type(module),
        training=module.training if depends_on_mode else None,
        plain=tuple(
            (name, value.copy() if type(value) in (list, dict) else value)
            for name, value in module.__dict__.items()
            if name not in _OWN and _is_plain(value)
        ),
        children=_children(module),
        tensors=_tensors(module),
    )


def _is_plain(value: Any) -> bool:
    """Whether Python may have decided on ``value`` itself, and it can be compared."""
    if type(value) in (tuple, list, torch.Size):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(map(_is_plain, value.values()))
    return isinstance(value, (*_PLAIN, *_FUNCTIONS))


def _is_same(value: Any, before: Any) -> bool:
    return value is before or (type(value) is type(before) and bool(value == before))


def _children(module: Any) -> tuple[tuple[str, type], ...]:
    return tuple([(name, type(child)) for name, child in module._modules.items()])


def _tensors(module: Any) -> tuple[tuple[str, bool], ...]:
    """The names of parameters and buffers, and whether they are there."""
    tensors = (*module._parameters.items(), *module._buffers.items())
    return tuple([(name, tensor is not None) for name, tensor in tensors])


class Traced(NamedTuple):
    """A trace, and what must hold where it stands for the module's own forward."""

    code: Code
    template: Template
    guards: tuple[_Guard, ...]  # the module's own first

    def serves(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether it may in this call."""
        if leaves_pytorch() or arguments.template(args, kwargs) != self.template or not self.guards[0].holds(module):
            return False
        for guard in self.guards[1:]:
            inner = module
            for name in guard.path:
                inner = inner._modules.get(name)
                if inner is None:
                    return False
            if not guard.holds(inner) or not may_bypass((inner,)):
                return False
        return True


def forward(module: Any, traced: Traced, *args: Any, **kwargs: Any) -> Any:
    """What the forward of the module's class returns."""
    if traced.serves(module, args, kwargs):
        return traced.code.function(module, module, *arguments.variables((args, kwargs)))
    return type(module).forward(module, *args, **kwargs)


def swap(
    module: torch.nn.Module,
    through: Collection[torch.nn.Module],
    template: Template,
    replace: Callable[[torch.nn.Module, fx.Graph], None],
) -> Swap:
    """The swap of ``module`` that runs a trace of its forward in which ``replace`` has replaced something.

    Args:
        module: the one whose forward holds a pattern.
        through: the modules below it that the pattern goes through.
        template: of its arguments.
        replace: changes the graph in place, and raises NotServedError where there is nothing to replace.

    Raises:
        NotServedError: the forward does not trace, or there is nothing to replace.
    """
    kind = arguments.unknown(template)
    if kind is not None:
        raise NotServedError(f"its forward is called with a {path_of(kind)}, which no trace holds")
    if "forward" in module.__dict__:
        raise NotServedError("its forward has been replaced")
    if not may_bypass(through):
        raise NotServedError("modules that its pattern goes through have hooks, or a forward of their own")
    graph, depends_on_mode = trace(module, through, template)
    replace(module, graph)
    names = {inner: name for name, inner in module.named_modules()}
    guards = (_guard(inner, names[inner], depends_on_mode) for inner in (module, *through))
    return Swap(forward, Traced(compile_graph(graph), template, tuple(guards)))

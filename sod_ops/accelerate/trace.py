"""Tracing the forward of a user's module by torch.fx, where the trace is all that the forward does.

A trace holds what was done with values that were not there yet: those of tensors and integers among the arguments, and the
shapes of tensors. What Python decided by other means is settled in it, and what it did besides is lost. So a forward is
refused that assigns attributes, draws random numbers or makes tensors out of nothing, that changes the grad mode or
autocast, or depends on either; and whether it depends on the mode of the module is found out.
"""

import contextlib
import math
import operator
import random
import sys
import warnings
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import fx

from sod_ops.accelerate import arguments
from sod_ops.accelerate.arguments import Template
from sod_ops.accelerate.swap import NotServedError


def trace(module: torch.nn.Module, through: Collection[torch.nn.Module], template: Template) -> tuple[fx.Graph, bool]:
    """The graph of ``module``'s forward, and whether it depends on the module's mode.

    Its first placeholder stands for the module itself, the others for the variables of the template.

    Args:
        module: the one to trace.
        through: the modules below it that are not left as calls.
        template: of its arguments.

    Raises:
        NotServedError: no trace holds what the forward does.
    """
    graph = _trace(module, through, template)
    source = graph.python_code("self").src
    device = next((parameter.device.type for parameter in module.parameters()), "cpu")
    states: dict[str, Any] = {"the grad mode": torch.no_grad() if torch.is_grad_enabled() else torch.enable_grad()}
    if torch.amp.is_autocast_available(device):
        states["autocast"] = torch.autocast(device, enabled=not torch.is_autocast_enabled(device))
    for what, state in states.items():
        with state:
            if _trace(module, through, template).python_code("self").src != source:
                raise NotServedError(f"its forward depends on {what}")
    with other_mode(module):
        try:
            depends = _trace(module, through, template).python_code("self").src != source
        except NotServedError:
            depends = True
    return graph, depends


@contextlib.contextmanager
def other_mode(module: torch.nn.Module) -> Iterator[None]:
    """All flags turned round; by hand, as train() may be one that does more."""
    inner = list(module.modules())
    for each in inner:
        each.training = not each.training
    try:
        yield
    finally:
        for each in inner:
            each.training = not each.training


def _trace(module: torch.nn.Module, through: Collection[torch.nn.Module], template: Template) -> fx.Graph:
    tracer = _Tracer(through, template)
    with _nothing_else(module), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the module's own, which its calls repeat
        try:
            return tracer.trace(module)
        except NotServedError:
            raise
        except Exception as error:  # whatever Python does with a value that is not there yet
            reason = " ".join(str(error).split())[:200]
            raise NotServedError(f"its forward does not trace: {type(error).__name__}: {reason}") from error


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, through: Collection[torch.nn.Module], template: Template) -> None:
        super().__init__(autowrap_modules=(math,))
        self._through = set(through)
        self._template = template
        self._contexts = _contexts()

    def is_leaf_module(self, m: torch.nn.Module, module_qualified_name: str) -> bool:
        return m not in self._through

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        self.create_proxy("placeholder", "module", (), {})
        proxies = [
            self.create_proxy("placeholder", f"argument_{i}", (), {}) for i in range(arguments.count(self._template))
        ]
        args, kwargs = arguments.fill(self._template, proxies)
        return lambda module: root_fn(module, *args, **kwargs), [self.root]

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        if _contexts() != self._contexts:
            raise NotServedError(
                "its forward changes the grad mode or autocast, or hooks what is saved for the backward"
            )
        return super().create_node(kind, *args, **kwargs)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, torch.Tensor) and not isinstance(a, torch.nn.Parameter) and not self._is_held(a):
            raise NotServedError("its forward makes a tensor that does not depend on its arguments")
        return super().create_arg(a)

    def _is_held(self, tensor: torch.Tensor) -> bool:
        """Whether a module has ``tensor``, so that a trace looks it up there."""
        return tensor in self.tensor_attrs or any(tensor is buffer for buffer in self.root.buffers())

    def iter(self, obj: Any) -> Any:
        node = obj.node
        if node.target is operator.getitem and node.args[1] in (slice(2, None), slice(-2, None)):
            of = node.args[0]
            # Of a map: whether there are four is seen on the example inputs, and the arguments' are in the template.
            if isinstance(of, fx.Node) and (of.target == "size" or (of.target is getattr and of.args[1] == "shape")):
                return iter([obj[0], obj[1]])
        return super().iter(obj)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


class _Proxy(fx.Proxy):
    """One whose ``+=`` and the like stay what they are: they change a tensor that others may read."""

    def __iadd__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


def _contexts() -> tuple[Any, ...]:
    """What a context manager in a forward changes without a trace's holding it."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        *((torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")),
        torch._C._autograd._top_saved_tensors_default_hooks(True),
    )


@contextlib.contextmanager
def _nothing_else(module: torch.nn.Module) -> Iterator[None]:
    """Undoes what a forward does to the attributes of its modules and to the random states, and refuses it.

    Raises:
        NotServedError: it did something to them.
    """
    before = [(each.__dict__, _contents(each.__dict__)) for each in module.modules()]
    random_state = _random_state()
    assigned = False
    try:
        yield
    finally:
        for state, contents in before:
            if not _is_unchanged(state, contents):
                _put_back(state, contents)
                assigned = True
        drawn = _random_state() != random_state
        if drawn:
            _set_random_state(random_state)
    if assigned:
        raise NotServedError("its forward assigns attributes, which a trace would not")
    if drawn:
        raise NotServedError("its forward draws random numbers on its own, which a trace would not")


# Of a dictionary: its keys, values, and copies of those values that can be changed in place.
_Contents = dict[str, tuple[Any, Any]]


def _contents(state: dict[str, Any]) -> _Contents:
    return {name: (value, value.copy() if type(value) in (list, dict, set) else None) for name, value in state.items()}


def _is_unchanged(state: dict[str, Any], contents: _Contents) -> bool:
    return state.keys() == contents.keys() and all(
        state[name] is value and (copied is None or _has_same_items(value, copied))
        for name, (value, copied) in contents.items()
    )


def _has_same_items(value: Any, copied: Any) -> bool:
    if type(value) is set:
        return bool(value == copied)
    pairs = (
        zip(value.items(), copied.items(), strict=False) if type(value) is dict else zip(value, copied, strict=False)
    )
    if type(value) is dict:
        return len(value) == len(copied) and all(a[0] == b[0] and a[1] is b[1] for a, b in pairs)
    return len(value) == len(copied) and all(a is b for a, b in pairs)


def _put_back(state: dict[str, Any], contents: _Contents) -> None:
    state.clear()
    for name, (value, copied) in contents.items():
        if type(value) is list:
            value[:] = copied
        elif copied is not None:
            value.clear()
            value.update(copied)
        state[name] = value


def _random_state() -> tuple[Any, ...]:
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return random.getstate(), torch.get_rng_state().tolist()
    name, keys, *rest = numpy.random.get_state()
    return random.getstate(), torch.get_rng_state().tolist(), (name, keys.tolist(), *rest)


def _set_random_state(state: tuple[Any, ...]) -> None:
    random.setstate(state[0])
    torch.set_rng_state(torch.tensor(state[1], dtype=torch.uint8))
    if len(state) > 2:
        sys.modules["numpy"].random.set_state(state[2])

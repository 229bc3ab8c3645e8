"""Watching a model run: which of its modules upsample, concatenate and convolve, or gate a map by its means.

Where a pattern lies is a matter of who calls whom. A tensor is followed from the function that made it to the one that
uses it, and the module whose forward holds the pattern is the innermost one that was running all the while; the modules
called on the way are those that a trace of it has to go through.
"""

import contextlib
import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from sod_ops.accelerate.arguments import Template, template
from sod_ops.accelerate.functions import path_of
from sod_ops.accelerate.pyramid import check_convolution
from sod_ops.accelerate.swap import NotServedError

CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)
POOLS = (functional.adaptive_avg_pool2d, torch._C._nn.adaptive_avg_pool2d)
MEANS = (torch.mean, Tensor.mean)
_AFFINE = (torch.conv2d, functional.linear)
_PRODUCTS = (torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.multiply, Tensor.multiply)

# What reads no values: the getters of shape, dtype and the like are all called __get__.
_ASKS = ("__get__", "size", "dim")

# From the pool of a squeeze-and-excitation to its gate, with views of every kind. What goes on for longer is none.
_LONGEST_GATE = 24


class Call(NamedTuple):
    """A module that is running, and the number of this call of it."""

    number: int
    module: torch.nn.Module


Calls = tuple[Call, ...]


class Sighting(NamedTuple):
    """A module whose forward holds a pattern.

    ``reason`` says why it is not one that an op of this package computes, None where it is.
    """

    module: torch.nn.Module
    through: frozenset[torch.nn.Module]
    template: Template
    reason: str | None


class _Upsampled(NamedTuple):
    calls: tuple[Calls, ...]


class _Concatenated(NamedTuple):
    calls: tuple[Calls, ...]


class _Gate(NamedTuple):
    """What was computed from the means of ``x``, in how many operations and by how many matrices."""

    calls: tuple[Calls, ...]
    x: weakref.ref[Tensor]
    operations: int
    matrices: int


def sightings(model: torch.nn.Module, run: Callable[[], Any]) -> list[Sighting]:
    """The patterns in ``run``, which calls ``model``; one for each module, in the order in which they were found."""
    watch = _Watch()
    with contextlib.ExitStack() as stack:
        for module in model.modules():
            if not isinstance(module, torch.jit.ScriptModule):
                for handle in watch.follow(module):
                    stack.callback(handle.remove)
        with watch:
            run()
    return list(watch.sightings())


class _Watch(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self._running: list[Call] = []
        self._numbers = itertools.count()
        self._first: dict[torch.nn.Module, tuple[int, Template]] = {}
        self._marks: Any = WeakIdKeyDictionary()
        self._found: list[tuple[tuple[Calls, ...], str | None]] = []

    def follow(self, module: torch.nn.Module) -> Iterator[Any]:
        """Hooks that say when ``module`` runs."""
        yield module.register_forward_pre_hook(self._enter, with_kwargs=True)
        yield module.register_forward_hook(self._leave, always_call=True)

    def _enter(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = Call(next(self._numbers), module)
        self._running.append(call)
        if module not in self._first:
            self._first[module] = call.number, template(args, kwargs)

    def _leave(self, module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        while self._running and self._running.pop().module is not module:
            pass

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self._running:
            self._note(func, args, kwargs, result)
        return result

    def _note(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if func in CONCATENATIONS:
            tensors = [t for t in (args[0] if args else kwargs["tensors"]) if isinstance(t, Tensor)]
        for tensor in tensors:
            mark = self._marks.get(tensor)
            if isinstance(mark, _Concatenated) and func.__name__ not in _ASKS:
                self._found.append(((*mark.calls, self._now()), self._why_not_convolved(func)))
                if tensor is result:
                    del self._marks[tensor]  # changed in place
        if not isinstance(result, Tensor):
            return
        if func is functional.interpolate:
            self._marks[result] = _Upsampled((self._now(),))
        elif func is functional.pad and isinstance(mark := self._marks.get(tensors[0]), _Upsampled):
            self._marks[result] = mark
        elif func in CONCATENATIONS:
            upsampled = [mark for t in tensors if isinstance(mark := self._marks.get(t), _Upsampled)]
            if upsampled and result.dim() == 4:
                calls = (call for mark in upsampled for call in mark.calls)
                self._marks[result] = _Concatenated((*calls, self._now()))
        elif (func in POOLS or func in MEANS) and tensors and tensors[0].dim() == 4:
            self._marks[result] = _Gate((self._now(),), weakref.ref(tensors[0]), 0, 0)
        else:
            self._note_gate(func, tensors, result)

    def _note_gate(self, func: Any, tensors: list[Tensor], result: Tensor) -> None:
        marks = [mark for t in tensors if isinstance(mark := self._marks.get(t), _Gate)]
        if not marks:
            return
        mark = marks[0]
        if func in _PRODUCTS and any(tensor is mark.x() for tensor in tensors):
            if 1 <= mark.matrices <= 2:
                self._found.append(((*mark.calls, self._now()), None))
        elif mark.operations < _LONGEST_GATE:
            calls = dict.fromkeys((*mark.calls, self._now()))
            matrices = mark.matrices + (func in _AFFINE)
            self._marks[result] = _Gate((*calls,), mark.x, mark.operations + 1, matrices)

    def _now(self) -> Calls:
        return tuple(self._running)

    def _why_not_convolved(self, func: Any) -> str | None:
        module = self._running[-1].module
        what = f"what reads its concatenation of upsampled maps is {path_of(type(module))}"
        if func is not torch.conv2d or type(module) is not torch.nn.Conv2d:
            return f"{what} ({getattr(func, '__name__', func)}), not a plain Conv2d"
        try:
            check_convolution("the convolution over its upsampled maps", module)
        except NotServedError as reason:
            return str(reason)
        return None

    def sightings(self) -> Iterator[Sighting]:
        through: dict[torch.nn.Module, set[torch.nn.Module]] = {}
        reasons: dict[torch.nn.Module, list[str | None]] = {}
        for calls, reason in self._found:
            common = [frame[0] for frame in zip(*calls, strict=False) if len(set(frame)) == 1]
            if not common or self._first[common[-1].module][0] != common[-1].number:
                continue
            module = common[-1].module
            inner = (call.module for each in calls for call in each[len(common) :])
            through.setdefault(module, set()).update(m for m in inner if not _is_a_layer(m))
            reasons.setdefault(module, []).append(reason)
        for module, found in through.items():
            pending = [*found]
            while pending:  # a trace through one of these must serve its patterns, too
                new = through.get(pending.pop(), set()) - found
                found |= new
                pending += new
            reason = None if None in reasons[module] else reasons[module][0]
            yield Sighting(module, frozenset(found), self._first[module][1], reason)


def _is_a_layer(module: torch.nn.Module) -> bool:
    """Whether ``module`` is one of PyTorch's own that computes something: Sequential is not."""
    kind = type(module)
    return kind.__module__.startswith("torch.") and kind is not torch.nn.Sequential

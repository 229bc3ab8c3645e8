"""Watching a model run: in which of its modules the patterns lie that ops of this package compute.

Where a pattern lies is a matter of who calls whom. A tensor is followed from the function that made it to the one that
uses it, and the module whose forward holds the pattern is the innermost one that was running all the while; the modules
called on the way are those that a trace of it has to go through.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sod_ops.accelerate.arguments import Template, template
from sod_ops.accelerate.followers import CONCATENATIONS, Attention, Call, Excitation, Found, Step, Upsampling


class Sighting(NamedTuple):
    """A module whose forward holds a pattern.

    ``reason`` says why it is not one that an op of this package computes, None where it is.
    """

    module: torch.nn.Module
    through: frozenset[torch.nn.Module]
    template: Template
    reason: str | None


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
        self._followers = (Upsampling(), Excitation(), Attention())
        self._found: list[Found] = []

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
        step = Step(func, args, kwargs, tensors, result, tuple(self._running))
        for follower in self._followers:
            self._found.extend(follower.note(step))

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

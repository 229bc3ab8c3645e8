"""What a tensor becomes on its way through a model: the patterns that ops compute, seen as they run.

A follower is told every function that ran. It marks results, and says where a pattern is complete: the calls of modules in
which its steps ran, and why no op computes it, None where one does.
"""

import weakref
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.weak import WeakIdKeyDictionary

from sod_ops.accelerate.functions import path_of
from sod_ops.accelerate.pyramid import check_convolution
from sod_ops.accelerate.swap import NotServedError

CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)
POOLS = (functional.adaptive_avg_pool2d, torch._C._nn.adaptive_avg_pool2d)
MEANS = (torch.mean, Tensor.mean)
_WINDOWS = (functional.avg_pool2d,)
_MAXIMUM_POOLS = (functional.adaptive_max_pool2d, functional.max_pool2d)
_MAXIMA = (torch.max, Tensor.max)
_AFFINE = (torch.conv2d, functional.linear)
_PRODUCTS = (torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.multiply, Tensor.multiply)
_SUMS = (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)
_SIGMOIDS = (torch.sigmoid, Tensor.sigmoid)
_VIEWS = ("view", "reshape", "flatten", "squeeze", "unsqueeze", "expand", "expand_as", "contiguous", "__getitem__")

# What reads no values: the getters of shape, dtype and the like are all called __get__.
_ASKS = ("__get__", "size", "dim")

_PADDED = "its upsampled maps are padded before they are concatenated"

# Elements of a map. Measured on two cores with 2 MB each.
_SMALL, _LARGE = 1 << 16, 1 << 20

# From the pool of a squeeze-and-excitation to its gate, with views of every kind. What goes on for longer is none.
_LONGEST_GATE = 24


class Call(NamedTuple):
    """A module that is running, and the number of this call of it."""

    number: int
    module: torch.nn.Module


Calls: TypeAlias = tuple[Call, ...]
Found: TypeAlias = tuple[tuple[Calls, ...], str | None]


class Step(NamedTuple):
    """A function that ran, the tensors that it read, what it returned, and the modules that were running."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensors: list[Tensor]
    result: Any
    calls: Calls

    @property
    def name(self) -> str:
        return getattr(self.function, "__name__", "")


class _Upsampled(NamedTuple):
    """An upsampled map, perhaps padded by something else than nothing."""

    calls: tuple[Calls, ...]
    padded: bool


class _Concatenated(NamedTuple):
    """A concatenation with upsampled maps."""

    calls: tuple[Calls, ...]
    padded: bool


class Upsampling:
    """Upsampled maps that are concatenated and convolved."""

    def __init__(self) -> None:
        self._marks: Any = WeakIdKeyDictionary()

    def note(self, step: Step) -> Iterator[Found]:
        for tensor in step.tensors:
            mark = self._marks.get(tensor)
            if isinstance(mark, _Concatenated) and step.name not in _ASKS:
                yield (*mark.calls, step.calls), _PADDED if mark.padded else _why_not_convolved(step)
                if tensor is step.result:
                    del self._marks[tensor]  # changed in place
        if not isinstance(step.result, Tensor):
            return
        if step.function is functional.interpolate:
            self._marks[step.result] = _Upsampled((step.calls,), False)
        elif step.function is functional.pad and isinstance(mark := self._marks.get(step.tensors[0]), _Upsampled):
            amounts = step.args[1] if len(step.args) > 1 else step.kwargs["pad"]
            self._marks[step.result] = _Upsampled((*mark.calls, step.calls), mark.padded or any(amounts))
        elif step.function in CONCATENATIONS and step.result.dim() == 4:
            upsampled = [mark for t in step.tensors if isinstance(mark := self._marks.get(t), _Upsampled)]
            if upsampled:
                calls = (call for mark in upsampled for call in mark.calls)
                padded = any(mark.padded for mark in upsampled)
                self._marks[step.result] = _Concatenated((*calls, step.calls), padded)


def _why_not_convolved(step: Step) -> str | None:
    module = step.calls[-1].module
    what = f"what reads its concatenation of upsampled maps is {path_of(type(module))}"
    if step.function is not torch.conv2d or type(module) is not torch.nn.Conv2d:
        return f"{what} ({step.name or step.function}), not a plain Conv2d"
    try:
        check_convolution("the convolution over its upsampled maps", module)
    except NotServedError as reason:
        return str(reason)
    return None


class _Gate(NamedTuple):
    """What was computed from the means of ``x``, in how many operations and by how many matrices."""

    calls: tuple[Calls, ...]
    x: weakref.ref[Tensor]
    operations: int
    matrices: int


class Excitation:
    """Maps multiplied by what matrices make of their means."""

    def __init__(self) -> None:
        self._marks: Any = WeakIdKeyDictionary()
        self._flat: Any = WeakIdKeyDictionary()

    def note(self, step: Step) -> Iterator[Found]:
        if not isinstance(step.result, Tensor) or not step.tensors:
            return
        x = step.tensors[0]
        if step.name in _VIEWS and x.dim() == 4 and step.result.shape == (*x.shape[:2], x.shape[2:].numel()):
            self._flat[step.result] = weakref.ref(x)
        squeezed = self._squeezed(step, x)
        if squeezed is not None:
            self._marks[step.result] = _Gate((step.calls,), squeezed, 0, 0)
        else:
            yield from self._follow(step)

    def _squeezed(self, step: Step, x: Tensor) -> "weakref.ref[Tensor] | None":
        """The map whose means ``step`` may compute."""
        if x.dim() == 4 and (step.function in (*POOLS, *MEANS) or _pools_to_a_pixel(step, _WINDOWS)):
            return weakref.ref(x)
        found: weakref.ref[Tensor] | None = self._flat.get(x) if step.function in MEANS else None
        return found

    def _follow(self, step: Step) -> Iterator[Found]:
        marks = [mark for t in step.tensors if (mark := self._marks.get(t)) is not None]
        if not marks:
            return
        mark = marks[0]
        if step.function in _PRODUCTS and any(tensor is mark.x() for tensor in step.tensors):
            if 1 <= mark.matrices <= 2:
                yield (*mark.calls, step.calls), None
        elif mark.operations < _LONGEST_GATE:
            calls = dict.fromkeys((*mark.calls, step.calls))
            matrices = mark.matrices + (step.function in _AFFINE)
            self._marks[step.result] = _Gate((*calls,), mark.x, mark.operations + 1, matrices)


class _Sigmoid(NamedTuple):
    """A gate of so many numbers."""

    calls: tuple[Calls, ...]
    numbers: int


class _Scaled(NamedTuple):
    """The product of ``x`` and a gate."""

    calls: tuple[Calls, ...]
    x: weakref.ref[Tensor]


class _Reduced(NamedTuple):
    """The mean, or the maximum, over the channels of ``x``."""

    calls: tuple[Calls, ...]
    x: weakref.ref[Tensor]
    is_mean: bool


class Attention:
    """Maps multiplied by sigmoids that are smaller, and what these are computed from: means and maxima of a map."""

    def __init__(self) -> None:
        self._marks: Any = WeakIdKeyDictionary()
        self._pooled: Any = WeakIdKeyDictionary()  # of maps: in which calls their means and their maxima were taken

    def note(self, step: Step) -> Iterator[Found]:
        result = step.result[0] if step.function in _MAXIMA and isinstance(step.result, tuple) else step.result
        if not isinstance(result, Tensor) or not step.tensors:
            return
        yield from self._note_pools(step)
        marks = [self._marks.get(t) for t in step.tensors]
        if step.function in _SIGMOIDS:
            self._marks[result] = _Sigmoid((step.calls,), result.numel())
        elif step.name in _VIEWS and isinstance(marks[0], (_Sigmoid, _Reduced)):
            self._marks[result] = marks[0]._replace(calls=(*dict.fromkeys((*marks[0].calls, step.calls)),))
        elif step.function in (*MEANS, *_MAXIMA) and step.tensors[0].dim() == 4 and _dimension(step) in (1, -3):
            x = weakref.ref(step.tensors[0])
            self._marks[result] = _Reduced((step.calls,), x, step.function in MEANS)
        elif step.function in CONCATENATIONS:
            yield from self._note_concatenation(step, marks)
        elif step.function in _PRODUCTS:
            yield from self._note_product(step, marks)
        elif step.function in _SUMS:
            yield from self._note_sum(step, marks)

    def _note_pools(self, step: Step) -> Iterator[Found]:
        if not _pools_to_a_pixel(step, (*POOLS, *MEANS, *_WINDOWS, *_MAXIMUM_POOLS)):
            return
        x, is_mean = step.tensors[0], step.function not in _MAXIMUM_POOLS
        calls = self._pooled.setdefault(x, {})
        if is_mean not in calls and (not is_mean) in calls:
            yield (calls[not is_mean], step.calls), None
        calls[is_mean] = step.calls

    def _note_concatenation(self, step: Step, marks: Sequence[Any]) -> Iterator[Found]:
        if len(marks) == 2 and all(isinstance(mark, _Reduced) for mark in marks):
            first, second = marks
            if first.x() is second.x() is not None and first.is_mean != second.is_mean:
                yield (*first.calls, *second.calls, step.calls), None

    def _note_product(self, step: Step, marks: Sequence[Any]) -> Iterator[Found]:
        if len(step.tensors) != 2:
            return
        for x, mark in zip(reversed(step.tensors), marks, strict=True):
            if (
                isinstance(mark, _Sigmoid)
                and x.dim() == 4
                and step.result.shape == x.shape
                and mark.numbers < x.numel()
            ):
                calls = (*mark.calls, step.calls)
                self._marks[step.result] = _Scaled(calls, weakref.ref(x))
                if is_large(x):
                    yield calls, None
                return

    def _note_sum(self, step: Step, marks: Sequence[Any]) -> Iterator[Found]:
        scaled = [mark for mark in marks if isinstance(mark, _Scaled)]
        if len(step.tensors) != 2 or not scaled or (x := scaled[0].x()) is None:
            return
        if all(term is x or (mark in scaled and mark.x() is x) for term, mark in zip(step.tensors, marks, strict=True)):
            yield (*(call for mark in scaled for call in mark.calls), step.calls), None


def is_small(x: Tensor) -> bool:
    """Whether calling an op costs more than it gains over a few of PyTorch's, which call no Python in their backward."""
    return x.is_cpu and x.numel() < _SMALL


def is_large(x: Tensor) -> bool:
    """Whether ``gate`` gains anything over a product with a sigmoid: the forward of both reads and writes as much, and on a
    CPU the backward of the product finds a small map in the caches."""
    return not x.is_cpu or x.numel() >= _LARGE


def _dimension(step: Step) -> int | None:
    """The dimension that it reduces, where that is one."""
    dim = step.args[1] if len(step.args) > 1 else step.kwargs.get("dim")
    return dim if isinstance(dim, int) else None


def _pools_to_a_pixel(step: Step, functions: tuple[Any, ...]) -> bool:
    return (
        step.function in functions
        and step.tensors[0].dim() == 4
        and step.tensors[0].shape[2:].numel() > 1
        and isinstance(step.result, Tensor)
        and step.result.numel() == step.tensors[0].shape[:2].numel() > 0
    )

"""What a forward is called with, apart from the values of tensors and integers: the part that a trace depends on."""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

Template: TypeAlias = Hashable

_CONSTANTS = (type(None), bool, float, str)


class _Variable(NamedTuple):
    """A tensor of that many dimensions; None for an integer."""

    dimensions: int | None


class _Constant(NamedTuple):
    kind: type
    value: Hashable


class _Items(NamedTuple):
    kind: type
    names: tuple[Hashable, ...]
    items: tuple[Template, ...]


# Of most calls, made once.
_OF_A_MAP = _Items(tuple, (), (_Items(tuple, (), (_Variable(4),)), _Items(dict, (), ())))


def template(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Template:
    """What calls with the same trace have in common: equal for two of them."""
    if len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and args[0].dim() == 4:
        return _OF_A_MAP
    return _template((args, kwargs))


def _template(value: Any) -> Template:
    kind = type(value)
    if isinstance(value, Tensor):
        return _Variable(value.dim())
    if kind is int:
        return _Variable(None)
    if kind is dict:
        return _Items(dict, tuple(value), tuple(map(_template, value.values())))
    # torch.Size as a tuple: one cannot be made of variables.
    if kind in (list, tuple, torch.Size):
        return _Items(list if kind is list else tuple, (), tuple(map(_template, value)))
    if kind in _CONSTANTS:
        return _Constant(kind, value)
    return _Constant(kind, None)


def unknown(wanted: Template) -> type | None:
    """The type of an argument whose value no template holds, None where there is none."""
    if isinstance(wanted, _Constant) and wanted.kind not in _CONSTANTS:
        return wanted.kind
    items = wanted.items if isinstance(wanted, _Items) else ()
    return next((kind for kind in map(unknown, items) if kind is not None), None)


def variables(value: Any) -> list[Any]:
    """The tensors and integers in arguments ``(args, kwargs)``, in the order of their places in the template."""
    if isinstance(value, Tensor) or type(value) is int:
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [variable for item in value for variable in variables(item)] if isinstance(value, (list, tuple)) else []


def fill(wanted: Template, values: Sequence[Any]) -> Any:
    """The arguments ``(args, kwargs)`` of a template, with ``values`` in the places of the variables."""
    remaining = iter(values)

    def build(part: Template) -> Any:
        if isinstance(part, _Variable):
            return next(remaining)
        if isinstance(part, _Constant):
            return part.value
        assert isinstance(part, _Items)
        items = [build(item) for item in part.items]
        return dict(zip(part.names, items, strict=True)) if part.kind is dict else part.kind(items)

    return build(wanted)


def count(wanted: Template) -> int:
    """How many variables a template has."""
    if isinstance(wanted, _Items):
        return sum(map(count, wanted.items))
    return int(isinstance(wanted, _Variable))

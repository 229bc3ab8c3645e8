"""Putting something under a name of a module or a class, and taking it back in any order.

What was put under a name lies in layers, one for each patch that is in force. The topmost shows; below the lowest lies what
was there at first. So patches may be nested, repeated and taken back in another order than they came in.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any


@dataclass
class Name:
    """A name with its layers: who put what there."""

    owner: Any
    attribute: str
    original: Any
    layers: list[tuple[object, Any]] = field(default_factory=list)

    def show(self) -> None:
        setattr(self.owner, self.attribute, self.layers[-1][1] if self.layers else self.original)


_names: dict[tuple[int, str], Name] = {}


def put(patch: object, owner: Any, attribute: str, value: Any) -> None:
    """Puts ``value`` on top."""
    key = id(owner), attribute
    if key not in _names:
        # From the class itself, not through it: there a static method is a plain function.
        _names[key] = Name(owner, attribute, vars(owner)[attribute])
    _names[key].layers.append((patch, value))
    _names[key].show()


def take_back(patch: object) -> None:
    """Takes away all that ``patch`` has put anywhere."""
    for key, name in list(_names.items()):
        kept = [layer for layer in name.layers if layer[0] is not patch]
        if len(kept) < len(name.layers):
            name.layers = kept
            name.show()
        if not kept:
            del _names[key]


def is_in_force(value: Any) -> bool:
    """Whether a patch has ``value`` under any name."""
    return any(value is put_there for name in _names.values() for _, put_there in name.layers)


def original_of(owner: Any, attribute: str) -> Any:
    """What is under a name when nothing is in force there."""
    name = _names.get((id(owner), attribute))
    return vars(owner)[attribute] if name is None else name.original


def bound_to(value: Any) -> Iterator[tuple[Any, str]]:
    """Every module that is loaded and its names for ``value``: where it was imported by name.

    Under a name that something was put on, it counts what was there at first.
    """
    yield from [(name.owner, name.attribute) for name in _names.values() if name.original is value]
    for module in list(sys.modules.values()):
        # Not through getattr: modules that load their parts at first use would do so.
        namespace = getattr(module, "__dict__", None)
        if isinstance(module, ModuleType) and isinstance(namespace, dict):
            for attribute, bound in list(namespace.items()):
                if bound is value and (id(module), attribute) not in _names:
                    yield module, attribute

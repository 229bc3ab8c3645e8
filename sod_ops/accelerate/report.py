"""What :func:`sod_ops.accelerate` did to a model."""

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby

_WIDTH = 80
_INDENT = "  "
_GAP = "   "


@dataclass(repr=False)
class Report:
    """Every module that was swapped, and every one that was left alone with the reason. Prints as a table.

    Attributes:
        swapped: ``(name, class name)`` of each module that runs a fused forward now; the name is the one in
            ``model.named_modules()``, empty where the model itself is the block.
        left: ``(name, class name, reason)`` of each module that looks like a block this package serves, and runs what
            it ran before.
    """

    swapped: list[tuple[str, str]] = field(default_factory=list)
    left: list[tuple[str, str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        summary = f"{_count(len(self.swapped))} swapped, {len(self.left)} left as they were"
        rows = [("swapped", name, kind, "") for name, kind in self.swapped]
        rows += [("left", name, kind, reason) for name, kind, reason in self.left]
        return "\n".join([summary, *_table(rows)])

    __repr__ = __str__  # a notebook shows what a call returned


def _count(number: int) -> str:
    return f"{number} module{'' if number == 1 else 's'}"


def _table(rows: list[tuple[str, str, str, str]]) -> Iterable[str]:
    """One line a group of modules that share class and reason, the reason below it."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for what, name, kind, reason in rows:
        groups.setdefault((what, kind, reason), []).append(name or "(the model itself)")
    if not groups:
        return
    kind_width = max(len(kind) for _, kind, _ in groups)
    count_width = max(len(str(len(names))) for names in groups.values())
    for what, members in groupby(groups.items(), key=lambda item: item[0][0]):
        yield ""
        yield what
        for (_, kind, reason), names in members:
            head = f"{_INDENT}{len(names):>{count_width}}{_GAP}{kind:<{kind_width}}{_GAP}"
            yield head + _shorten(names, _WIDTH - len(head))
            margin = _INDENT + " " * count_width + _GAP
            yield from textwrap.wrap(reason, _WIDTH, initial_indent=margin, subsequent_indent=margin)


def _shorten(names: list[str], width: int) -> str:
    whole = ", ".join(names)
    return whole if len(whole) <= width else f"{names[0]} ... {names[-1]}"

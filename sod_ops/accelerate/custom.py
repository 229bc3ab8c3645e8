"""The modules of a user's own in which a run on example inputs shows a pattern that an op of this package computes."""

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import fx

from sod_ops.accelerate import attention, gate, traced, upsample_concat
from sod_ops.accelerate.observe import Sighting, sightings
from sod_ops.accelerate.swap import NotServedError, Swap


def find(
    model: torch.nn.Module, run: Callable[[], Any], known: Collection[torch.nn.Module]
) -> Iterator[tuple[torch.nn.Module, Swap | str]]:
    """Modules with a pattern, and the swap that serves it or the reason why none does; of those that are not ``known``.

    Args:
        model: the model.
        run: calls it.
        known: modules that are served already, or left alone for a reason of their own.
    """
    for sighting in sightings(model, run):
        if sighting.module not in known:
            try:
                yield sighting.module, _swap(sighting, known)
            except NotServedError as reason:
                yield sighting.module, str(reason)


def _swap(sighting: Sighting, known: Collection[torch.nn.Module]) -> Swap:
    if sighting.reason is not None:
        raise NotServedError(sighting.reason)
    through = [module for module in sighting.through if module not in known]
    swap, excitations = _trace(sighting, through)
    layers = [module for module in through if not _is_a_function(module)]
    if excitations or layers == through:
        return _swap_of(swap)
    # A function that has a backward of its own traces as a call only; as one, it may also be known by its values.
    other, excitations = _trace(sighting, layers)
    return _swap_of(other if excitations or not isinstance(swap, Swap) else swap)


def _trace(sighting: Sighting, through: list[torch.nn.Module]) -> tuple[Swap | NotServedError, int]:
    """The swap, or why there is none, and how many calls of squeeze_excite are in it."""
    excitations = 0

    def replace(module: torch.nn.Module, graph: fx.Graph) -> None:
        nonlocal excitations
        excitations = _replace(module, graph)

    try:
        return traced.swap(sighting.module, through, sighting.template, replace), excitations
    except NotServedError as reason:
        return reason, 0


def _swap_of(outcome: Swap | NotServedError) -> Swap:
    if isinstance(outcome, NotServedError):
        raise outcome
    return outcome


def _is_a_function(module: torch.nn.Module) -> bool:
    return next(module.children(), None) is None and not module._parameters and not module._buffers


def _replace(module: torch.nn.Module, graph: fx.Graph) -> int:
    """Replaces what ops compute; how many calls of squeeze_excite there are."""
    # The sum of both gates of scSE before either of them, and squeeze-and-excitation before gates of any other kind.
    patterns = (upsample_concat.replace, attention.replace_sums, gate.replace, attention.replace)
    results = [replace(module, graph) for replace in patterns]
    if not any(replaced for replaced, _ in results):
        reasons = [reason for _, left in results for reason in left]
        raise NotServedError(
            reasons[0]
            if reasons
            else "what it computes from its means, its maxima or its upsampled maps has no fused form"
        )
    return results[2][0]

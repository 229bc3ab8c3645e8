"""The modules of a user's own in which a run on example inputs shows a pattern that an op of this package computes."""

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import fx

from sod_ops.accelerate import gate, traced, upsample_concat
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
    functions = [module for module in through if _is_a_function(module)]
    try:
        return traced.swap(sighting.module, through, sighting.template, _replace)
    except NotServedError:
        if not functions:
            raise
    # One that has a backward of its own traces as a call only.
    return traced.swap(sighting.module, [m for m in through if m not in functions], sighting.template, _replace)


def _is_a_function(module: torch.nn.Module) -> bool:
    return next(module.children(), None) is None and not module._parameters and not module._buffers


def _replace(module: torch.nn.Module, graph: fx.Graph) -> None:
    results = [pattern.replace(module, graph) for pattern in (upsample_concat, gate)]
    if not any(replaced for replaced, _ in results):
        reasons = [reason for _, left in results for reason in left]
        raise NotServedError(
            reasons[0] if reasons else "what it computes from its means or its upsampled maps has no fused form"
        )

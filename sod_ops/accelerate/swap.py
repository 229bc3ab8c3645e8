"""Binding a fused forward to one module, and taking it off again.

Only the instance's ``forward`` changes. The module's class, parameters, state_dict keys, hooks and mode stay what they
are, and whoever holds the module or its parameters (an optimizer, an EMA, DDP) notices nothing.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch


class NotServedError(Exception):
    """Why a module keeps its own forward; the message is the reason in the report."""


class Swap(NamedTuple):
    """A fused forward and what it knows about the module that it serves.

    ``forward(module, spec, *args, **kwargs)`` is a function of this package, and falls back to the class's own forward
    wherever it does not serve the call. Both must survive pickle and copy.deepcopy.
    """

    forward: Callable[..., Any]
    spec: Any


def bind(module: torch.nn.Module, swap: Swap) -> None:
    """Makes ``module`` run ``swap``.

    A partial, unlike a closure, is rebound to the copy by copy.deepcopy and pickle. DataParallel copies the instance's
    dictionary by hand, so that its replicas would run on the original's weights: they are bound anew.
    """
    module.__dict__["forward"] = functools.partial(swap.forward, module, swap.spec)
    module.__dict__["_replicate_for_data_parallel"] = functools.partial(_replicate, module)


def unbind(module: torch.nn.Module) -> bool:
    """Gives ``module`` its own forward back; False where it had none of ours."""
    if not is_bound(module):
        return False
    del module.__dict__["forward"], module.__dict__["_replicate_for_data_parallel"]
    return True


def is_bound(module: torch.nn.Module) -> bool:
    """Whether ``module`` runs a fused forward of this package."""
    forward = module.__dict__.get("forward")
    return isinstance(forward, functools.partial) and forward.func.__module__.startswith(f"{__package__}.")


def _replicate(module: torch.nn.Module) -> torch.nn.Module:
    replica: torch.nn.Module = type(module)._replicate_for_data_parallel(module)
    forward = module.__dict__["forward"]
    bind(replica, Swap(forward.func, forward.args[1]))
    return replica

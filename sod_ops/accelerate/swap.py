"""Binding a fused forward to one module, and taking it off again.

Only the instance's ``forward`` changes. The module's class, parameters, state_dict keys, hooks and mode stay what they
are, and whoever holds the module or its parameters (an optimizer, an EMA, DDP) notices nothing.
"""

import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch


class NotServedError(Exception):
    """Why a module keeps its own forward; the message is the reason in the report."""


class Swap(NamedTuple):
    """A fused forward and what it knows about the module that it serves.

    ``forward(module, spec, *args, **kwargs)`` is a function of this package, and falls back to the class's own forward
    wherever it does not serve the call. Both must survive pickle and copy.deepcopy.

    ``probes`` is for a module that is known by its structure alone, which may compute something else in what example inputs
    don't show: from their values, it makes others on which the swap is proven, too, and it is proven in the other mode.
    """

    forward: Callable[..., Any]
    spec: Any
    probes: Callable[..., Iterable[tuple[Any, ...]]] | None = None


class Bound:
    """``function(module, *given, ...)`` as a callable of ``...``: what a bound method is, with two differences.

    The module, which holds it, is held weakly: in a cycle of references, a deleted model would keep its memory (on a GPU,
    all of it) until the garbage collector comes by. And it is rebound to the copy by copy.deepcopy and pickle.
    """

    def __init__(self, module: torch.nn.Module, function: Callable[..., Any], *given: Any) -> None:
        self.module = weakref.ref(module)
        self.function = function
        self.given = given

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.module(), *self.given, *args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return Bound, (self.module(), self.function, *self.given)


def bind(module: torch.nn.Module, swap: Swap) -> None:
    """Makes ``module`` run ``swap``."""
    module.__dict__["forward"] = Bound(module, swap.forward, swap.spec)
    # DataParallel copies the instance's dictionary by hand: its replicas would run on the original's weights.
    module.__dict__["_replicate_for_data_parallel"] = Bound(module, _replicate, swap)


def unbind(module: torch.nn.Module) -> bool:
    """Gives ``module`` its own forward back; False where it had none of ours."""
    if not is_bound(module):
        return False
    del module.__dict__["forward"], module.__dict__["_replicate_for_data_parallel"]
    return True


def is_bound(module: torch.nn.Module) -> bool:
    """Whether ``module`` runs a fused forward of this package."""
    return isinstance(module.__dict__.get("forward"), Bound)


def _replicate(module: torch.nn.Module, swap: Swap) -> torch.nn.Module:
    replica: torch.nn.Module = type(module)._replicate_for_data_parallel(module)
    bind(replica, swap)
    return replica

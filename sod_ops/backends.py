"""What can run here, and which implementation a call takes.

Four backends implement every op to one meaning:

* ``reference``: plain PyTorch, any device, differentiable by autograd: the definition of the op;
* ``cpu``: C++, vectorised and threaded;
* ``triton``: Triton kernels on CUDA tensors (on CPU tensors under ``TRITON_INTERPRET=1``);
* ``cuda``: CUDA C++.

A call takes, in this order: the backend named by :func:`use_backend`, the one named by the environment variable
``SOD_OPS_BACKEND``, the fastest that serves the tensors' device; where its kernels don't serve tensors of any size, the next
one takes those that they don't. An explicit request never falls back: it raises.
"""

import contextlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch

from sod_ops import _extension

NAMES = ("reference", "cpu", "triton", "cuda")

# What auto tries on each device type, fastest first. Devices that are not listed get the reference.
_AUTO_ORDER = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}

_ENVIRONMENT_VARIABLE = "SOD_OPS_BACKEND"

# Stands for a requested backend's name where the kernels that auto prefers don't serve a call.
_BEYOND = "beyond"

# os.environ.get encodes the key and decodes the value at every call: 1.0 us here, a quarter of a call's whole budget.
# Its underlying dictionary answers in 0.05 us and sees the same changes.
_environment: Any = getattr(os.environ, "_data", os.environ)
_environment_key: Any = os.fsencode(_ENVIRONMENT_VARIABLE) if _environment is not os.environ else _ENVIRONMENT_VARIABLE

_requested: ContextVar[str | None] = ContextVar("sod_ops_backend", default=None)

# torch.compile cannot trace a ContextVar, but guards a plain global: compiled code follows the request made last in the
# process, and is compiled anew when that changes.
_requested_last: str | None = None


class Kernels(NamedTuple):
    """The forward and backward operators of one op on one backend.

    ``check_arguments`` says that the forward operator refuses every bad argument itself, so that nobody need look first.

    ``serves`` is there where they don't serve every call: whether they are the ones for a call, as a function of what the op
    says of it (:meth:`Selector.serving`).
    """

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    check_arguments: bool
    serves: Callable[..., bool] | None = None


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Make every op in the ``with`` block take the backend ``name``, in this thread and in this context only.

    Code compiled by ``torch.compile`` follows the request that was made last in the process.

    Args:
        name: ``"reference"``, ``"cpu"``, ``"triton"`` or ``"cuda"``.

    Raises:
        ValueError: ``name`` is not a backend. A backend that is known but not there raises when an op is called.
    """
    global _requested_last
    _check_name(name, "use_backend: name")
    token = _requested.set(name)
    before, _requested_last = _requested_last, name
    try:
        yield
    finally:
        _requested.reset(token)
        _requested_last = before


def available_backends(device: str | torch.device = "cpu") -> dict[str, str | None]:
    """Which backends serve tensors on ``device``.

    Args:
        device: a device, or its name.

    Returns:
        For each backend None where it is there, otherwise the reason why it is not.
    """
    try:
        device_type = torch.device(device).type
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"available_backends: device must be a torch device or its name, got {device!r}") from error
    return {name: _why_missing(name, device_type) for name in NAMES}


def requested_backend(by_context: str | None) -> str | None:
    """The backend that an explicit request names (context, then environment), or None: choose the fastest."""
    if by_context is not None:
        return by_context
    value = _environment.get(_environment_key)
    if not value:
        return None
    name = os.fsdecode(value)
    _check_name(name, f"environment variable {_ENVIRONMENT_VARIABLE}")
    return name


class Selector:
    """Chooses one op's kernels for a device type.

    Args:
        op: the op's name, for messages.
        kernels: the op's kernels by backend name, None for a backend whose kernels are PyTorch's own; the reference is not
            among them.
    """

    def __init__(self, op: str, kernels: Mapping[str, Kernels | None]) -> None:
        self.op = op
        self._kernels = kernels
        self._chosen: dict[tuple[str, str | None], Kernels | None] = {}

    def __call__(self, device_type: str) -> Kernels | None:
        """The kernels to call for tensors on ``device_type``; None stands for the reference."""
        key = (device_type, requested_backend(_requested.get()))
        try:
            return self._chosen[key]
        except KeyError:
            chosen = self._chosen[key] = self._kernels.get(self._choose(*key))
            return chosen

    def traced(self, device_type: str) -> Kernels | None:
        """The same while torch.compile traces, where the choice becomes part of the graph."""
        return self._kernels.get(self._choose_while_tracing(device_type, _requested_last))

    def serving(self, kernels: Kernels, device_type: str, tracing: bool, *call: Any) -> Kernels | None:
        """``kernels``, which were chosen, or what auto takes in their place where they don't serve a call.

        An explicit request stays: the operator raises where it can't be served.
        """
        serves = kernels.serves
        if serves is None or not _is_automatic(_requested_last if tracing else _requested.get()):
            return kernels
        if serves(*call, tracing=tracing):
            return kernels
        if tracing:
            return self._kernels.get(self._choose_while_tracing(device_type, _BEYOND))
        key = (device_type, _BEYOND)
        if key not in self._chosen:
            self._chosen[key] = self._kernels.get(self._choose(device_type, None, beyond=True))
        return self._chosen[key]

    def _choose_while_tracing(self, device_type: str, requested: str | None) -> str:
        if requested == _BEYOND:
            return self._choose(device_type, None, beyond=True)
        return self._choose(device_type, requested_backend(requested))

    # torch.compiler.assume_constant_result sets no more than this, but imports all of torch._dynamo (1 s) to do so.
    _choose_while_tracing._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def _choose(self, device_type: str, requested: str | None, beyond: bool = False) -> str:
        missing = available_backends(device_type)
        for name in NAMES[1:]:
            if missing[name] is None and name not in self._kernels:
                missing[name] = f"{self.op} has no kernel for it"
            kernels = self._kernels.get(name)
            if missing[name] is None and beyond and kernels is not None and kernels.serves is not None:
                missing[name] = f"{self.op} of this size is not served by it"
        if requested is None:
            name = next(name for name in _AUTO_ORDER.get(device_type, ("reference",)) if missing[name] is None)
            if name == "reference" and device_type in _AUTO_ORDER:
                _warn_once(device_type)
            return name
        if missing[requested] is None:
            return requested
        there = ", ".join(name for name in NAMES if missing[name] is None)
        rest = "; ".join(f"{name}: {why}" for name, why in missing.items() if why is not None)
        raise RuntimeError(
            f"{self.op}: backend {requested!r} was requested and cannot serve {device_type} tensors. "
            f"Available: {there}. Not available: {rest}."
        )


def _is_automatic(requested: str | None) -> bool:
    return requested_backend(requested) is None


_is_automatic._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _check_name(name: object, argument: str) -> None:
    if name not in NAMES:
        raise ValueError(f"{argument} must be one of {', '.join(NAMES)}, got {name!r}")


def _why_missing(name: str, device_type: str) -> str | None:
    if name == "reference":
        return None
    if name == "cpu":
        if device_type != "cpu":
            return f"serves cpu tensors, not {device_type} tensors"
        return _extension.why_missing()
    if name == "triton":
        return _why_triton_is_missing(device_type)
    if device_type != "cuda":
        return f"serves cuda tensors, not {device_type} tensors"
    return _extension.why_missing() or _extension.why_cuda_is_missing()


def _why_triton_is_missing(device_type: str) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if device_type == "cpu":
        if os.environ.get("TRITON_INTERPRET") != "1":
            return "serves cpu tensors only in Triton's interpreter (set TRITON_INTERPRET=1 before Python starts)"
        return None
    if device_type != "cuda":
        return f"serves cuda tensors, not {device_type} tensors"
    if not torch.cuda.is_available():
        return "no CUDA device is available"
    return None


_warned: set[str] = set()


def _warn_once(device_type: str) -> None:
    if device_type in _warned:
        return
    _warned.add(device_type)
    missing = available_backends(device_type)
    reasons = "; ".join(f"{name}: {missing[name]}" for name in _AUTO_ORDER[device_type] if missing[name] is not None)
    warnings.warn(
        f"sod_ops runs its plain PyTorch reference on {device_type} tensors, which is right but not fast ({reasons}). "
        "`python -m sod_ops doctor` says more.",
        stacklevel=2,
    )

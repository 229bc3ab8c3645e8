"""Times an op's contestants side by side: each verified first, then all in turn, round after round.

A machine that others share is faster in one second than in the next. So every round takes one sample of every
contestant (and of a copy, which gives the memory's bandwidth), in a new order, and ratios are formed within a round.
"""

import math
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

import sod_ops
from benchmarks.devices import Clock, Device, Run

FORWARD = "forward"
TRAINING = "forward + backward"
HOST = "host"
MODES = (FORWARD, TRAINING)

Outputs: TypeAlias = Tensor | tuple[Tensor, ...]
Function: TypeAlias = Callable[..., Outputs]  # of a case's inputs

# Largest error against the float64 reference, as a fraction of the tensor's largest value. The bounds catch a
# contestant that computes something else; the tests have the tight ones. In bfloat16 a plain PyTorch formula rounds
# every step to 2^-9, and a gradient of the weights sums many such roundings.
_TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}


class WrongResultError(AssertionError):
    """A contestant does not compute what the reference computes."""


class Case(ABC):
    """One case of an op: its tensors, and how each contestant computes the op on them."""

    peer_name: ClassVar[str]
    autotuned: ClassVar[bool] = True  # torch.compile also with its slower modes
    headline: bool  # shown in the README; the others only among the device's results

    @property
    @abstractmethod
    def name(self) -> str:
        """What tells this case from the op's others."""

    @abstractmethod
    def inputs(self, device: str) -> tuple[Tensor, ...]:
        """The tensors, reproducibly random; those that get a gradient require one."""

    @abstractmethod
    def reference(self, *inputs: Tensor) -> Outputs:
        """The op's definition, in the dtype of ``inputs``."""

    @abstractmethod
    def eager(self) -> Function:
        """The formula in PyTorch as people write it: a plain function, which is also what torch.compile gets."""

    @abstractmethod
    def ours(self) -> Function:
        """The op from sod_ops, on the backend that it chooses."""

    def other_backends(self, device: str) -> tuple[str, ...]:
        """Backends that the op is timed on beside the one that it chooses, to see whether the choice is right."""
        return ()

    @abstractmethod
    def peer(self, *inputs: Tensor) -> Callable[[], Outputs]:
        """The peer library's function or module, set up on ``inputs``."""

    @abstractmethod
    def floor_bytes(self, mode: str) -> int:
        """What must cross memory: every large input read once, every large output written once."""

    def operations(self, mode: str) -> int | None:
        """Multiplications and additions, where they are so many that they might decide; None for some tens an element."""
        return None


class Budget(NamedTuple):
    """How long to measure."""

    seconds: float
    least_rounds: int
    most_rounds: int
    sample_seconds: float


# By device type: a GPU serves one process, and its time is dear.
FULL = {
    "cpu": Budget(seconds=2.0, least_rounds=15, most_rounds=60, sample_seconds=2e-3),
    "cuda": Budget(seconds=0.5, least_rounds=15, most_rounds=60, sample_seconds=1e-3),
}
QUICK = Budget(seconds=0.0, least_rounds=3, most_rounds=3, sample_seconds=1e-4)


@dataclass
class Entrant:
    """A contestant under one clock."""

    contestant: str
    clock: Clock
    run: Run
    calls: int = 1
    samples: list[float] = field(default_factory=list)

    def sample(self) -> float:
        self.run()  # untimed: the caches are then as this run leaves them, not as its neighbour did
        return self.clock.seconds(self.run, self.calls)


class Rounds:
    """The entrants of one case, sampled in turn."""

    def __init__(self, entrants: Sequence[Entrant], budget: Budget) -> None:
        self.entrants = entrants
        self._budget = budget
        self._order = random.Random(0)

    def warm_up(self) -> int:
        """Chooses each entrant's calls per sample; returns the number of rounds that fit the budget."""
        for entrant in self.entrants:
            seconds = min(entrant.sample() for _ in range(3))
            entrant.calls = max(1, min(10_000, math.ceil(self._budget.sample_seconds / max(seconds, 1e-9))))
        start = time.perf_counter()
        for entrant in self.entrants:
            entrant.sample()
        rounds = int(self._budget.seconds / (time.perf_counter() - start))
        return max(self._budget.least_rounds, min(self._budget.most_rounds, rounds))

    def round(self) -> None:
        """One sample of every entrant."""
        for entrant in self._order.sample(self.entrants, len(self.entrants)):
            entrant.samples.append(entrant.sample())

    def samples(self, clock: str) -> dict[str, Any]:
        """Seconds by contestant, one for each round."""
        return {e.contestant: np.array(e.samples) for e in self.entrants if e.clock.name == clock}


# Calls a function for a number of rounds: pytest-benchmark's pedantic.
Runner: TypeAlias = Callable[[Callable[[], None], int], object]


def measure(case: Case, mode: str, device: Device, budget: Budget, runner: Runner, *, autotune: bool) -> dict[str, Any]:
    """Verifies and times every contestant of a case.

    Args:
        mode: :data:`FORWARD` (without gradients), :data:`TRAINING` (gradients of every input that requires one) or
            :data:`HOST` (how long a call without gradients takes to return).
        autotune: also with torch.compile's slower modes.

    Returns:
        What the results say of the case. A contestant that fails has its error there instead of a time.

    Raises:
        WrongResultError: ours or eager differs from the reference.
        Exception: whatever ours raises.
    """
    if mode == HOST:
        return _measure_host(case, device, budget, runner)
    return _measure_op(case, mode, device, budget, runner, autotune)


def _measure_op(
    case: Case, mode: str, device: Device, budget: Budget, runner: Runner, autotune: bool
) -> dict[str, Any]:
    with torch.set_grad_enabled(mode == TRAINING):
        inputs = case.inputs(device.type)
        expected, grad_outputs = _expected(case, inputs, mode)
        contestants: dict[str, dict[str, Any]] = {}
        entrants: list[Entrant] = []
        for name, set_up in _contestants(case, inputs, device, autotune).items():
            contestants[name] = {}
            try:
                run = _run(set_up(), inputs, grad_outputs)
                _verify(name, run(), expected, inputs)
                contestants[name]["memory"] = device.peak_memory(run)
            except Exception as error:
                if name == "ours" or (name == "eager" and isinstance(error, WrongResultError)):
                    raise
                contestants[name]["error"] = describe_error(error)
                for tensor in inputs:
                    tensor.grad = None  # what a backward that failed half-way has left would be added to the next one's
                continue
            for clock in device.clocks:
                try:
                    prepared = clock.prepare(run)
                    if prepared is not run:
                        _verify(name, prepared(), expected, inputs)
                except Exception as error:
                    if name == "ours":
                        raise
                    contestants[name][clock.name] = {"error": describe_error(error)}
                    continue
                entrants.append(Entrant(name, clock, prepared))
        del expected
        copy, copied_bytes = device.copy()
        entrants += [Entrant("copy", clock, clock.prepare(copy)) for clock in device.clocks]
        rounds = Rounds(entrants, budget)
        _time(rounds, runner)

    floor_bytes = case.floor_bytes(mode)
    record: dict[str, Any] = {"floor_bytes": floor_bytes, "contestants": contestants}
    record.update(floor={}, floor_fraction={}, speedup={})
    for clock in device.clocks:
        samples = rounds.samples(clock.name)
        bandwidth = copied_bytes / samples.pop("copy")
        floor = floor_bytes / bandwidth
        for name, seconds in samples.items():
            contestants[name][clock.name] = _statistics(seconds)
        record["rounds"] = len(bandwidth)
        record["floor"][clock.name] = _statistics(floor) | {"bandwidth": float(np.median(bandwidth))}
        record["floor_fraction"][clock.name] = _statistics(floor / samples["ours"])
        record["speedup"][clock.name] = {
            name: _statistics(seconds / samples["ours"]) for name, seconds in samples.items() if name != "ours"
        }
    return record


def prepare_ours(case: Case, device_type: str) -> tuple[Run, Callable[[], None]]:
    """One call of ours, forward and backward, and what raises :class:`WrongResultError` where it is not right."""
    inputs = case.inputs(device_type)
    expected, grad_outputs = _expected(case, inputs, TRAINING)
    run = _run(partial(case.ours(), *inputs), inputs, grad_outputs)
    return run, lambda: _verify("ours", run(), expected, inputs)


def _measure_host(case: Case, device: Device, budget: Budget, runner: Runner) -> dict[str, Any]:
    """Times one call on tensors that need no gradient, against an operator that computes nothing.

    That operator is aten::alias, called as the ops call theirs: the least that PyTorch's Python binding and dispatcher,
    a kernel and the result's Python object cost. It has one argument, and ours also computes and allocates, so that
    the difference is more than what checks, backend choice and dispatch add.
    """
    inputs = tuple(tensor.detach() for tensor in case.inputs(device.type))
    expected, _ = _expected(case, inputs, FORWARD)
    calls: dict[str, Callable[[], Any]] = {
        "eager": partial(case.eager(), *inputs),
        "ours": partial(case.ours(), *inputs),
        "empty operator": partial(torch.ops.aten.alias.default, inputs[0]),
    }
    for name in ("eager", "ours"):
        _verify(name, _as_tuple(calls[name]()), expected, inputs)
    rounds = Rounds([Entrant(name, device.host_clock, call) for name, call in calls.items()], budget)
    _time(rounds, runner)
    samples = rounds.samples("host")
    differentiated = _host_with_gradients(case, device, budget)
    return {
        "rounds": len(samples["ours"]),
        **({"with_gradients": differentiated} if differentiated else {}),
        "contestants": {name: {"host": _statistics(seconds)} for name, seconds in samples.items()},
        "over_empty_operator": _statistics(samples["ours"] - samples["empty operator"]),
    }


def _host_with_gradients(case: Case, device: Device, budget: Budget) -> dict[str, Any]:
    """How long a call takes to return that needs gradients, and its backward alone, by contestant."""
    inputs = case.inputs(device.type)
    leaves = [tensor for tensor in inputs if tensor.requires_grad]
    if not leaves:
        return {}
    entrants: dict[str, list[Entrant]] = {"forward": [], "backward": []}
    for name, function in (("eager", case.eager()), ("ours", case.ours())):
        forward = partial(function, *inputs)
        outputs = _as_tuple(forward())
        ones = [torch.ones_like(output) for output in outputs]
        backward = partial(torch.autograd.grad, outputs, leaves, ones, retain_graph=True)
        for phase, run in (("forward", lambda f=forward: _as_tuple(f())), ("backward", backward)):
            entrants[phase].append(Entrant(name, device.host_clock, run))
    times: dict[str, Any] = {}
    for phase, some in entrants.items():
        rounds = Rounds(some, budget)
        for _ in range(rounds.warm_up()):
            rounds.round()
        times[phase] = {name: _statistics(seconds) for name, seconds in rounds.samples("host").items()}
    return times


def describe_error(error: BaseException) -> str:
    """An exception's class and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _contestants(
    case: Case, inputs: tuple[Tensor, ...], device: Device, autotune: bool
) -> dict[str, Callable[[], Callable[[], Outputs]]]:
    """What sets each contestant up, so that a failure to do so is the contestant's own."""
    torch._dynamo.reset()  # or the next shape of the same function would be compiled for dynamic shapes

    def compiled(mode: str) -> Callable[[], Outputs]:
        return partial(torch.compile(case.eager(), dynamic=False, mode=mode), *inputs)

    def on(backend: str) -> Callable[[], Outputs]:
        function = case.ours()

        def ours() -> Outputs:
            with sod_ops.use_backend(backend):
                return function(*inputs)

        return ours

    return {
        "eager": lambda: partial(case.eager(), *inputs),
        **{
            name: partial(compiled, mode)
            for name, mode in device.compile_modes.items()
            if mode == "default" or (autotune and case.autotuned)
        },
        "peer": lambda: case.peer(*inputs),
        **{name: partial(on, name) for name in case.other_backends(device.type)},
        "ours": lambda: partial(case.ours(), *inputs),
    }


def _run(call: Callable[[], Outputs], inputs: tuple[Tensor, ...], grad_outputs: tuple[Tensor, ...] | None) -> Run:
    """One step, and its results: the outputs, then the gradients (which the inputs do not keep)."""
    if grad_outputs is None:
        return lambda: _as_tuple(call())
    leaves = [tensor for tensor in inputs if tensor.requires_grad]
    # What follows a backward in a whole training step, for functions that say so: an attribute, which torch.compile keeps.
    finish = getattr(call, "finish", getattr(getattr(call, "func", None), "finish", None))

    def step() -> tuple[Tensor, ...]:
        outputs = _as_tuple(call())
        torch.autograd.backward(outputs, grad_outputs)
        gradients = [leaf.grad for leaf in leaves]
        for leaf in leaves:
            leaf.grad = None
        if finish is not None:
            finish()
        return (*(output.detach() for output in outputs), *gradients)  # type: ignore[arg-type]

    return step


def _expected(
    case: Case, inputs: tuple[Tensor, ...], mode: str
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...] | None]:
    """The reference's results in float64, and the gradient that every contestant's backward is given."""
    exact = tuple(t.detach().double().requires_grad_(t.requires_grad) if t.is_floating_point() else t for t in inputs)
    if mode == FORWARD:
        return _as_tuple(case.reference(*exact)), None
    outputs = _as_tuple(case.reference(*exact))
    dtype = next(t.dtype for t in inputs if t.is_floating_point())
    generator = torch.Generator(outputs[0].device).manual_seed(1)
    # A dense tensor in the outputs' memory format, with a different value everywhere; of a mean or a sum 1, as
    # loss.backward() has it.
    grad_outputs = tuple(
        torch.empty_like(y, dtype=dtype).normal_(generator=generator) if y.dim() else torch.ones_like(y, dtype=dtype)
        for y in outputs
    )
    results = _run(lambda: outputs, exact, tuple(g.double() for g in grad_outputs))()
    return results, grad_outputs


def _verify(name: str, results: Sequence[Tensor], expected: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
    """A result is held to its own dtype, or to the inputs' where that is shorter: so are steps on the way to it."""
    coarsest = max(_TOLERANCES.get(tensor.dtype, 0) for tensor in inputs)
    if len(results) != len(expected):
        raise WrongResultError(f"{name} gives {len(results)} tensors where the reference gives {len(expected)}")
    for index, (actual, exact) in enumerate(zip(results, expected, strict=True)):
        if actual.shape != exact.shape:
            raise WrongResultError(f"{name}: result {index} has shape {list(actual.shape)}, not {list(exact.shape)}")
        if exact.numel() == 0:
            continue
        scale = exact.abs().max().item()
        error = (actual.double() - exact).abs().max().item()
        floating = actual.dtype in _TOLERANCES  # whole numbers must be equal
        allowed = max(_TOLERANCES[actual.dtype], coarsest) * scale if floating else 0
        if not error <= allowed:  # also where the error is NaN
            raise WrongResultError(
                f"{name}: result {index} differs from the reference by {error:.3g}, where {allowed:.3g} is allowed"
            )


def _time(rounds: Rounds, runner: Runner) -> None:
    count = rounds.warm_up()
    graphs = _compiled_graphs()
    runner(rounds.round, count)
    if _compiled_graphs() != graphs:
        raise RuntimeError("torch.compile compiled while it was being timed")


def _compiled_graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def _as_tuple(outputs: Outputs) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else outputs


def _statistics(values: Iterable[float]) -> dict[str, float]:
    low, median, high = np.percentile(np.asarray(values), (20, 50, 80))
    return {"median": float(median), "p20": float(low), "p80": float(high)}

"""Time and memory of several versions of one model, side by side."""

import gc
import math
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from sod_ops.cli.errors import UsageError

Samples = dict[str, list[float]]
Call = Callable[[], Any]

_LEAST_ROUNDS = 3
_SHORTEST_SAMPLE = 0.01  # seconds; below, the clock and the synchronisation would show


def interleave(
    calls: dict[str, Call],
    device: torch.device,
    *,
    seconds: float,
    rounds: int | None,
    progress: Callable[[float], None],
) -> Samples:
    """Times the calls in turn, so that whatever else the machine does meets them all alike.

    Each round calls every one, in an order that moves on by one from round to round.

    Args:
        calls: what to time, by name.
        device: the device that they run on; on CUDA each sample ends with a synchronisation.
        seconds: rounds go on for this long (warm-up not counted), but there are at least three.
        rounds: this many instead.
        progress: told the fraction that is done.

    Returns:
        Seconds per call, one entry per round, by name.
    """
    names = list(calls)
    repeats = {name: _repeats(call, device) for name, call in calls.items()}
    samples: Samples = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        begin = time.perf_counter()
        for i in range(rounds if rounds is not None else 10**9):
            elapsed = time.perf_counter() - begin
            if rounds is None and i >= _LEAST_ROUNDS and elapsed >= seconds:
                break
            progress(i / rounds if rounds is not None else min(elapsed / seconds, i / _LEAST_ROUNDS, 1.0))
            for name in names[i % len(names) :] + names[: i % len(names)]:
                samples[name].append(_time(calls[name], repeats[name], device))
    finally:
        gc.enable()
    return samples


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """The first quartile, the median and the third quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def speed_up(samples: Samples, before: str, after: str) -> tuple[float, float, float]:
    """Quartiles of how many times faster ``after`` is, from pairs that were timed in the same round."""
    return quartiles([b / a for b, a in zip(samples[before], samples[after], strict=True)])


def peak_memory(call: Call, device: torch.device) -> int:
    """The most bytes of tensors that were alive at one time during a call, beyond those alive before it.

    Make the call once before: what its first run alone sets up would count too.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    return _peak_on_cpu(call)


def _peak_on_cpu(call: Call) -> int:
    """The same from the profiler's record of every allocation.

    The size of the process would not do: its allocator keeps freed memory, so that only the first peak would show.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise it writes to stderr when it starts and stops
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        call()
    results = profile.kineto_results
    if results is None:
        raise UsageError("this PyTorch was built without its profiler, which peak memory on a CPU is read from")
    changes = [(event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]"]
    alive = peak = 0
    for _, change in sorted(changes, key=lambda entry: entry[0]):
        alive += change
        peak = max(peak, alive)
    return peak


def _repeats(call: Call, device: torch.device) -> int:
    """How many calls make a sample that is long enough to time, after a warm-up."""
    call()
    return max(1, math.ceil(_SHORTEST_SAMPLE / max(_time(call, 1, device), 1e-9)))


def _time(call: Call, repeats: int, device: torch.device) -> float:
    _synchronize(device)
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    _synchronize(device)
    return (time.perf_counter() - begin) / repeats


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

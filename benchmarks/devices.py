"""What differs between a CPU and a CUDA device in a benchmark: clocks, peak memory, the copy, what to say of it.

A clock gives the seconds of one call. ``wall`` (CPU) is elapsed time. On a CUDA device there are two: ``events`` is
what the stream sees between two events, with the gaps where the host does not launch fast enough; ``graph`` replays a
CUDA graph of the call, which leaves the device's own time. ``host`` is the time until a call returns, on any device.
"""

import gc
import json
import os
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

Run = Callable[[], tuple[Tensor, ...]]

_MIB = 2**20


class Clock(Protocol):
    """Times one call of a run."""

    name: str

    def prepare(self, run: Run) -> Run:
        """The run in the form that this clock times, which gives the same results."""
        ...

    def seconds(self, run: Run, calls: int) -> float:
        """Seconds of one call, from ``calls`` calls."""
        ...


class Device(Protocol):
    """A device to measure on."""

    type: str
    slug: str
    clocks: tuple[Clock, ...]
    host_clock: Clock
    # torch.compile's modes by the name of the contestant.
    compile_modes: dict[str, str]

    def describe(self) -> dict[str, Any]:
        """What identifies the device, for the results."""
        ...

    def peak_memory(self, run: Run) -> int:
        """The most bytes that tensors allocated in one call hold at once, results included and inputs not."""
        ...

    def copy(self) -> tuple[Run, int]:
        """Copies a tensor too large for any cache, and the bytes that this reads and writes."""
        ...

    def release(self) -> None:
        """Gives back what the finished case has left allocated."""
        ...


class WallClock:
    """Elapsed time of calls in a row; on a CUDA device, the time until they return."""

    def __init__(self, name: str, synchronize: Callable[[], None] | None = None) -> None:
        self.name = name
        self._synchronize = synchronize

    def prepare(self, run: Run) -> Run:
        return run

    def seconds(self, run: Run, calls: int) -> float:
        if self._synchronize is not None:
            self._synchronize()  # a full launch queue would make the host wait for the device
        start = time.perf_counter_ns()
        for _ in range(calls):
            run()
        return (time.perf_counter_ns() - start) / calls * 1e-9


class EventClock:
    """Time between two CUDA events around a call, with a cold L2 cache, as triton.testing.do_bench has it.

    Clearing the cache also keeps the device busy while the host issues the call, so that short calls are not timed by
    the host's launches alone.
    """

    name = "events"

    def __init__(self, clear_cache: Callable[[], object]) -> None:
        self._clear_cache = clear_cache

    def prepare(self, run: Run) -> Run:
        return run

    def seconds(self, run: Run, calls: int) -> float:
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(calls)]
        torch.cuda.synchronize()
        for start, end in events:
            self._clear_cache()
            start.record()
            run()
            end.record()
        torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(end) for start, end in events) * 1e-3


class GraphClock(EventClock):
    """The same around the replay of a CUDA graph that holds one call."""

    name = "graph"

    def prepare(self, run: Run) -> Run:
        # What a first call allocates or compiles must not be captured, and autograd's nodes must belong to the stream
        # of the capture: both want calls on that stream first.
        side_stream = torch.cuda.Stream()
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(side_stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side_stream):
            results = run()

        def replay() -> tuple[Tensor, ...]:
            graph.replay()
            return results

        return replay


def _copy(device: str, size: int) -> tuple[Run, int]:
    source = torch.ones(size // 4, device=device)
    target = torch.zeros_like(source)
    return lambda: (target.copy_(source),), 2 * size


class Cpu:
    """The CPU, with PyTorch's number of threads."""

    type = "cpu"

    def __init__(self, processor: str) -> None:
        """``processor``: its name, as it calls itself."""
        self.name = _tidy(processor)
        self.slug = slugify(f"{self.name} {torch.get_num_threads()} threads")
        self.clocks: tuple[Clock, ...] = (WallClock("wall"),)
        self.host_clock: Clock = WallClock("host")
        self.compile_modes = {"compile": "default"}

    def describe(self) -> dict[str, Any]:
        return {
            "type": self.type,
            "name": self.name,
            "instruction_set": torch.backends.cpu.get_cpu_capability(),
            "cores": os.cpu_count(),
        }

    def peak_memory(self, run: Run) -> int:
        # The process's own peak says nothing where memory is reused; the profiler sees every tensor come and go.
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            results = run()
        del results  # only now, so that they count
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(trace))
            events = json.loads(trace.read_text())["traceEvents"]
        changes = [(event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]"]
        held = peak = 0
        for _, change in sorted(changes, key=lambda timed: timed[0]):
            held += change
            peak = max(peak, held)
        return peak

    def copy(self) -> tuple[Run, int]:
        return _copy("cpu", 256 * _MIB)

    def release(self) -> None:
        gc.collect()


class Cuda:
    """The current CUDA device."""

    type = "cuda"

    def __init__(self, processor: str) -> None:
        """``processor``: the host's."""
        # Convolutions of float32 would otherwise round their factors to ten bits, which the reference does not.
        torch.backends.cudnn.allow_tf32 = False
        self.name = torch.cuda.get_device_name()
        self._processor = _tidy(processor)
        self.slug = slugify(self.name)
        cache_size = torch.cuda.get_device_properties().L2_cache_size
        clear_cache = torch.empty(max(256 * _MIB, 2 * cache_size), dtype=torch.int8, device="cuda").zero_
        self.clocks: tuple[Clock, ...] = (EventClock(clear_cache), GraphClock(clear_cache))
        self.host_clock: Clock = WallClock("host", torch.cuda.synchronize)
        self.compile_modes = {"compile": "default", "compile_autotuned": "max-autotune-no-cudagraphs"}

    def describe(self) -> dict[str, Any]:
        properties = torch.cuda.get_device_properties()
        return {
            "type": self.type,
            "name": self.name,
            "driver": _driver_version(),
            "cuda": torch.version.cuda,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory": properties.total_memory,
            "l2_cache": properties.L2_cache_size,
            "host": self._processor,
        }

    def peak_memory(self, run: Run) -> int:
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def copy(self) -> tuple[Run, int]:
        return _copy("cuda", 1024 * _MIB)

    def release(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()


def open_device(device_type: str | None, processor: str) -> Device:
    """The device to measure on: a CUDA device where there is one, unless ``device_type`` says otherwise."""
    if device_type is None:
        device_type = "cuda" if torch.cuda.is_available() else "cpu"
    return Cuda(processor) if device_type == "cuda" else Cpu(processor)


def slugify(name: str) -> str:
    """A name for a folder: ``NVIDIA H200`` becomes ``nvidia-h200``."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _tidy(processor: str) -> str:
    """``Intel(R) Xeon(R) CPU @ 2.70GHz`` becomes ``Intel Xeon CPU``."""
    return " ".join(re.sub(r"\((R|TM)\)|@.*", "", processor, flags=re.IGNORECASE).split())


def _driver_version() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        return f"unknown ({type(error).__name__})"

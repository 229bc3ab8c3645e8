"""What ``accelerate`` shows: settings, progress, the table; and the JSON that holds all of it."""

import collections
import datetime
import importlib.util
import json
import os
import platform
import shutil
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import rich.box
import rich.progress
import torch
from rich.console import Console
from rich.table import Table

import sod_ops
from sod_ops.cli import machine
from sod_ops.cli.results import PHASES, Result, Settings

_LEAST_WIDTH = 140  # what the table takes; where nobody watches (a log, a file), there is no edge to keep within

_LEGEND = (
    "deviation: the largest of outputs and all gradients, between both models in float64; and of the outputs in the",
    "  measured dtype from the untouched model's in float64, with how far the untouched model's own are off.",
    "bound: the speed-up if the swapped modules cost nothing.",
    "memory: tensors alive at the peak of a training step, beyond the weights; before > after.",
)


class Progress:
    """A bar for each model while it is examined, and a line that stays when it is done."""

    def __init__(self, models: list[str]) -> None:
        self._bars = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(),
            rich.progress.TimeElapsedColumn(),
            console=_console(),
            transient=True,
        )
        self._models = iter(models)

    def __enter__(self) -> "Progress":
        self._bars.start()
        self._next()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()

    def stage(self, name: str) -> None:
        """What is being done to the current model, from now on."""
        self._bars.update(self._task, description=f"{self._model}: {name}", completed=0)

    def fraction(self, done: float) -> None:
        """How much of the current stage is done, 0 to 1."""
        self._bars.update(self._task, completed=done)

    def done(self, result: Result) -> None:
        """The current model is finished; the next one begins."""
        self._bars.remove_task(self._task)
        self._bars.console.print(
            f"{_summary(result)} ({time.monotonic() - self._begin:.0f} s)", markup=False, soft_wrap=True
        )
        self._next()

    def _next(self) -> None:
        self._begin = time.monotonic()
        self._model = next(self._models, "")
        if self._model:
            self._task = self._bars.add_task(self._model, total=1)


def show_settings(settings: Settings) -> None:
    """What runs, where, and under which conditions: before anything is measured."""
    backends = [name for name, reason in sod_ops.available_backends(settings.device).items() if reason is None]
    options = "".join(f", {name}" for name in ("channels_last", "compile") if getattr(settings, name))
    lines = [
        f"device     {_device_name(settings)}",
        f"software   sod_ops {sod_ops.__version__}, torch {torch.__version__}, backends {', '.join(backends)}",
        f"input      {','.join(map(str, settings.input))} {settings.dtype_name}{options}",
    ]
    if settings.device.type == "cpu":
        lines.append(f"allocator  {_allocator()}")
    print("\n".join(lines), end="\n\n", flush=True)


def show(results: list[Result], settings: Settings) -> None:
    """The table, then what needs more words than a cell holds."""
    console = _console()
    console.print(_table(results, settings))
    for line in _notes(results):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def write(results: list[Result], settings: Settings, out: Path) -> None:
    """Writes ``accelerate.json`` and, where matplotlib is installed, ``accelerate.png``."""
    path = out / "accelerate.json"
    path.write_text(json.dumps(as_json(results, settings), indent=1) + "\n")
    print(f"\nwritten: {path}")
    measured = [result for result in results if result.times]
    if not measured:
        return
    if importlib.util.find_spec("matplotlib") is None:
        print("no plot: it needs matplotlib (pip install matplotlib)")
    else:
        from sod_ops.cli import plot

        path = out / "accelerate.png"
        plot.draw(measured, _caption(settings), path)
        print(f"written: {path}")


def as_json(results: list[Result], settings: Settings) -> dict[str, Any]:
    """Everything that was measured, with what it takes to measure it again."""
    return {
        "command": ["python", "-m", "sod_ops", *settings.command],
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": machine.commit(),
        "versions": {
            "sod_ops": sod_ops.__version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "triton": machine.version_of("triton"),
        },
        "machine": {
            "cpu": machine.cpu_name(),
            "threads": machine.cpu_threads(),
            "gpus": machine.gpus(),
            "system": platform.platform(),
            "allocator": {name: os.environ.get(name) for name in machine.ALLOCATOR_SETTINGS},
        },
        "backends": sod_ops.available_backends(settings.device),
        "requested_backend": os.environ.get("SOD_OPS_BACKEND"),
        "settings": settings.as_json(),
        "models": [result.as_json() for result in results],
    }


def _console() -> Console:
    columns = shutil.get_terminal_size((_LEAST_WIDTH, 24)).columns
    return Console(width=columns if sys.stdout.isatty() else max(columns, _LEAST_WIDTH))


def _device_name(settings: Settings) -> str:
    if settings.device.type == "cuda":
        gpu = machine.gpus()[settings.device.index or 0]
        return f"{settings.device}: {gpu['name']} ({gpu['architecture']})"
    threads = torch.get_num_threads()
    return f"{machine.cpu_name()}, {threads} thread{'s' if threads != 1 else ''}"


def _allocator() -> str:
    if machine.lacks_allocator_settings():
        return "glibc's defaults: times include the kernel's handing out of fresh memory"
    settings = " ".join(f"{name}={os.environ[name]}" for name in machine.ALLOCATOR_SETTINGS if name in os.environ)
    return f"memory is kept and reused ({settings})" if settings else "the system's"


def _caption(settings: Settings) -> str:
    options = "".join(f", {name}" for name in ("channels_last", "compile") if getattr(settings, name))
    shape = "x".join(map(str, settings.input))
    return f"{_device_name(settings)}\n{shape} {settings.dtype_name}{options}, torch {torch.__version__}"


def _summary(result: Result) -> str:
    if result.fault is not None:
        return f"{result.model}: DIFFERS"
    if not result.swapped:
        return f"{result.model}: nothing to swap"
    gains = ", ".join(f"{name} {result.speed_up(phase)[1]:.2f}x" for phase, name in PHASES.items())
    return f"{result.model}: {len(result.swapped)} modules swapped, {gains}"


def _table(results: list[Result], settings: Settings) -> Table:
    """Two lines for each model: inference, and a training step."""
    table = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("model", overflow="fold")
    headings = (
        "swapped\n(left)",
        "deviation\nin float64",
        f"in {settings.dtype_name}\n(untouched)",
        "\n",
        "before\nms",
        "after\nms",
        "speed-up\n(quartiles)",
        "bound\n",
        "memory\nMB",
    )
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "\n" else "right", no_wrap=True)
    for result in results:
        verdict = result.verdict
        cells = [
            result.model,
            f"{len(result.swapped)} ({len(result.left)})",
            "-" if verdict is None else f"{verdict.function:.0e}",
            "-" if verdict is None else f"{verdict.output:.0e} ({verdict.own_output:.0e})",
        ]
        if not result.times:
            table.add_row(*cells, "DIFFERS" if result.fault else "nothing to swap")
            continue
        table.add_row(*cells, *_times(result, "forward"))
        memory = " > ".join(f"{result.memory[version] / 1e6:,.1f}" for version in ("before", "after"))
        table.add_row("", "", "", "", *_times(result, "step"), memory)
    return table


def _times(result: Result, phase: str) -> list[str]:
    low, middle, high = result.speed_up(phase)
    bound = result.bound(phase)
    return [
        PHASES[phase],
        f"{result.milliseconds(phase, 'before'):.4g}",
        f"{result.milliseconds(phase, 'after'):.4g}",
        f"{middle:.2f}x ({low:.2f}-{high:.2f})",
        "-" if bound is None else f"{bound:.2f}x",
    ]


def _notes(results: list[Result]) -> list[str]:
    notes = []
    for result in results:
        if result.fault is not None:
            notes.append(f"{result.model} DIFFERS from the untouched model: {result.fault}")
        elif not result.swapped:
            notes.append(f"{result.model}: there is nothing to swap in this model")
        reasons = collections.Counter((kind, reason) for _, kind, reason in result.left)
        notes += [f"{result.model}: left alone: {count} {kind}: {reason}" for (kind, reason), count in reasons.items()]
    if any(result.times for result in results):
        notes += _LEGEND
    return notes

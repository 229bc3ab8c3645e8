"""Where a training step's time goes, with fused ops and with their plain PyTorch definitions."""

import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from sod_trainer import Trainer

_PHASES = ("data", "augmentation", "forward", "loss", "backward", "optimiser")
# Kinds of operators by a part of their names.
_KINDS = {"sod_ops": "sod_ops::", "convolutions": "conv", "batch norms": "batch_norm", "AdamW": "adamw"}
_WARM = 3  # steps of each before the first that counts
UNCOUNTED = _WARM + 1  # and one that the profiler watches


def profile(trainers: dict[str, Trainer], batches: Iterator[tuple[Tensor, Tensor]], rounds: int) -> str:
    """Both take a step on each batch, in turn, so that whatever slows the machine down slows both; returns a table.

    Args:
        trainers: ``"fused"`` and ``"reference"``.
        batches: :data:`UNCOUNTED` more of them than ``rounds``.
        rounds: how many steps of each count.
    """
    device = trainers["fused"].ranks.device
    times: dict[str, list[list[float]]] = {name: [] for name in trainers}
    for i in range(rounds + _WARM):
        clock = _Clock(device)
        images, masks = next(batches)
        clock.mark("data")
        reading = clock.seconds["data"]
        order = list(trainers) if i % 2 else list(reversed(trainers))
        for name in order:
            clock = _Clock(device)
            trainers[name].step(images, masks, clock.mark)
            clock.seconds["data"] = reading
            times[name].append([clock.seconds[phase] for phase in _PHASES])
    fused, reference = (1000 * np.array(times[name][_WARM:]) for name in ("fused", "reference"))
    return _table(fused, reference) + "\n\n" + _operators(trainers["fused"], next(batches))


class _Clock:
    """Seconds from mark to mark, of the device's work, not of its queue."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self.last = self._now()

    def mark(self, phase: str) -> None:
        now = self._now()
        self.seconds[phase] = now - self.last
        self.last = now

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _table(fused: np.ndarray, reference: np.ndarray) -> str:
    """Medians of the phases, and the ratio of whole steps as the median and the 20th to 80th percentile of rounds."""
    lines = [f"{'phase, ms':<14}{'fused':>10}{'of step':>9}{'reference':>12}{'ratio':>8}"]
    whole = np.median(fused.sum(1))
    for name, ours, theirs in zip(_PHASES, fused.T, reference.T, strict=True):
        a, b = np.median(ours), np.median(theirs)
        lines.append(f"{name:<14}{a:>10.2f}{a / whole:>9.1%}{b:>12.2f}{b / a:>8.2f}")
    ratios = reference.sum(1) / fused.sum(1)
    low, middle, high = np.percentile(ratios, (20, 50, 80))
    lines.append(f"{'step':<14}{whole:>10.2f}{1:>9.1%}{np.median(reference.sum(1)):>12.2f}{middle:>8.2f}")
    lines.append(
        f"A fused step is {middle:.2f} times as fast ({low:.2f} to {high:.2f}, {len(ratios)} steps of each in turn)."
    )
    return "\n".join(lines)


def _operators(trainer: Trainer, batch: tuple[Tensor, Tensor]) -> str:
    """What kinds of operators a fused step's time goes to, and which take most of it."""
    on_gpu = trainer.ranks.device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        trainer.step(*batch)
    time_of = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    averages = profiler.key_averages()
    shares = dict.fromkeys((*_KINDS, "others"), 0.0)
    for event in averages:
        kind = next((kind for kind, part in _KINDS.items() if part in event.key), "others")
        shares[kind] += getattr(event, time_of)
    whole = sum(shares.values())
    kinds = ", ".join(f"{kind} {share / whole:.0%}" for kind, share in shares.items())
    table = averages.table(sort_by=time_of, row_limit=12, max_name_column_width=50)
    return f"Operators of one fused step: {kinds}\n{table}"

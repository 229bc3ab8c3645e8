"""What ``accelerate`` was asked to do, and what it found for each model."""

from dataclasses import dataclass, field
from typing import Any

import torch

from sod_ops.cli.measure import Samples, quartiles, speed_up
from sod_ops.cli.verify import Verdict

PHASES = {"forward": "forward", "step": "forward + backward"}


@dataclass(frozen=True)
class Settings:
    """How every model is run, and the words of the command line that said so."""

    command: tuple[str, ...]
    device: torch.device
    dtype: torch.dtype
    input: tuple[int, ...]
    channels_last: bool
    compile: bool
    seconds: float
    rounds: int | None

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def describe_input(self) -> str:
        layout = ", channels_last" if self.channels_last else ""
        return f"an input of {','.join(map(str, self.input))} ({self.dtype_name}{layout}, {self.device})"

    def as_json(self) -> dict[str, Any]:
        return {
            "device": str(self.device),
            "dtype": self.dtype_name,
            "input": list(self.input),
            "channels_last": self.channels_last,
            "compile": self.compile,
            "seconds": self.seconds if self.rounds is None else None,
            "rounds": self.rounds,
        }


@dataclass(frozen=True)
class Result:
    """One model.

    Attributes:
        swapped: (name, class name) of each module that was swapped.
        left: (name, class name, reason) of each that was left alone.
        verdict: the comparison with the untouched model; None where nothing was swapped or the model raised.
        fault: None, or why the accelerated model is not the same.
        times: seconds, by phase (a key of PHASES) and version: "before", "after" and "free", in which the swapped
            modules do nothing; "free" is missing where the model does not run without them.
        memory: bytes of tensors at the peak of a training step beyond weights, "before" and "after".
    """

    model: str
    swapped: list[tuple[str, str]]
    left: list[tuple[str, str, str]]
    verdict: Verdict | None = None
    fault: str | None = None
    times: dict[str, Samples] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)

    def milliseconds(self, phase: str, version: str) -> float:
        """The median time."""
        return 1e3 * quartiles(self.times[phase][version])[1]

    def speed_up(self, phase: str) -> tuple[float, float, float]:
        """Quartiles of time before over time after."""
        return speed_up(self.times[phase], "before", "after")

    def bound(self, phase: str) -> float | None:
        """The speed-up if the swapped modules cost nothing."""
        if "free" not in self.times[phase]:
            return None
        return speed_up(self.times[phase], "before", "free")[1]

    def as_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "swapped": [list(entry) for entry in self.swapped],
            "left": [list(entry) for entry in self.left],
            "fault": self.fault,
            "deviation": None if self.verdict is None else self.verdict.as_json(),
            "phases": {
                phase: {
                    "milliseconds": {version: self.milliseconds(phase, version) for version in samples},
                    "speed_up": dict(
                        zip(("first_quartile", "median", "third_quartile"), self.speed_up(phase), strict=True)
                    ),
                    "bound": self.bound(phase),
                    "samples_milliseconds": {
                        version: [round(1e3 * sample, 4) for sample in values] for version, values in samples.items()
                    },
                }
                for phase, samples in self.times.items()
            },
            "peak_memory_bytes": self.memory,
        }

"""Whether pyramid_conv2d's cost model chooses right: both forms of a branch's convolution, on a grid of shapes.

    python -m benchmarks.cost_of_upsampling [--seconds 0.5] > benchmarks/results/<device>/cost_of_upsampling.md

Times, on this machine's CPU, the plain form (upsample, concatenate, convolve) and the form at the branch's own size, in turn
and round after round. Prints a table, and fails where the one that the model chooses is more than 5 % slower than the other.
"""

import argparse
import sys
from functools import partial
from typing import NamedTuple
from unittest import mock

import cpuinfo
import numpy as np
import torch
from pytest_benchmark.utils import get_commit_info
from torch import Tensor

import sod_ops
from benchmarks import allocator, results, tables
from benchmarks.contest import FULL, Entrant, Rounds
from benchmarks.devices import Run, open_device
from sod_ops.ops import pyramid_conv2d as op
from sod_ops.ops._cost_of_upsampling import pays_before_upsampling

ALLOWED = 1.05


class Cell(NamedTuple):
    """x ``[2, channels, size, size]`` and a branch of ``branch_channels`` at ``size / factor``, to ``out_channels``."""

    channels: int
    branch_channels: int
    out_channels: int
    size: int
    factor: int
    mode: str

    def __str__(self) -> str:
        branch = f"{self.branch_channels}@{self.size // self.factor}"
        return f"2x{self.channels}x{self.size}x{self.size} + {branch} to {self.out_channels}, {self.mode}"

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        low = self.size // self.factor
        shapes = (
            (2, self.channels, self.size, self.size),
            (2, self.branch_channels, low, low),
            (self.out_channels, self.channels + self.branch_channels, 3, 3),
        )
        x, branch, weight = (torch.randn(shape, generator=generator).requires_grad_() for shape in shapes)
        return x, branch, weight


GRID = [
    Cell(c, b, o, size, factor, mode)
    for c, b, o, size in (
        (16, 16, 16, 160),
        (16, 32, 16, 160),
        (32, 64, 32, 160),
        (64, 64, 64, 80),
        (64, 128, 64, 80),
        (128, 256, 128, 40),
        (8, 8, 8, 160),
        (8, 16, 8, 160),
        (8, 64, 8, 160),
        (8, 8, 16, 160),
        (32, 16, 32, 160),
        (32, 8, 32, 320),
        (64, 8, 64, 80),
        (64, 16, 64, 80),
        (64, 24, 64, 80),
    )
    for factor in (2, 4)
    for mode in ("bilinear", "nearest")
]


def steps(cell: Cell, *, training: bool) -> dict[str, Run]:
    tensors = cell.tensors()
    grad = torch.randn(2, cell.out_channels, cell.size, cell.size)

    def step(own_size: bool) -> tuple[Tensor, ...]:
        x, branch, weight = tensors
        forced = mock.patch.object(op, "pays_before_upsampling", return_value=own_size)
        with forced, torch.set_grad_enabled(training):
            y = sod_ops.pyramid_conv2d(x, [branch], weight, mode=cell.mode)
            return torch.autograd.grad(y, tensors, grad) if training else (y,)

    return {"plain": partial(step, False), "own size": partial(step, True)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=0.5, help="for each line of the table; at least 15 rounds")
    options = parser.parse_args()
    allocator.restart_with("reused")
    device = open_device("cpu", cpuinfo.get_cpu_info().get("brand_raw", "CPU"))
    (clock,) = device.clocks
    slow = []
    origin = results.provenance(device, get_commit_info())
    print(f"{tables.origin(origin)}\n\n    {origin['command']}\n")
    print("| case | | plain, ms | own size, ms | chosen | its time over the better's |\n|---|---|---:|---:|---|---:|")
    for cell in GRID:
        _, branch, weight = cell.tensors()
        for training in (False, True):
            own_size = pays_before_upsampling(branch, weight, (cell.size, cell.size), training, cell.mode)
            chosen = "own size" if own_size else "plain"
            entrants = [Entrant(name, clock, run) for name, run in steps(cell, training=training).items()]
            rounds = Rounds(entrants, FULL["cpu"]._replace(seconds=options.seconds))
            for _ in range(rounds.warm_up()):
                rounds.round()
            times = {name: 1e3 * seconds for name, seconds in rounds.samples(clock.name).items()}
            medians = {name: float(np.median(some)) for name, some in times.items()}
            better = min(medians["plain"], medians["own size"])
            ratio = medians[chosen] / better
            kind = "forward + backward" if training else "forward"
            print(
                f"| {cell} | {kind} | {medians['plain']:.2f} | {medians['own size']:.2f} | {chosen} | {ratio:.2f} |",
                flush=True,
            )
            if ratio > ALLOWED:
                slow.append(f"{cell}, {kind}: {ratio:.2f}")
    for line in slow:
        print(f"slower than the better form by more than {ALLOWED - 1:.0%}: {line}", file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())

"""Formulas of csrc/math on plain numbers, which is what a CUDA kernel runs: small programs that tests ask (plain_math.h)."""

import os
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

# Of a dtype and what to compute: one result for each row of numbers, as a row.
Ask: TypeAlias = Callable[[torch.dtype, str, Iterable[Iterable[float]]], Tensor]


def compile_program(name: str, directory: Path) -> Ask:
    """Compiles tests/<name>.cpp; without contraction, like the package."""
    source, program = Path(__file__).with_name(f"{name}.cpp"), directory / name
    compiler = os.environ.get("CXX", "g++")
    subprocess.run([compiler, "-std=c++20", "-O2", "-ffp-contract=off", str(source), "-o", str(program)], check=True)

    def ask(dtype: torch.dtype, what: str, rows: Iterable[Iterable[float]]) -> Tensor:
        letter = "d" if dtype == torch.float64 else "s"
        numbers = (list(map(float.hex, row)) for row in rows)
        requests = "\n".join(f"{letter} {what} {len(row)} {' '.join(row)}" for row in numbers)
        done = subprocess.run([program], input=requests, capture_output=True, text=True, check=True)
        results = [[float.fromhex(n) for n in line.split()] for line in done.stdout.splitlines()]
        return torch.tensor(results, dtype=torch.float64).to(dtype)

    return ask

"""Says what is here: versions, the compiled part, backends (each is tried) and why one is missing, CPU, GPU, peers.

The exit code is 0 where every backend that is there works, otherwise 1.
"""

import argparse
import os
import platform
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

import sod_ops
from sod_ops import _extension
from sod_ops.cli import machine
from sod_ops.cli.errors import one_line
from sod_ops.cli.models import LIBRARIES
from sod_ops.reference.squeeze_excite import squeeze_excite as reference_squeeze_excite
from sod_ops.reference.tversky_loss import tversky_loss as reference_tversky_loss

_ENVIRONMENT = (
    "SOD_OPS_BACKEND",
    "TRITON_INTERPRET",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "LD_PRELOAD",
    *machine.ALLOCATOR_SETTINGS,
)

Rows = list[tuple[str, str]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The doctor takes no arguments of its own."""


def run(arguments: argparse.Namespace) -> int:
    sections: list[tuple[str, Rows]] = [
        ("Versions", _versions()),
        ("Compiled part", _compiled_part()),
        ("CPU", _cpu()),
        ("GPU", _gpu()),
    ]
    works = True
    for device in ("cpu", "cuda"):
        rows, device_works = _backends(device)
        sections.append((f"Backends for {device} tensors", rows))
        works = works and device_works
    sections.append(("Model libraries", [(name, _version(lib.distribution)) for name, lib in LIBRARIES.items()]))
    sections.append(("Environment", _environment()))
    print(_formatted(sections))
    return 0 if works else 1


def _versions() -> Rows:
    return [
        ("sod_ops", f"{sod_ops.__version__} in {Path(sod_ops.__file__).parent}"),
        ("commit", machine.commit() or "not in a checkout"),
        ("python", f"{platform.python_version()} at {sys.executable}"),
        ("torch", f"{torch.__version__}, {f'CUDA {torch.version.cuda}' if torch.version.cuda else 'without CUDA'}"),
        ("triton", _version("triton")),
        ("numpy", _version("numpy")),
        ("system", platform.platform()),
    ]


def _version(distribution: str) -> str:
    return machine.version_of(distribution) or "not installed"


def _compiled_part() -> Rows:
    info = _extension.build_info()
    if info is None:
        return [("missing", _extension.why_missing() or "")]
    return [
        ("compiler", info["compiler"]),
        ("instruction sets", ", ".join(info["instruction_sets"])),
        ("chosen here", info["instruction_set"]),
        ("CUDA architectures", ", ".join(info["cuda_architectures"]) or "none: built without CUDA"),
    ]


def _cpu() -> Rows:
    threads = machine.cpu_threads()
    return [
        ("name", machine.cpu_name()),
        ("processors", f"{threads['processors']}, of which {threads['usable']} may be used here"),
        ("torch threads", str(threads["torch"])),
    ]


def _gpu() -> Rows:
    return [
        (
            f"cuda:{i}",
            f"{gpu['name']}, {gpu['architecture']}, {gpu['memory_gib']} GiB, driver {gpu['driver'] or 'unknown'}",
        )
        for i, gpu in enumerate(machine.gpus())
    ] or [("none", "torch sees no CUDA device")]


def _backends(device: str) -> tuple[Rows, bool]:
    """A row for each backend on the device, and whether all that are there work."""
    rows: Rows = []
    works = True
    for name, reason in sod_ops.available_backends(device).items():
        if reason is not None:
            rows.append((name, f"missing: {reason}"))
        elif device == "cuda" and not torch.cuda.is_available():
            rows.append((name, "there, but no CUDA device is available to try it"))
        else:
            fault = _fault(name, device)
            rows.append((name, "works" if fault is None else f"FAILS: {fault}"))
            works = works and fault is None
    return rows, works


def _fault(backend: str, device: str) -> str | None:
    """What goes wrong when an op runs forward and backward on a backend, or None."""
    generator = torch.Generator().manual_seed(0)
    op: Callable[..., Tensor] = sod_ops.squeeze_excite
    plain: Callable[..., Tensor] = reference_squeeze_excite
    shapes: tuple[tuple[int, ...], ...] = ((2, 8, 5, 5), (4, 8), (4,), (8, 4), (8,))
    if backend == "cuda":  # a loss, which it serves on every GPU; squeeze_excite only from compute capability 9.0 on
        op, plain, shapes = _iou_loss, _plain_iou_loss, ((2, 1, 5, 5),)
    inputs = [torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in shapes]
    expected = plain(*inputs)
    expected_gradients = torch.autograd.grad(expected.square().sum(), inputs)
    try:
        with sod_ops.use_backend(backend):
            got = op(*inputs)
            gradients = torch.autograd.grad(got.square().sum(), inputs)
        for actual, exact in zip((got, *gradients), (expected, *expected_gradients), strict=True):
            torch.testing.assert_close(actual, exact)
    except Exception as error:  # whatever a broken installation raises is what the report is for
        return one_line(error)
    return None


def _iou_loss(logits: Tensor) -> Tensor:
    return sod_ops.iou_loss(logits, (logits.detach() > 0.5).float())


def _plain_iou_loss(logits: Tensor) -> Tensor:
    return reference_tversky_loss((logits,), (logits.detach() > 0.5).float(), 1.0, 1.0, 1.0, (1.0,), "mean")


def _environment() -> Rows:
    return [(name, os.environ[name]) for name in _ENVIRONMENT if name in os.environ] or [
        ("none", "no variable that matters is set")
    ]


def _formatted(sections: Iterable[tuple[str, Rows]]) -> str:
    sections = list(sections)
    width = max(len(key) for _, rows in sections for key, _ in rows)
    blocks = ["\n".join([title, *(f"  {key:<{width}}  {value}" for key, value in rows)]) for title, rows in sections]
    return "\n\n".join(blocks)

"""The results of one run as JSON: one file for each op, with what is needed to judge and repeat it.

    results/<device>/<op>.json

holds ``op``, ``peer``, ``device``, ``threads``, ``backend`` (ours), ``backends`` (why each is missing, or null),
``versions``, ``commit``, ``date``, ``allocator``, ``command``, ``load_average`` (at the start), ``complete`` (every
case was measured), ``quick`` (too few rounds to be quoted) and ``results``: for each case and mode what
:mod:`benchmarks.contest` found. Times are in seconds, memory is in bytes.
"""

import importlib.metadata
import json
import os
import platform
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import sod_ops
from benchmarks import allocator
from benchmarks.devices import Device

DIRECTORY = Path(__file__).parent / "results"


def provenance(device: Device, commit: dict[str, Any]) -> dict[str, Any]:
    """What a run's figures depend on, apart from the op."""
    return {
        "device": device.describe(),
        "threads": torch.get_num_threads(),
        "backend": os.environ.get("SOD_OPS_BACKEND", "auto"),
        "backends": sod_ops.available_backends(device.type),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "sod_ops": sod_ops.__version__,
            **{name: _version(name) for name in ("triton", "torchvision", "timm")},
        },
        "commit": {"id": commit["id"], "dirty": commit["dirty"]},
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "allocator": allocator.settings(),
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "load_average": os.getloadavg()[0],
    }


def write(path: Path, document: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_rounded(document), indent=1) + "\n")


def read(directory: Path) -> list[dict[str, Any]]:
    """The documents in a device's folder, in the order of the ops' names."""
    return [json.loads(path.read_text()) for path in sorted(directory.glob("*.json"))]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _rounded(value: Any) -> Any:
    """Five digits of every float: the rest is noise."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    return value

"""Facts about this machine and this installation, for the doctor and beside every measurement."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import torch

import sod_ops

# With glibc's defaults every large result is mapped afresh, zeroed and page-faulted by the kernel at each call, which
# times the kernel and not the operator (one eager function took 47 and 13 ms in turn; with these, 9.1 and 8.9).
ALLOCATOR_SETTINGS = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}


def version_of(distribution: str) -> str | None:
    """The installed version, without importing the package; None where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_threads() -> dict[str, int]:
    """Logical processors of the machine, those that this process may use, and the threads that PyTorch takes."""
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return {"processors": os.cpu_count() or 1, "usable": len(affinity), "torch": torch.get_num_threads()}


def gpus() -> list[dict[str, Any]]:
    """Name, architecture, memory in GiB and driver of every CUDA device."""
    if not torch.cuda.is_available():
        return []
    driver = _driver()
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            {
                "name": properties.name,
                "architecture": f"sm_{properties.major}{properties.minor}",
                "memory_gib": round(properties.total_memory / 2**30, 1),
                "driver": driver,
            }
        )
    return found


def commit() -> str | None:
    """The commit of the checkout that the package is in, marked where files differ from it; None outside of one."""
    root = Path(sod_ops.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    return _output_of("git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")


def lacks_allocator_settings() -> bool:
    """Whether the settings are missing from the process's environment and would matter there: only glibc reads them."""
    return platform.libc_ver()[0] == "glibc" and not ALLOCATOR_SETTINGS.keys() <= os.environ.keys()


def restart_with_allocator_settings() -> NoReturn:
    """Replaces this process by the same command, which glibc then starts with the settings.

    It finds them in its environment and so does not come here again. Values that the user has set are kept.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    environment = {**ALLOCATOR_SETTINGS, **os.environ}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _cpuinfo(field: str) -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), None)


def _driver() -> str | None:
    answer = _output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return answer.splitlines()[0] if answer else None


def _output_of(program: str, *arguments: str) -> str | None:
    """What a program prints, or None where it is missing, fails or hangs."""
    path = shutil.which(program)
    if path is None:
        return None
    try:
        done = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()

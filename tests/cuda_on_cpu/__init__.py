"""The kernels of csrc/cuda compiled for the CPU, where cuda_runtime.h plays the part of a GPU: what they compute is then
tested on every machine.

The sources are copied and compiled as they are, but for two things: launch.h, the one place where kernels are launched, is
replaced, and the operators are called ``sod_ops_cuda_on_cpu::<name>`` and registered for the CPU.
"""

import ctypes
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
NAMESPACE = "sod_ops_cuda_on_cpu"


def build(ops: Sequence[str], directory: Path) -> Path:
    """Compiles csrc/cuda/<op>.cu for each of ``ops`` and loads their operators; returns the library's path."""
    sources = directory / "csrc"
    shutil.copytree(CSRC, sources)
    shutil.copy(HERE / "launch.h", sources / "cuda" / "launch.h")
    schemas = (
        (CSRC / "schemas.cpp")
        .read_text()
        .replace("STABLE_TORCH_LIBRARY(sod_ops,", f"STABLE_TORCH_LIBRARY({NAMESPACE},")
    )
    (sources / "schemas.cpp").write_text(schemas)
    for op in ops:
        kernels = (CSRC / "cuda" / f"{op}.cu").read_text()
        registered = kernels.replace("_IMPL(sod_ops, CUDA, m)", f"_IMPL({NAMESPACE}, CPU, m)")
        assert registered != kernels, op
        (sources / "cuda" / f"{op}.cpp").write_text(registered)
    root = Path(torch.__file__).parent
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    flags = ["-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off"]
    includes = [f"-I{HERE}", "-include", "cuda_runtime.h", "-isystem", str(root / "include")]
    link = [f"-L{root / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{root / 'lib'}"]

    def compiled(source: Path) -> str:
        target = str(source.with_suffix(".o"))
        subprocess.run([*compiler, *flags, *includes, "-c", str(source), "-o", target], check=True)
        return target

    files = [sources / "schemas.cpp", *(sources / "cuda" / f"{op}.cpp" for op in ops)]
    library = directory / "cuda_on_cpu.so"
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        subprocess.run([*compiler, "-shared", *pool.map(compiled, files), "-o", str(library), *link], check=True)
    torch.ops.load_library(library)
    return library


def blocks_in_the_latest_cluster(library: Path) -> int:
    """How many blocks the clusters of the latest launch by clusters had."""
    return ctypes.c_int.in_dll(ctypes.CDLL(str(library)), "cuda_on_cpu_cluster").value

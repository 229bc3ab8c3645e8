"""Builds sod_ops._C with ninja: C++ kernels for the CPU and, where torch has CUDA and nvcc is there, CUDA kernels.

SOD_OPS_CUDA=0 or 1 forbids or forces the CUDA part, TORCH_CUDA_ARCH_LIST says for which architectures. A part that cannot be
built is left out with a message: without CUDA kernels Triton serves the GPU, without any the PyTorch reference does.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CSRC = Path(__file__).resolve().parent / "csrc"
# No contraction: a * b - c rounds the product, as torch's own does; fused, the difference of equal products is not 0.
CXX_FLAGS = "-std=c++20 -O3 -ffp-contract=off -fPIC -fvisibility=hidden -g0 -Wall -Wno-unknown-pragmas -Wno-psabi"
SIMD_FLAGS = {
    "DEFAULT": "-DCPU_CAPABILITY=DEFAULT",
    "AVX2": "-mavx2 -mfma -mf16c -DCPU_CAPABILITY=AVX2 -DCPU_CAPABILITY_AVX2",
    "AVX512": "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c -DCPU_CAPABILITY=AVX512 -DCPU_CAPABILITY_AVX512"
    " -Wno-uninitialized -Wno-maybe-uninitialized",
}


def cuda_home() -> Path | None:
    """The CUDA toolkit, as nvcc itself names it: its path alone misleads where it is a wrapper script."""
    nvcc = shutil.which("nvcc") or next(map(str, Path("/usr/local").glob("cuda*/bin/nvcc")), None)
    if os.environ.get("CUDA_HOME") or nvcc is None:
        return Path(os.environ["CUDA_HOME"]) if os.environ.get("CUDA_HOME") else None
    dry_run = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True)
    top = re.search(r"TOP=(.*)", dry_run.stderr)
    return Path(top[1]).resolve() if top else None


def cuda_architectures() -> list[str]:
    """Compute capabilities without the dot: from TORCH_CUDA_ARCH_LIST, or all that are supported."""
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST") or "7.5;8.0;9.0;10.0;12.0"
    return [item.removesuffix("+PTX").replace(".", "") for item in re.split(r"[;, ]+", wanted) if item]


def escape(path: Path) -> str:  # as ninja's syntax wants it
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


class Build(build_ext):
    def build_extension(self, ext: Extension) -> None:
        import torch

        with_cuda = os.environ.get("SOD_OPS_CUDA", "1" if torch.version.cuda else "0") == "1"
        toolkit = cuda_home() if with_cuda and list(CSRC.glob("cuda/*.cu")) else None
        for cuda in [toolkit, None] if toolkit else [None]:
            try:
                self.run_ninja(ext, cuda)
                break
            except subprocess.CalledProcessError as error:
                print(f"sod_ops: the {'CUDA' if cuda else 'C++'} part was not built: {error}", file=sys.stderr)

    def run_ninja(self, ext: Extension, cuda: Path | None) -> None:
        import pybind11
        import torch

        root = Path(torch.__file__).parent
        includes = (root / "include", pybind11.get_include(), sysconfig.get_path("include"))
        architectures = cuda_architectures() if cuda else []
        defines = f"-DSOD_OPS_TORCH_VERSION={torch.__version__} -DSOD_OPS_CUDA_ARCHITECTURES={','.join(architectures)}"
        flags = " ".join(f"-isystem {shlex.quote(str(path))}" for path in includes) + " " + defines
        simd_flags = {k: v for k, v in SIMD_FLAGS.items() if k == "DEFAULT" or os.uname().machine == "x86_64"}
        edges = [(source, "cxx", "", "") for source in [*CSRC.glob("*.cpp"), *CSRC.glob("cpu/*.cpp")]]
        edges += [(s, "cxx", name, simd) for s in CSRC.glob("simd/*.cpp") for name, simd in simd_flags.items()]
        edges += [(source, "nvcc", "", "") for source in CSRC.glob("cuda/*.cu") if cuda]
        targets = " ".join(f"-gencode arch=compute_{a},code=sm_{a}" for a in architectures)
        # and PTX for what comes after the newest
        targets += "".join(f" -gencode arch=compute_{a},code=compute_{a}" for a in architectures[-1:])
        libraries = f"-L{cuda / 'lib64'} -lcudart -ltorch_cuda" if cuda else ""
        link = f"-L{shlex.quote(str(root / 'lib'))} -ltorch -ltorch_cpu -lc10 {libraries}"
        output, build = Path(self.get_ext_fullpath(ext.name)).resolve(), Path(self.build_temp).resolve()
        nvcc = f"{cuda}/bin/nvcc -std=c++20 -O3 -DUSE_CUDA --threads 0 {targets} -Xcompiler -fPIC,-fvisibility=hidden"
        cxx, tail = os.environ.get("CXX", "g++"), "-MMD -MF $out.d -c $in -o $out\n  depfile = $out.d"
        lines = [
            f"rule cxx\n  command = {cxx} {CXX_FLAGS} {flags} $simd {tail}\n  description = compile $in $simd",
            f"rule nvcc\n  command = {nvcc} {flags} {tail}\n  description = compile $in",
            f"rule link\n  command = {cxx} -shared $in -o $out {link}\n  description = link $out",
        ]
        objects: list[str] = []
        for source, rule, name, simd in edges:
            objects.append(escape(build / source.parent.name / f"{source.stem}{name}{source.suffix}.o"))
            lines.append(f"build {objects[-1]}: {rule} {escape(source)}\n  simd = {simd}")
        lines.append(f"build {escape(output)}: link {' '.join(objects)}")
        self.mkpath(str(build))
        (build / "build.ninja").write_text("\n".join(lines) + "\n")
        subprocess.run([sys.executable, "-m", "ninja", "-C", str(build)], check=True)


setup(ext_modules=[Extension("sod_ops._C", [], optional=True)], cmdclass={"build_ext": Build})

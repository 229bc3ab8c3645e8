"""Compiles every Triton kernel of the package for real architectures, without a GPU, and fails on what would not do.

    python tests/aot.py [--architectures 75 80] [--kernels pool_kernel] [--max-registers N]

Run it without TRITON_INTERPRET. Each module in sod_ops/triton that launches kernels has ``ahead_of_time_cases()``: it
yields calls of its launchers, as pairs of a function and its arguments, with tensors on the meta device. The calls are
made here, with the kernels replaced by recorders, so what is compiled is what the launchers launch: the same block
sizes, the same number of warps. A failure is a compiler error, a spill (registers that go to memory), too much shared
memory, floating-point atomics, or a kernel (a @triton.jit function whose name ends in _kernel) that no case launches.
"""

import argparse
import importlib
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

import sod_ops.triton

# Compute capabilities, and the shared memory that one program can have there: bytes.
ARCHITECTURES = {75: 65536, 80: 166912, 90: 232448, 100: 232448, 120: 101376}
TYPES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.uint8: "u8",
    torch.int8: "i8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
}


@dataclass(frozen=True)
class Variant:
    """A kernel with everything that decides how it is compiled."""

    module: str
    kernel: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    num_warps: int

    def __str__(self) -> str:
        pointers = [kind for _, kind in self.signature if kind.startswith("*")]
        constants = [f"{name}={value}" for name, value in self.constants]
        return f"{self.kernel}({', '.join(pointers)}; {', '.join(constants)}; {self.num_warps} warps)"


@dataclass
class Recorder:
    """Stands in for a kernel: takes down what it is launched with."""

    kernel: JITFunction
    variants: set[Variant] = field(default_factory=set)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self._record

    def _record(self, *arguments: Any, num_warps: int = 4, **constants: Any) -> None:
        names = [parameter.name for parameter in self.kernel.params]
        values = dict(zip(names, arguments, strict=False)) | constants
        signature = {p.name: _type_of(values[p.name], p) for p in self.kernel.params}
        fixed = {name: values[name] for name, kind in signature.items() if kind == "constexpr"}
        self.variants.add(
            Variant(self.kernel.module, self.kernel.__name__, tuple(signature.items()), tuple(fixed.items()), num_warps)
        )


def _type_of(value: Any, parameter: Any) -> str:
    if parameter.is_constexpr or value is None:
        return "constexpr"
    if isinstance(value, torch.Tensor):
        return f"*{TYPES[value.dtype]}"
    if parameter.annotation_type and parameter.do_not_specialize:
        return str(parameter.annotation_type)
    raise TypeError(f"{parameter.name}: give it a type and name it in do_not_specialize, or its size is compiled in")


def kernels_of(module: ModuleType) -> dict[str, JITFunction]:
    """The kernels that a module defines or imports."""
    return {name: value for name, value in vars(module).items() if name.endswith("_kernel")}


def record() -> tuple[list[Variant], list[str]]:
    """Every variant that the cases of all modules launch, and the names of kernels that none launches."""
    names = [info.name for info in pkgutil.iter_modules(sod_ops.triton.__path__, "sod_ops.triton.")]
    modules = [importlib.import_module(name) for name in names]
    recorders = {name: Recorder(kernel) for module in modules for name, kernel in kernels_of(module).items()}
    for module in modules:
        if hasattr(module, "ahead_of_time_cases"):
            with mock.patch.multiple(module, **{name: recorders[name] for name in kernels_of(module)}):
                for launcher, arguments in module.ahead_of_time_cases():
                    launcher(*arguments)
    variants = sorted({variant for recorder in recorders.values() for variant in recorder.variants}, key=str)
    return variants, [name for name, recorder in recorders.items() if not recorder.variants]


@dataclass(frozen=True)
class Outcome:
    """What became of a variant: what is wrong with it (empty: nothing), registers a thread, bytes of shared memory."""

    problem: str
    registers: int = 0
    shared: int = 0


def compile_variant(variant: Variant, architecture: int, max_registers: int | None) -> Outcome:
    """Compiles for one architecture, as Triton does at a launch."""
    kernel = getattr(importlib.import_module(variant.module), variant.kernel)
    position = {name: i for i, name in enumerate(kernel.arg_names)}
    source = ASTSource(
        fn=kernel,
        signature=dict(variant.signature),
        constexprs={(position[name],): value for name, value in variant.constants},
        # Triton compiles for whether a pointer is divisible by 16, which PyTorch's allocations are.
        attrs={
            (position[name],): [["tt.divisibility", 16]] for name, kind in variant.signature if kind.startswith("*")
        },
    )
    options = {"num_warps": variant.num_warps} | ({} if max_registers is None else {"maxnreg": max_registers})
    try:
        compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    except Exception as error:  # the compiler's errors have no common class; each is a finding
        return Outcome(f"{type(error).__name__}: {error}")
    usage = resource_usage(compiled.asm["cubin"])
    spilled = usage["STACK"] + usage["LOCAL"]
    shared = compiled.metadata.shared
    problem = ""
    if spilled:
        problem = f"spills {spilled} bytes a thread"
    elif shared > ARCHITECTURES[architecture]:
        problem = f"needs {shared} bytes of shared memory, there are {ARCHITECTURES[architecture]}"
    elif re.search(r"\b(atom|red)\.\S*\.(b?f16|f32|f64)", compiled.asm["ptx"]):
        problem = "adds floating-point numbers atomically, in an order that changes from run to run"
    return Outcome(problem, usage["REG"], shared)


def resource_usage(cubin: bytes) -> dict[str, int]:
    """REG, STACK, SHARED, LOCAL and more, as cuobjdump reports them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in re.findall(r"([A-Z]+):(\d+)", report)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--architectures", type=int, nargs="+", default=list(ARCHITECTURES), choices=ARCHITECTURES)
    parser.add_argument("--kernels", nargs="+", metavar="NAME", help="only these")
    parser.add_argument(
        "--max-registers", type=int, metavar="N", help="a limit for every thread; a low one ends in spills"
    )
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()

    variants, problems = record()
    problems = [f"{name}: no ahead_of_time_cases() launches it" for name in problems]
    if options.kernels:
        variants = [variant for variant in variants if variant.kernel in options.kernels]
    jobs = [(variant, architecture) for variant in variants for architecture in options.architectures]
    with ProcessPoolExecutor(options.processes) as pool:
        outcomes = list(pool.map(compile_variant, *zip(*jobs, strict=True), [options.max_registers] * len(jobs)))
    for (variant, architecture), outcome in zip(jobs, outcomes, strict=True):
        print(f"sm_{architecture} {outcome.registers:4} registers {outcome.shared:6} bytes shared  {variant}")
        if outcome.problem:
            problems.append(f"sm_{architecture} {variant}: {outcome.problem}")
    for problem in problems:
        print(f"FAILED {problem}", file=sys.stderr)
    print(f"{len(jobs)} compiled, {len(problems)} failed")
    return 1 if problems or not jobs else 0


if __name__ == "__main__":
    sys.exit(main())

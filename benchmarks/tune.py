"""Times the block sizes and warps that an op's Triton kernels could have: one of them halved or doubled at a time.

    python -m benchmarks.tune squeeze_excite gate    these ops' first cases of a GPU, forward + backward
    python -m benchmarks.tune                        every op's first case

Each version is verified against the reference before it is timed, by triton.testing.do_bench. What is printed are rows for
the table of NOTES.md; a version that is better on all of an op's cases belongs into the constants of sod_ops/triton.
"""

import argparse
import contextlib
import importlib
import pkgutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

import sod_ops.triton
from benchmarks import tables
from benchmarks.contest import Case, describe_error, prepare_ours
from benchmarks.devices import Run

_WALKS = ("_planes._TILE", "_planes._NARROW_TILE", "_planes._PROGRAMS", "_planes._CHANNELS_TOGETHER")
_HEADS = ("_heads._TILE", "_heads._WIDEST")
# What decides an op's block sizes, as file.constant in sod_ops/triton: an op adds a line.
TUNABLE: dict[str, tuple[str, ...]] = {
    "adaptive_pixel_intensity_loss": (*_HEADS, "_box_sums._TILE"),
    "bce_ssim_iou_loss": ("_similarity._TILE", "_similarity._WORKSPACE"),
    "box_filter": ("_box_sums._TILE",),
    "box_iou_loss": ("box_iou_loss._ALONE",),
    "channel_pool": ("_planes._NARROW_TILE", "_planes._PROGRAMS"),
    "complete_box_iou": ("complete_box_iou._COLUMNS", "complete_box_iou._MINE", "complete_box_iou._OTHERS"),
    "copy_paste": ("copy_paste._BLOCK", "copy_paste._TILE", "_lines._TILE"),
    "cutmix": ("_lines._TILE",),
    "gate": _WALKS,
    "global_pool": (*_WALKS, "global_pool._CHANNELS"),
    "pyramid_conv2d": ("pyramid_conv2d._BLOCK_C", "pyramid_conv2d._BLOCK_P"),
    "pyramid_pool": ("pyramid_pool._TILE", "pyramid_pool._CHANNELS", "pyramid_pool._TALLEST_CELL"),
    "pyramid_upsample_concat": ("pyramid_upsample_concat._TILE",),
    "scse": _WALKS,
    "sigmoid_focal_loss": ("_rows._TILE", "_rows._NARROW_TILE"),
    "softmax_focal_loss": ("softmax_focal_loss._TILE", "softmax_focal_loss._LOOP_TILE"),
    "squeeze_excite": (*_WALKS, "squeeze_excite._REREAD_LIMIT"),
    "ssim": ("_similarity._TILE", "_similarity._WORKSPACE"),
    "structure_loss": (*_HEADS, "_box_sums._TILE"),
    "tversky_loss": _HEADS,
}


@dataclass(frozen=True)
class Version:
    """One constant at another value, or every kernel with more or fewer warps."""

    name: str
    constant: str | None = None
    value: int = 0
    warps: float = 1.0


@dataclass(frozen=True)
class Timing:
    version: Version
    seconds: float | None  # None: it fails
    error: str = ""


def versions(op: str) -> Iterator[Version]:
    """The kernels as they are, then every other."""
    yield Version("as they are")
    for constant in TUNABLE[op]:
        module, name = _find(constant)
        for value in (getattr(module, name) // 2, getattr(module, name) * 2):
            yield Version(f"{constant} = {value}", constant, value)
    for factor in (0.5, 2.0):
        yield Version(f"warps times {factor:g}", warps=factor)


@contextlib.contextmanager
def applied(version: Version) -> Iterator[None]:
    """The kernels in that version; plans that were made with other constants are forgotten."""
    with contextlib.ExitStack() as undo:
        undo.callback(_forget_plans)
        if version.constant is not None:
            module, name = _find(version.constant)
            undo.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, version.value)
        if version.warps != 1:
            _scale_warps(version.warps, undo)
        _forget_plans()
        yield


def tune(op: str, case: Case, device_type: str) -> list[Timing]:
    """Verifies and times every version of an op's kernels on a case, forward + backward.

    Raises:
        WrongResultError: the kernels as they are do not compute what the reference computes.
    """
    timings: list[Timing] = []
    with sod_ops.use_backend("triton"):
        run, check = prepare_ours(case, device_type)
        for version in versions(op):
            try:
                with applied(version):
                    check()
                    timings.append(Timing(version, _seconds(run, device_type)))
            except Exception as error:
                if not timings:
                    raise
                timings.append(Timing(version, None, describe_error(error)))
    return timings


def rows(op: str, case: Case, timings: list[Timing]) -> list[list[str]]:
    """Fastest first; those that fail last."""
    present = timings[0].seconds or 0.0
    done = sorted((t for t in timings if t.seconds is not None), key=lambda timing: timing.seconds or 0.0)
    lines = [
        [op, case.name, t.version.name, tables.three_digits(1e6 * t.seconds), f"{t.seconds / present:.2f}"]
        for t in done
        if t.seconds is not None
    ]
    return lines + [[op, case.name, t.version.name, "-", f"`{t.error}`"] for t in timings if t.seconds is None]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=__doc__.partition("\n")[0])
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"of {', '.join(TUNABLE)}; default: all")
    parser.add_argument("--cases", type=int, help="how many of each op's cases (default: 4, of several ops 1)")
    options = parser.parse_args(arguments)
    for op in options.ops:
        if op not in TUNABLE:
            parser.error(f"{op} has no Triton kernels of its own: OP is one of {', '.join(TUNABLE)}")
    if not torch.cuda.is_available():
        parser.error("there is no GPU to tune for")
    torch.backends.cudnn.allow_tf32 = False
    ops = options.ops or list(TUNABLE)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    failed = False
    for op in ops:
        for case in importlib.import_module(f"benchmarks.bench_{op}").CASES["cuda"][
            : options.cases or 4 // len(ops) or 1
        ]:
            try:
                lines = rows(op, case, tune(op, case, "cuda"))
            except Exception as error:
                lines, failed = [[op, case.name, "as they are", "-", f"`{describe_error(error)}`"]], True
            header = ["op", "case", "version", "µs", "of the present time"]
            print("\n".join(["", *tables.table(header, lines)]), flush=True)
    return int(failed)


def _find(constant: str) -> tuple[Any, str]:
    module, _, name = constant.partition(".")
    return importlib.import_module(f"sod_ops.triton.{module}"), name


def _forget_plans() -> None:
    for info in pkgutil.iter_modules(sod_ops.triton.__path__, "sod_ops.triton."):
        for value in vars(sys.modules.get(info.name, sod_ops.triton)).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()


def _scale_warps(factor: float, undo: contextlib.ExitStack) -> None:
    """Every launch with more or fewer warps, within 1 and 16. In the interpreter there are none."""
    from triton.runtime.jit import JITFunction

    launch: Any = JITFunction.run

    def scaled(self: Any, *arguments: Any, num_warps: int = 4, **constants: Any) -> Any:
        return launch(self, *arguments, num_warps=min(16, max(1, int(num_warps * factor))), **constants)

    undo.callback(setattr, JITFunction, "run", launch)
    JITFunction.run = scaled


def _seconds(run: Run, device_type: str) -> float:
    """The median of a call's times; on a CPU, where there is nothing to tune, one call's."""
    if device_type == "cuda":
        from triton.testing import do_bench

        return float(do_bench(run, warmup=10, rep=50, return_mode="median")) * 1e-3
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())

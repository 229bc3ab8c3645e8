"""Swaps a model's blocks for fused ones, proves that nothing else changed, and times what that won.

Every MODEL is built with random weights and compared with an untouched copy: the outputs, and the gradient of every
parameter and of the input. Then both are timed in turn, and beside them a third copy in which the swapped blocks do
nothing at all: its speed-up is the bound that no kernel for these blocks can pass. Results go to a table, a plot (PNG)
and a JSON file. The exit code is 1 where an accelerated model differs from the untouched one.

MODEL is one of
  timm:seresnet50
  torchvision:efficientnet_b0
  smp:Unet                     segmentation_models_pytorch
  package.module:callable      the callable returns a torch.nn.Module
with keyword arguments in parentheses (quote them in a shell):
  'smp:Unet(encoder_name=timm-efficientnet-b0, decoder_attention_type=scse)'
"""

import argparse
import contextlib
import copy
import dataclasses
import importlib.util
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import sod_ops
from sod_ops.cli import machine, measure, models
from sod_ops.cli.errors import UsageError, one_line
from sod_ops.cli.results import PHASES, Result, Settings
from sod_ops.cli.verify import Contestant, SwapError, cotangents, floating_outputs, raising, verify

if TYPE_CHECKING:  # it needs rich, which need not be there
    from sod_ops.cli.present import Progress

_DTYPES = ("float32", "bfloat16", "float16", "float64")
# Sizes at which the four models of `make run` take two minutes on two CPU cores, and fill a GPU.
_DEFAULT_INPUT = {"cpu": (4, 3, 160, 160), "cuda": (32, 3, 224, 224)}
_DEFAULT_SECONDS = 20.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    sizes = ", ".join(f"{','.join(map(str, shape))} on {device}" for device, shape in _DEFAULT_INPUT.items())
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--input", type=_shape, metavar="N,C,H,W", help=f"shape of the input (default: {sizes})")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where there is one)")
    parser.add_argument("--dtype", choices=_DTYPES, default="float32", help="of weights and input (default: float32)")
    parser.add_argument("--channels-last", action="store_true", help="weights and input in channels_last memory format")
    parser.add_argument("--compile", action="store_true", help="compare under torch.compile, before and after")
    duration = parser.add_mutually_exclusive_group()
    duration.add_argument(
        "--seconds", type=_seconds, default=_DEFAULT_SECONDS, help="of timing per model (default: %(default)g)"
    )
    duration.add_argument("--rounds", type=_rounds, help="of timing per model, instead of --seconds")
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="for PNG and JSON (default: out)")


def run(arguments: argparse.Namespace) -> int:
    if importlib.util.find_spec("rich") is None:
        raise UsageError("the table and the progress bar need rich: pip install rich")
    device = _device(arguments.device)
    if device.type == "cpu" and arguments.may_restart and machine.lacks_allocator_settings():
        machine.restart_with_allocator_settings()
    _check_backend(device)
    settings = Settings(
        command=tuple(arguments.words),
        device=device,
        dtype=getattr(torch, arguments.dtype),
        input=arguments.input or _DEFAULT_INPUT[device.type],
        channels_last=arguments.channels_last,
        compile=arguments.compile,
        seconds=arguments.seconds,
        rounds=arguments.rounds,
    )
    _check_writable(arguments.out)
    builders = {name: models.resolve(name) for name in dict.fromkeys(arguments.models)}
    # All are built and tried before the first is measured: a mistake in the last one shows now, not in minutes.
    prepared = {name: _prepare(name, build, settings) for name, build in builders.items()}

    from sod_ops.cli import present

    present.show_settings(settings)
    results: list[Result] = []
    try:
        with present.Progress(list(prepared)) as progress:
            for name in builders:
                with _room_to_compile() if settings.compile else contextlib.nullcontext():
                    result = _examine(name, *prepared.pop(name), settings, progress)
                progress.done(result)
                results.append(result)
    finally:  # an interruption or a model that fails costs its own figures, not those before it
        if results:
            present.show(results, settings)
            present.write(results, settings, arguments.out)
    return 1 if any(result.fault for result in results) else 0


def _prepare(name: str, build: Callable[[], nn.Module], settings: Settings) -> tuple[nn.Module, Tensor]:
    """The model and its input, after one forward pass that shows whether they fit."""
    torch.manual_seed(0)
    memory_format = torch.channels_last if settings.channels_last else torch.contiguous_format
    model = build()
    try:
        model = model.to(settings.device, torch.float32)
        x = torch.randn(settings.input).to(settings.device)
        models.exercise(model, x)
        model = model.to(settings.dtype)
        model = model.to(memory_format=memory_format)  # type: ignore[call-overload]  # missing in torch's own types
        x = x.to(dtype=settings.dtype, memory_format=memory_format)
        with torch.no_grad():
            model.eval()(x)
    except Exception as error:  # a model may raise anything at an input that it was not made for
        raise UsageError(f"{name} does not take {settings.describe_input()}: {one_line(error)}") from error
    return model, x


def _examine(name: str, model: nn.Module, x: Tensor, settings: Settings, progress: "Progress") -> Result:
    """Swaps, verifies and measures one model."""
    result = Result(name, [], [])
    try:
        with raising(UsageError, "copying the model"):
            accelerated = copy.deepcopy(model)
        with raising(SwapError, "accelerate"):
            report = sod_ops.accelerate(accelerated)
        result = Result(name, list(report.swapped), list(report.left))
        if not result.swapped:
            return result
        progress.stage("outputs and gradients")
        contestants = {"before": _contestant(model, settings), "after": _contestant(accelerated, settings)}
        verdict = verify(contestants["before"], contestants["after"], x, sod_ops.accelerate, compiled=settings.compile)
        result = dataclasses.replace(result, verdict=verdict, fault=verdict.fault)
        if result.fault is not None:
            return result
        free = _without(model, [module for module, _ in result.swapped], x, settings)
        if free is not None:
            contestants["free"] = free
        times = _measure_times(contestants, x, settings, progress)
        progress.stage("memory")
        memory = {key: measure.peak_memory(_step(contestants[key], x), settings.device) for key in ("before", "after")}
        return dataclasses.replace(result, times=times, memory=memory)
    except SwapError as error:
        return dataclasses.replace(result, fault=str(error))
    except torch.OutOfMemoryError as error:
        raise UsageError(
            f"{name} does not fit in memory with {settings.describe_input()}: {one_line(error)}"
        ) from error
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error


@contextlib.contextmanager
def _room_to_compile() -> Iterator[None]:
    """Lets three copies of one model be compiled for all modes: past 8 graphs a function silently runs uncompiled."""
    import torch._dynamo

    with torch._dynamo.config.patch(recompile_limit=64, fail_on_recompile_limit_hit=True):
        yield
    torch._dynamo.reset()


def _contestant(model: nn.Module, settings: Settings) -> Contestant:
    return Contestant(model, torch.compile(model) if settings.compile else model)


def _without(model: nn.Module, names: list[str], x: Tensor, settings: Settings) -> Contestant | None:
    """The model with the named modules handing on their input; None where it does not run like that."""
    free = copy.deepcopy(model)
    for name in names:
        free.get_submodule(name).forward = _identity
    contestant = _contestant(free, settings)
    try:
        _step(contestant, x)()
    except torch.OutOfMemoryError:
        raise
    except Exception:  # of a module that takes several maps, changes its input's shape, or whose output is overwritten
        return None
    return contestant


def _identity(x: Tensor) -> Tensor:
    return x


def _measure_times(
    contestants: dict[str, Contestant], x: Tensor, settings: Settings, progress: "Progress"
) -> dict[str, measure.Samples]:
    times = {}
    for phase, make, share in (("forward", _forward, 1 / 3), ("step", _step, 2 / 3)):
        progress.stage(PHASES[phase])
        times[phase] = measure.interleave(
            {name: make(contestant, x) for name, contestant in contestants.items()},
            settings.device,
            seconds=settings.seconds * share,
            rounds=settings.rounds,
            progress=progress.fraction,
        )
    return times


def _forward(contestant: Contestant, x: Tensor) -> measure.Call:
    """A call that runs inference."""
    contestant.model.eval()

    def call() -> None:
        with torch.inference_mode():
            contestant.call(x)

    return call


def _step(contestant: Contestant, x: Tensor) -> measure.Call:
    """A call that runs forward and backward in train mode, to the gradients of all parameters."""
    contestant.model.train()

    def differentiable() -> list[Tensor]:
        return [output for output in floating_outputs(contestant.call(x)) if output.requires_grad]

    gradients = cotangents(differentiable())

    def call() -> None:
        torch.autograd.backward(differentiable(), gradients)
        contestant.model.zero_grad(set_to_none=True)

    return call


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device must be cpu, cuda or cuda:N, got {name!r}") from error
    if device.type not in _DEFAULT_INPUT:
        raise UsageError(f"--device must be cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count <= (device.index or 0):
            there = f"there are {count} CUDA devices" if count else "torch sees no CUDA device"
            raise UsageError(f"--device {name}: {there} (python -m sod_ops doctor says more)")
    return device


def _check_backend(device: torch.device) -> None:
    """Turns a request for a backend that is not there into one line before anything is built."""
    requested = os.environ.get("SOD_OPS_BACKEND")
    if not requested:
        return
    available = sod_ops.available_backends(device)
    reason = available.get(requested, f"must be one of {', '.join(available)}")
    if reason is not None:
        raise UsageError(f"SOD_OPS_BACKEND={requested}: {reason}")


def _check_writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written to: {error.strerror}") from error


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(size) for size in text.split(","))
    except ValueError:
        shape = ()
    if len(shape) != 4 or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"must be four positive integers N,C,H,W such as 8,3,224,224, got {text!r}")
    return shape


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text!r}")
    return seconds


def _rounds(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return int(text)

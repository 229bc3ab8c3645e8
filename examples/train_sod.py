"""Trains a salient object network with sod_ops: ``python examples/train_sod.py --help``.

Copy these files and start from them: ``sod_model.py`` is the network, ``sod_data.py`` reads images and masks,
``sod_trainer.py`` is a training step and its checkpoint, and this file is the run around them.
"""

import argparse
import hashlib
import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sod_data import Pair, Steps, Training, find_pairs, loader, split
from sod_generate import generate
from sod_model import SaliencyNet, build, timm
from sod_options import parser
from sod_profile import UNCOUNTED, profile
from sod_ranks import Ranks
from sod_report import measure, predictions, save_losses, save_pictures
from sod_trainer import Trainer

INTERRUPTED = 128 + signal.SIGINT  # what shells report of a program that Ctrl-C ended
_LOOK_EVERY = 10  # steps: to read losses from a GPU is to wait for it


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status: 0, or :data:`INTERRUPTED`. Bad arguments end in SystemExit(2)."""
    command = parser()
    options = command.parse_args(arguments)
    try:
        ranks = Ranks(_device(options.device))
    except ValueError as error:
        command.error(str(error))
    try:
        try:
            net, training, held_out = _prepare(options, ranks)
            run = None
            if not options.profile:
                run = Run(Trainer(net, options, ranks, options.ops), training, held_out)
                run.begin()
        except ValueError as error:
            command.error(str(error))
        if run is None:
            return _profile(options, ranks, training)
        with Interruption() as interruption:
            return run.train(interruption)
    finally:
        ranks.leave()


def _device(name: str | None) -> str | None:
    """Raises ValueError for a device that is not there."""
    if name is None:
        return None
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device: expected cpu, cuda or cuda:1, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device: expected cpu, cuda or cuda:1, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: this PyTorch sees {torch.cuda.device_count()} GPUs")
    return name


def _prepare(options: argparse.Namespace, ranks: Ranks) -> tuple[SaliencyNet, list[Pair], list[Pair]]:
    """The network and the pairs to train and to measure on; settles the precision. ValueError for what does not fit."""
    on_gpu = ranks.device.type == "cuda"
    if options.precision == "auto":
        half = "bf16" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        options.precision = half if on_gpu else "float32"
    if options.precision == "fp16" and not on_gpu:
        raise ValueError("--precision fp16 needs a GPU: on a CPU take bf16")
    checkpoint = options.out / "checkpoint.pt"
    if options.resume and not checkpoint.is_file():
        raise ValueError(f"--resume: there is no {checkpoint}")
    if checkpoint.is_file() and not (options.resume or options.profile):
        raise ValueError(f"{checkpoint} is of an earlier run: --resume it, or name another --out, or remove it")
    net = _network(options, ranks.device)
    if options.data is None:
        folder = options.out / f"data-{options.generated}-{options.size}-{options.seed}"
        if ranks.first:
            generate(folder, options.generated, options.size, options.seed)
        ranks.wait()
    else:
        folder = options.data
    pairs = find_pairs(folder)
    if options.validation is None:
        training, held_out = split(pairs, options.hold_out, options.seed)
    else:
        training, held_out = pairs, find_pairs(options.validation)
    batch = options.batch_size * ranks.count
    if len(training) < batch:
        raise ValueError(f"{folder} leaves {len(training)} pairs to train on, fewer than a batch of {batch}")
    return net, training, held_out


def _network(options: argparse.Namespace, device: torch.device) -> SaliencyNet:
    if not timm.is_model(options.encoder):
        like = ", ".join(timm.list_models(f"*{options.encoder}*")[:5]) or "see timm.list_models()"
        raise ValueError(f"--encoder {options.encoder}: timm has no such model ({like})")
    dtype = torch.float64 if options.precision == "float64" else torch.float32
    try:
        net = build(
            options.encoder,
            options.width,
            pretrained=options.pretrained,
            seed=options.seed,
            dtype=dtype,
            device=device,
        )
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"--encoder {options.encoder} has no features at several levels: {error}") from error
    if options.size % net.stride:
        raise ValueError(
            f"--size must be a multiple of {net.stride}, the stride of {options.encoder}, got {options.size}"
        )
    try:  # some encoders have but one size, or features in another layout
        with torch.no_grad():
            net.eval()(torch.zeros(1, 3, options.size, options.size, dtype=dtype, device=device))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(f"--encoder {options.encoder} does not fit here: {error}") from error
    net.train()
    return net


def _batches(options: argparse.Namespace, ranks: Ranks, training: list[Pair], steps: range) -> Iterator[Any]:
    dataset = Training(training, options.size, options.seed, change=not options.plain)
    share = Steps(len(training), options.batch_size, steps, options.seed, ranks.rank, ranks.count)
    return iter(loader(dataset, share, options.workers))


def _profile(options: argparse.Namespace, ranks: Ranks, training: list[Pair]) -> int:
    trainers = {ops: Trainer(_network(options, ranks.device), options, ranks, ops) for ops in ("fused", "reference")}
    table = profile(trainers, _batches(options, ranks, training, range(options.profile + UNCOUNTED)), options.profile)
    if ranks.first:
        print(table)
    return 0


class Interruption:
    """Turns Ctrl-C and SIGTERM into a request to stop after the step. A second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "Interruption":
        self._before = {number: signal.signal(number, self._request) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True


class Run:
    """A run of training: its progress, its files and its end."""

    def __init__(self, trainer: Trainer, training: list[Pair], held_out: list[Pair]) -> None:
        self.trainer, self.training, self.held_out = trainer, training, held_out
        self.options, self.ranks = trainer.options, trainer.ranks
        self.out: Path = self.options.out
        self.losses: list[float] = []
        self.rates: list[float] = []
        names = "\n".join(pair.image.name for pair in training)
        self.data = hashlib.sha256(names.encode()).hexdigest()

    def begin(self) -> None:
        """Says what will be trained, and goes back to the checkpoint. ValueError where that is of another run."""
        if self.options.resume:
            self.losses, self.rates = self.trainer.load(self.out / "checkpoint.pt", self.data)
        if not self.ranks.first:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        options, ranks = self.options, self.ranks
        threads = f", {torch.get_num_threads()} threads" if ranks.device.type == "cpu" else ""
        parameters = sum(parameter.numel() for parameter in self.trainer.net.parameters())
        print(
            f"{options.encoder}, {parameters / 1e6:.1f} million parameters, {options.ops} ops, "
            f"{options.precision}, {ranks.device.type}{threads}, {ranks.count} process{'es' if ranks.count > 1 else ''}\n"
            f"{len(self.training)} pairs to train on, {len(self.held_out)} to measure on, {options.size}x{options.size}"
        )
        if self.trainer.report is not None:
            print(f"accelerate: {len(self.trainer.report.swapped)} modules of the encoder swapped")
        if self.options.resume:
            print(f"resumed after step {self.trainer.steps_done} of {options.steps}")

    def train(self, interruption: Interruption) -> int:
        """Trains until the last step or until it is interrupted, and returns the exit status."""
        options, trainer = self.options, self.trainer
        steps = range(trainer.steps_done, options.steps)
        pending: list[Tensor] = []
        then = time.perf_counter()
        bar = tqdm(
            total=options.steps, initial=steps.start, unit="step", disable=not self.ranks.first, dynamic_ncols=True
        )
        with bar:
            for images, masks in _batches(options, self.ranks, self.training, steps):
                self.rates.append(trainer.rate())
                pending.append(trainer.step(images, masks))
                done = trainer.steps_done
                stop = self.ranks.any(interruption.requested)
                checkpoint = done % options.checkpoint_every == 0
                evaluate = options.evaluate_every and done % options.evaluate_every == 0 and done < options.steps
                if len(pending) == _LOOK_EVERY or checkpoint or stop or done == options.steps:
                    new = self.ranks.mean(torch.stack(pending).double().cpu()).tolist()
                    pending.clear()
                    self.losses += new
                    now = time.perf_counter()
                    images_per_second = len(new) * options.batch_size * self.ranks.count / (now - then)
                    then = now
                    bar.update(done - bar.n)
                    bar.set_postfix_str(f"loss {sum(new) / len(new):.4f}, {images_per_second:.1f} images/s")
                if stop:
                    break
                if checkpoint:
                    self._save()
                if evaluate:
                    self._evaluate(bar)
        self._save()
        if trainer.steps_done < options.steps:
            self._say(
                f"Interrupted after step {trainer.steps_done} of {options.steps}. "
                f"Saved {self.out / 'checkpoint.pt'}: the same command with --resume goes on from there."
            )
            return INTERRUPTED
        self._evaluate(None)
        return 0

    def _save(self) -> None:
        self.trainer.save(self.out / "checkpoint.pt", self.losses, self.rates, self.data)
        if self.ranks.first and self.losses:
            save_losses(self.losses, self.rates, self.out / "losses.csv")

    def _evaluate(self, bar: Any) -> None:
        """Measures on the held-out pairs in the first process, while the others wait."""
        if self.ranks.first:
            options, trainer = self.options, self.trainer
            with trainer.backend():

                def results(pairs: list[Pair]) -> Iterator[Any]:
                    return predictions(
                        trainer.net, pairs, options.size, options.batch_size, self.ranks.device, trainer.autocast()
                    )

                metrics = {"step": trainer.steps_done, **measure(results(self.held_out))}
                save_pictures(results(self.held_out[:8]), self.out / "predictions.png", rows=8, side=options.size)
            (self.out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
            text = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items() if name != "step")
            (bar.write if bar is not None else print)(f"step {trainer.steps_done}: {text}")
            if bar is None:
                self._say(f"losses.png, predictions.png, metrics.json and checkpoint.pt are in {self.out}")
        self.ranks.wait()

    def _say(self, text: str) -> None:
        if self.ranks.first:
            print(text, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nStopped at once: nothing was saved since the last checkpoint.", file=sys.stderr)
        sys.exit(INTERRUPTED)

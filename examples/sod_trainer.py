"""What a step of training does, and everything that a checkpoint must hold to repeat it."""

import argparse
import contextlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sod_ops
from sod_data import normalised
from sod_model import SaliencyNet, head_weights, parameter_groups
from sod_options import DECISIVE
from sod_ranks import Ranks

# Called with a phase's name when it is over.
Mark = Callable[[str], None]


class Trainer:
    """A network with its optimiser, schedule, augmentation and random numbers, in one of the processes.

    Args:
        net: the network on its device, as built: it is changed in place.
        options: those of the command line, with ``precision`` settled.
        ranks: the processes.
        ops: ``"fused"`` or ``"reference"``.
    """

    def __init__(self, net: SaliencyNet, options: argparse.Namespace, ranks: Ranks, ops: str) -> None:
        self.options, self.ranks, self.ops = options, ranks, ops
        self.net: Any = ranks.synchronise_norms(net)
        self.report = sod_ops.accelerate(self.net) if ops == "fused" else None
        self.loss: Callable[..., Tensor] = sod_ops.nn.StructureLoss(weights=head_weights(net.levels))
        if options.compile:
            self.net.compile()
            self.loss = torch.compile(self.loss)
        self.model = ranks.share(self.net)
        groups = parameter_groups(self.net, options.lr, options.encoder_lr_scale, options.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, fused=True)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=options.precision == "fp16")
        self.cutmix = sod_ops.CutMix()
        # All that can be seen of an object is salient, however little of it is left.
        self.copy_paste = sod_ops.CopyPaste(probability=options.copy_paste, min_visible=0)
        torch.manual_seed(options.seed + ranks.rank)
        self.generator = torch.Generator(ranks.device).manual_seed(options.seed * 4099 + ranks.rank)
        self.dtype = torch.float64 if options.precision == "float64" else torch.float32
        self.steps_done = 0

    def step(self, images: Tensor, masks: Tensor, mark: Mark = lambda phase: None) -> Tensor:
        """One step on a batch of uint8 images and bool masks; returns its loss, still on the device."""
        with self.backend():
            images, masks = self._augmented(*(t.to(self.ranks.device, non_blocking=True) for t in (images, masks)))
            inputs, targets = normalised(images, self.dtype), masks.to(self.dtype)
            mark("augmentation")
            with self.autocast():
                heads = self.model(inputs)
                mark("forward")
                loss = self.loss(heads, targets)
            mark("loss")
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(loss).backward()
            mark("backward")
            self.scaler.unscale_(self.optimizer)
            if self.options.clip:
                torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.options.clip)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.scheduler.step()
            mark("optimiser")
        self.steps_done += 1
        return loss.detach()

    def backend(self) -> contextlib.AbstractContextManager[None]:
        return sod_ops.use_backend("reference") if self.ops == "reference" else contextlib.nullcontext()

    def autocast(self) -> torch.autocast:
        precision = self.options.precision
        dtype = torch.float16 if precision == "fp16" else torch.bfloat16
        return torch.autocast(self.ranks.device.type, dtype, enabled=precision in ("bf16", "fp16"))

    def rate(self) -> float:
        """The learning rate of the next step, the encoder's apart."""
        return float(max(self.scheduler.get_last_lr()))

    def _augmented(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """CutMix and Copy-Paste within the batch, on its device."""
        if self.options.copy_paste:
            images, instances = self.copy_paste(images, masks, generator=self.generator)
            masks = instances.any(1, keepdim=True)
        if np.random.default_rng((self.options.seed, self.steps_done)).uniform() < self.options.cutmix:
            images, masks = self.cutmix(images, masks, self.generator)
        return images, masks

    def _rate(self, step: int) -> float:
        warm = max(1, round(self.options.warmup * self.options.steps))
        if step < warm:
            return (step + 1) / warm
        return 0.5 + 0.5 * math.cos(math.pi * (step - warm) / max(1, self.options.steps - warm))

    def save(self, path: Path, losses: list[float], rates: list[float], data: str) -> None:
        """Writes a checkpoint, whole or not at all. Every process calls this; the first one writes."""
        random = {"torch": torch.get_rng_state(), "augmentation": self.generator.get_state()}
        if self.ranks.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.ranks.device)
        everyones = self.ranks.gather(random)
        if not self.ranks.first:
            return
        checkpoint = {
            "step": self.steps_done,
            "model": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": everyones,
            "losses": losses,
            "rates": rates,
            "options": self._decisive(data),
        }
        unfinished = path.with_suffix(".unfinished")
        torch.save(checkpoint, unfinished)
        os.replace(unfinished, path)

    def load(self, path: Path, data: str) -> tuple[list[float], list[float]]:
        """Goes back to a checkpoint; returns the losses and learning rates until there.

        Raises:
            ValueError: the run that wrote it had other options.
        """
        # To the CPU: random states stay there, and the rest is copied to where it belongs.
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        before, now = checkpoint["options"], self._decisive(data)
        other = [
            f"{name} {before.get(name)} and now {value}" for name, value in now.items() if before.get(name) != value
        ]
        if other:
            raise ValueError(f"{path} was written by a run with other options: {'; '.join(other)}")
        self.net.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.scheduler.load_state_dict(checkpoint["scheduler"])
        self.scaler.load_state_dict(checkpoint["scaler"])
        random = checkpoint["random"][self.ranks.rank]
        torch.set_rng_state(random["torch"])
        self.generator.set_state(random["augmentation"])
        if "cuda" in random:
            torch.cuda.set_rng_state(random["cuda"], self.ranks.device)
        self.steps_done = checkpoint["step"]
        return checkpoint["losses"], checkpoint["rates"]

    def _decisive(self, data: str) -> dict[str, Any]:
        options = {name: getattr(self.options, name) for name in DECISIVE}
        return {**options, "data": data, "processes": self.ranks.count, "device": self.ranks.device.type}

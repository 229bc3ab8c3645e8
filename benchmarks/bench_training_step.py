"""Whole training steps with accelerate, or with a fused loss, against the same step in plain PyTorch, eager and compiled.

A step is forward, loss, backward and fused AdamW, which sets the gradients free; its learning rate is 0, so that every
contestant's weights stay those that the reference has. Verified is the loss, against a float64 model: accelerate itself
compares gradients where it swaps. The floor reads and writes parameters, gradients and AdamW's moments once: no convolution
comes near it. The models are random; torch.compile's max-autotune is left out, which takes minutes for each of them.
"""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sod_ops
from benchmarks.bench_structure_loss import published_loss
from benchmarks.contest import TRAINING, Case
from sod_ops.cli import models

# How often AdamW's kernel and the backward touch a parameter's four bytes: p, g, m and v read, p, g, m and v written.
_PASSES = 8


class Heads(nn.Module):
    """The prediction heads of a network like F3Net: two of the decoder's and one on each of four levels, 64 channels."""

    weights = (0.5, 0.5, 0.5, 0.25, 0.125, 0.0625)
    levels = (0, 0, 0, 1, 2, 3)

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Conv2d(64, 1, 3, padding=1) for _ in self.levels)

    def forward(self, size: tuple[int, int], features: tuple[Tensor, ...]) -> list[Tensor]:
        return [
            F.interpolate(head(features[level]), size, mode="bilinear")
            for head, level in zip(self.heads, self.levels, strict=True)
        ]


@functools.cache
def _model(name: str) -> nn.Module:
    torch.manual_seed(0)
    return Heads() if name == "F3Net heads" else models.resolve(name)().train()


@dataclass(frozen=True)
class TrainingStep(Case):
    """``model`` as ``python -m sod_ops accelerate`` takes it, or "F3Net heads"; ``dtype`` is autocast's, or float32."""

    model: str
    shape: tuple[int, int, int, int]
    dtype: torch.dtype = torch.bfloat16
    channels_last: bool = True
    headline: bool = False

    peer_name = "ours, compiled"
    autotuned = False

    @property
    def name(self) -> str:
        parts = [self.model, "x".join(map(str, self.shape)), str(self.dtype).removeprefix("torch.")]
        return " ".join(parts + ["channels_last"] * self.channels_last)

    @property
    def library(self) -> str | None:
        """What the model's code is imported from."""
        source = self.model.partition(":")[0]
        return models.LIBRARIES[source].module if source in models.LIBRARIES else None

    def inputs(self, device: str) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(0)
        n, _, h, w = self.shape

        def normal(*shape: int) -> Tensor:
            values = torch.empty(shape, device=device).normal_(generator=generator)
            return values.contiguous(memory_format=torch.channels_last) if self.channels_last else values

        if self.library is None:
            coarse = torch.rand((n, 1, 8, 8), generator=generator, device=device)
            mask = (F.interpolate(coarse, (h, w), mode="bilinear") > 0.5).float()
            return mask, *(normal(n, 64, -(-h // stride), -(-w // stride)) for stride in (4, 8, 16, 32))
        # One class for each image, or for each pixel: as many as the model's output has channels.
        place = (n, h, w) if self.model.startswith("smp") else (n,)
        targets = torch.empty(place, dtype=torch.int64, device=device).random_(10, generator=generator)
        return targets, normal(*self.shape)

    def reference(self, *inputs: Tensor) -> Tensor:
        model = copy.deepcopy(_model(self.model)).to(inputs[0].device, torch.float64)
        return self._step(model, published_loss, torch.float64)(*inputs)

    def eager(self) -> Callable[..., Tensor]:
        return self._step(copy.deepcopy(_model(self.model)), published_loss, self.dtype)

    def ours(self) -> Callable[..., Tensor]:
        model = copy.deepcopy(_model(self.model))
        if self.library is not None:
            report = sod_ops.accelerate(model)
            if not report.swapped:
                raise RuntimeError(f"accelerate swapped nothing in {self.model}")
        return self._step(model, sod_ops.structure_loss, self.dtype)

    def peer(self, *inputs: Tensor) -> Callable[[], Tensor]:
        compiled: Any = torch.compile(self.ours(), dynamic=False)
        call: Any = functools.partial(compiled, *inputs)
        call.finish = compiled.finish
        return call

    def _step(
        self, model: nn.Module, structure_loss: Callable[..., Tensor], dtype: torch.dtype
    ) -> Callable[..., Tensor]:
        """A step's loss, in ``dtype``, which is how exactly it is held to the reference; ``finish`` is what follows."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        model = model.to(device).to(memory_format=layout)  # type: ignore[call-overload]  # missing in torch's own types
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=0.0, weight_decay=0.0, fused=True, capturable=device.type == "cuda"
        )
        mixed = dtype in (torch.bfloat16, torch.float16)
        is_heads = self.library is None

        def step(targets: Tensor, *given: Tensor) -> Tensor:
            with torch.autocast(device.type, dtype if mixed else torch.bfloat16, enabled=mixed):
                if is_heads:
                    # Their gradients go on to a network that is not here.
                    features = tuple(t.detach().requires_grad_() for t in given)
                    logits = model((targets.shape[2], targets.shape[3]), features)
                    loss = structure_loss(logits, targets, weights=Heads.weights)
                else:
                    loss = F.cross_entropy(model(given[0]), targets)
            return loss.to(dtype)

        def finish() -> None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        step.finish = finish  # type: ignore[attr-defined]  # what contest calls after each backward
        return step

    def floor_bytes(self, mode: str) -> int:
        return _PASSES * 4 * sum(p.numel() for p in _model(self.model).parameters())


CASES = {
    "cpu": [TrainingStep("F3Net heads", (2, 3, 64, 64))],
    "cuda": [
        TrainingStep("timm:seresnet50", (64, 3, 224, 224), headline=True),
        TrainingStep("timm:efficientnet_b3", (32, 3, 288, 288), headline=True),
        TrainingStep("smp:UPerNet(encoder_name=resnet50, classes=21)", (8, 3, 512, 512), headline=True),
        TrainingStep("F3Net heads", (16, 3, 352, 352), headline=True),
        TrainingStep("F3Net heads", (16, 3, 352, 352), dtype=torch.float32, channels_last=False, headline=True),
    ],
}


def test_training_step(case: TrainingStep, contest: Callable[[Case, str], None]) -> None:
    if case.library is not None and find_spec(case.library) is None:
        pytest.skip(f"{case.library} is not installed")
    contest(case, TRAINING)

"""gate against the formula, eager and compiled, and against the formula with gates that are expanded before they multiply.

The floor reads x once and writes y once; backward reads dy and x and writes dx besides. The logits are too small to count.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import sod_ops
from benchmarks.contest import FORWARD, HOST, Case
from sod_ops.reference.gate import gate as reference


@dataclass(frozen=True)
class Gate(Case):
    """``shape`` is [N, C, H, W]; ``kind`` says whose logits there are, or of both what is added."""

    shape: tuple[int, int, int, int]
    kind: str = "gates"
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    headline: bool = False

    peer_name = "expanded"

    @property
    def name(self) -> str:
        parts = ["x".join(map(str, self.shape)), self.kind, str(self.dtype).removeprefix("torch.")]
        return " ".join(parts + ["channels_last"] * self.channels_last)

    def inputs(self, device: str) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(0)

        def normal(*shape: int, deviation: float = 1.0) -> Tensor:
            tensor = torch.empty(shape, dtype=self.dtype, device=device)
            return tensor.normal_(0, deviation, generator=generator).requires_grad_()

        x = normal(*self.shape)
        if self.channels_last:
            x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
        channel, spatial = normal(*self.shape[:2], 1, 1), normal(self.shape[0], 1, *self.shape[2:])
        return {"channel": (x, channel), "spatial": (x, spatial)}.get(self.kind, (x, channel, spatial))

    def _sum_of(self) -> str:
        return "gates" if self.kind == "gates" else "logits"

    def reference(self, *inputs: Tensor) -> Tensor:
        return reference(*inputs, sum_of=self._sum_of())

    def eager(self) -> Callable[..., Tensor]:
        kind = self.kind

        def eager_gate(x: Tensor, logits: Tensor, other: Tensor | None = None) -> Tensor:
            if other is None:
                return x * torch.sigmoid(logits)
            if kind == "gates":
                return x * torch.sigmoid(logits) + x * torch.sigmoid(other)
            return x * torch.sigmoid(logits + other)

        return eager_gate

    def ours(self) -> Callable[..., Tensor]:
        return partial(sod_ops.gate, sum_of=self._sum_of())

    def peer(self, *inputs: Tensor) -> Callable[[], Tensor]:
        x, *logits = inputs
        if self.kind == "logits":
            return lambda: x * torch.sigmoid(logits[0].expand_as(x) + logits[1].expand_as(x))
        return lambda: x * sum(torch.sigmoid(t).expand_as(x) for t in logits)

    def floor_bytes(self, mode: str) -> int:
        maps = 2 if mode == FORWARD else 5
        return maps * torch.Size(self.shape).numel() * self.dtype.itemsize


CASES = {
    "cpu": [
        *(Gate((8, 256, 56, 56), kind, headline=kind == "gates") for kind in ("channel", "spatial", "logits", "gates")),
        Gate((8, 256, 56, 56), channels_last=True, headline=True),
        Gate((8, 256, 56, 56), dtype=torch.bfloat16),
        Gate((8, 1024, 14, 14)),
        Gate((1, 256, 56, 56)),
    ],
    "cuda": [
        *(
            Gate((64, 256, 56, 56), dtype=dtype, channels_last=channels_last, headline=True)
            for dtype in (torch.float32, torch.bfloat16)
            for channels_last in (False, True)
        ),
        Gate((64, 1024, 14, 14), dtype=torch.bfloat16),
    ],
}


def test_gate(case: Gate, mode: str, contest: Callable[[Case, str], None]) -> None:
    contest(case, mode)


def test_host_time(contest: Callable[[Case, str], None]) -> None:
    contest(Gate((1, 8, 4, 4), "channel"), HOST)

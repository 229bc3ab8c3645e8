"""object_attention against the authors' steps, eager and compiled, and against two masked products.

Logits of standard deviation 4: a quarter of the pixels are sure background. The floor reads encoder and writes the result;
backward reads the result's gradient and encoder and writes encoder's gradient. The logits are one map beside its channels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import sod_ops
from benchmarks.contest import FORWARD, HOST, Case
from sod_ops.reference.object_attention import object_attention as reference

_THRESHOLD = 0.93


@dataclass(frozen=True)
class ObjectAttention(Case):
    """``shape`` is that of encoder."""

    shape: tuple[int, int, int, int]
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    headline: bool = False

    peer_name = "masked products"

    @property
    def name(self) -> str:
        parts = ["x".join(map(str, self.shape)), str(self.dtype).removeprefix("torch.")]
        return " ".join(parts + ["channels_last"] * self.channels_last)

    def inputs(self, device: str) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(0)
        samples, _, height, width = self.shape
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        encoder = torch.empty(self.shape, dtype=self.dtype, device=device, memory_format=memory_format)
        logits = torch.empty((samples, 1, height, width), device=device).normal_(0, 4, generator=generator)
        # None so near the threshold that a contestant's rounding in two bytes would decide on which side it lies.
        logits = torch.where((1 - logits.sigmoid() - _THRESHOLD).abs() < 0.01, 0.0, logits)
        return logits.to(self.dtype).requires_grad_(), encoder.normal_(generator=generator).requires_grad_()

    def reference(self, *inputs: Tensor) -> Tensor:
        return reference(inputs[0], inputs[1], _THRESHOLD)

    def eager(self) -> Callable[..., Tensor]:
        def eager_object_attention(decoder_logits: Tensor, encoder: Tensor) -> Tensor:
            mask = torch.sigmoid(decoder_logits)
            reverse = 1 - torch.sigmoid(decoder_logits)
            x = mask.expand(-1, encoder.shape[1], -1, -1) * encoder
            reverse = reverse.masked_fill(reverse > _THRESHOLD, 0.0)
            return x + reverse * encoder

        return eager_object_attention

    def ours(self) -> Callable[..., Tensor]:
        return sod_ops.object_attention

    def peer(self, *inputs: Tensor) -> Callable[[], Tensor]:
        decoder_logits, encoder = inputs

        def masked_products() -> Tensor:
            mask = torch.sigmoid(decoder_logits)
            kept = (1 - mask <= _THRESHOLD).to(mask.dtype)
            return encoder * mask + encoder * ((1 - mask) * kept)

        return masked_products

    def floor_bytes(self, mode: str) -> int:
        maps = 2 if mode == FORWARD else 5
        return maps * torch.Size(self.shape).numel() * self.dtype.itemsize


CASES = {
    "cpu": [
        ObjectAttention((8, 40, 80, 80), headline=True),
        ObjectAttention((8, 40, 80, 80), channels_last=True, headline=True),
        ObjectAttention((8, 24, 160, 160), headline=True),
        ObjectAttention((8, 40, 80, 80), dtype=torch.bfloat16),
        ObjectAttention((1, 64, 44, 44)),
    ],
    "cuda": [
        *(
            ObjectAttention((32, 64, 88, 88), dtype=dtype, channels_last=channels_last, headline=True)
            for dtype in (torch.bfloat16, torch.float32)
            for channels_last in (False, True)
        ),
        ObjectAttention((8, 40, 80, 80), headline=True),
    ],
}


def test_object_attention(case: ObjectAttention, mode: str, contest: Callable[[Case, str], None]) -> None:
    contest(case, mode)


def test_host_time(contest: Callable[[Case, str], None]) -> None:
    contest(ObjectAttention((1, 8, 4, 4)), HOST)

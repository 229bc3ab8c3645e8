"""Cases of the ops that take one map, with parameters of an attention block or without."""

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.contest import Case


@dataclass(frozen=True)
class MapCase(Case):
    """``shape`` is that of the map, [N, C, H, W]."""

    shape: tuple[int, int, int, int]
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    headline: bool = False

    @property
    def name(self) -> str:
        parts = ["x".join(map(str, self.shape)), str(self.dtype).removeprefix("torch.")]
        return " ".join(parts + ["channels_last"] * self.channels_last)

    def normal(self, generator: torch.Generator, *shape: int, deviation: float = 1.0) -> Tensor:
        """A parameter that gets a gradient, drawn on the generator's device."""
        tensor = torch.empty(shape, dtype=self.dtype, device=generator.device)
        return tensor.normal_(0, deviation, generator=generator).requires_grad_()

    def map(self, generator: torch.Generator) -> Tensor:
        """The map, in its memory format."""
        x = self.normal(generator, *self.shape)
        if not self.channels_last:
            return x
        return x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()

    def squeeze(self, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Weights and biases of the two 1x1 convolutions that squeeze its channels to a sixteenth and expand them."""
        channels, reduced = self.shape[1], max(1, self.shape[1] // 16)
        return (
            self.normal(generator, reduced, channels, 1, 1, deviation=channels**-0.5),
            self.normal(generator, reduced),
            self.normal(generator, channels, reduced, 1, 1, deviation=reduced**-0.5),
            self.normal(generator, channels),
        )

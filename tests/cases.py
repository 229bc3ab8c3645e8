"""The inputs that every op meets: shapes and memory layouts, once for all tests."""

from typing import NamedTuple

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class MapCase(NamedTuple):
    """A tensor [N, C, H, W] and how it lies in memory."""

    shape: tuple[int, int, int, int]
    layout: str = "contiguous"
    large: bool = False  # too much for Triton's interpreter

    def __str__(self) -> str:
        return "x".join(map(str, self.shape)) + "-" + self.layout

    def build(self, dtype: torch.dtype, device: str = "cpu") -> Tensor:
        """Random normal values; a view lies in a buffer whose other elements are NaN, so that a stray read shows."""
        n, c, h, w = self.shape
        values = torch.randn(self.shape, dtype=torch.float64).to(dtype).to(device)
        if self.layout == "contiguous":
            return values
        if self.layout == "channels_last":
            return values.contiguous(memory_format=torch.channels_last)
        if self.layout == "expanded":
            return values[:1].expand(n, c, h, w)
        views = {
            "channel_slice": lambda: _surroundings((n, c + 3, h, w), values)[:, 2 : 2 + c],
            "channels_last_slice": lambda: _surroundings((n, h, w, c + 5), values)[..., 1 : 1 + c].permute(0, 3, 1, 2),
            "sample_slice": lambda: _surroundings((2 * n + 1, c, h, w), values)[1::2],
            "crop": lambda: _surroundings((n, c, h + 2, w + 3), values)[:, :, 1:-1, 2:-1],
            "transposed": lambda: _surroundings((n, c, w, h), values).transpose(2, 3),
        }
        view = views[self.layout]()
        assert view.shape == self.shape
        return view.copy_(values)


def _surroundings(shape: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.full(shape, float("nan"), dtype=like.dtype, device=like.device)


# Shapes: primes, ones, one sample, more samples than threads, a single pixel, rows that fill no vector register.
MAPS = (
    MapCase((2, 16, 8, 8)),
    MapCase((3, 13, 7, 11)),
    MapCase((1, 32, 5, 9)),
    MapCase((1, 1, 1, 1)),
    MapCase((2, 24, 1, 1)),
    MapCase((5, 3, 1, 17)),
    MapCase((2, 16, 8, 8), "channels_last"),
    MapCase((3, 13, 7, 11), "channels_last"),
    MapCase((1, 37, 5, 9), "channels_last"),
    MapCase((2, 24, 1, 1), "channels_last"),
    MapCase((2, 1, 6, 5), "channels_last"),
    MapCase((2, 6, 5, 7), "channel_slice"),
    MapCase((3, 6, 5, 7), "sample_slice"),
    MapCase((2, 19, 5, 7), "channels_last_slice"),
    MapCase((3, 6, 5, 7), "expanded"),
    MapCase((2, 6, 5, 7), "crop"),
    MapCase((2, 6, 5, 7), "transposed"),
    MapCase((2, 64, 56, 56), large=True),
    MapCase((3, 600, 23, 29), "channels_last", large=True),
    MapCase((1, 256, 40, 41), "channels_last", large=True),
    MapCase((1, 96, 61, 67), large=True),
    MapCase((17, 8, 31, 31), large=True),
)

EMPTY_MAPS = (
    MapCase((0, 4, 3, 3)),
    MapCase((0, 4, 3, 3), "channels_last"),
    MapCase((2, 0, 3, 3)),
    MapCase((2, 4, 0, 3)),
    MapCase((2, 4, 3, 0), "channels_last"),
)

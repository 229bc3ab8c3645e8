"""Boxes that every op on boxes meets."""

import torch
from torch import Tensor

# Pairs of (x1, y1, x2, y2) by what is special about them. None of them has a coordinate in common that its name doesn't
# announce.
PAIRS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "identical": ((10, 20, 50, 80), (10, 20, 50, 80)),
    "nested": ((10, 20, 50, 80), (15, 30, 40, 60)),
    "disjoint": ((0, 0, 10, 20), (30, 50, 45, 58)),
    "disjoint across only": ((0, 0, 10, 20), (30, 5, 45, 58)),
    "side in common": ((10, 20, 50, 80), (10, 30, 40, 60)),
    "two sides in common": ((10, 20, 50, 80), (10, 20, 40, 60)),
    "touching along a side": ((0, 0, 10, 20), (10, 5, 30, 17)),
    "touching at a corner": ((0, 0, 10, 20), (10, 20, 30, 47)),
    "same shape elsewhere": ((0, 0, 10, 20), (100, 50, 110, 70)),
    "same aspect ratio": ((0, 0, 10, 20), (3, 4, 33, 64)),
    "far from square": ((0, 0, 1000, 1), (3, -50, 4, 200)),
    "large": ((1e4, 2e4, 3e4, 5e4), (1.5e4, 1e4, 2e4, 4e4)),
    "small": ((0.01, 0.02, 0.013, 0.024), (0.011, 0.018, 0.012, 0.026)),
}

# Boxes without a width, a height or both. torchvision gives NaN for some.
DEGENERATE: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "no width": ((10, 20, 10, 80), (5, 30, 40, 60)),
    "no height": ((10, 40, 50, 40), (15, 30, 40, 60)),
    "no height, second": ((15, 30, 40, 60), (10, 40, 50, 40)),
    "a point": ((20, 40, 20, 40), (15, 30, 40, 60)),
    "a point, second": ((15, 30, 40, 60), (20, 40, 20, 40)),
    "a point at a corner": ((15, 30, 15, 30), (15, 30, 40, 60)),
    "identical points": ((20, 40, 20, 40), (20, 40, 20, 40)),
    "points at 0": ((0, 0, 0, 0), (0, 0, 0, 0)),
    "two points": ((20, 40, 20, 40), (21, 43, 21, 43)),
    "identical, no height": ((10, 40, 50, 40), (10, 40, 50, 40)),
    "identical, no width": ((10, 40, 10, 70), (10, 40, 10, 70)),
    "crossing lines": ((10, 40, 50, 40), (30, 20, 30, 70)),
    "no height, disjoint": ((10, 40, 50, 40), (60, 30, 90, 60)),
    "inverted": ((50, 80, 10, 20), (15, 30, 40, 60)),
    "inverted across": ((50, 20, 10, 80), (15, 30, 40, 60)),
}


def pairs_of(
    table: dict[str, tuple[tuple[float, ...], tuple[float, ...]]], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """All pairs of a table, as two tensors [N, 4]."""
    first, second = zip(*table.values(), strict=True)
    return torch.tensor(first, dtype=dtype), torch.tensor(second, dtype=dtype)


def random_boxes(count: int, dtype: torch.dtype = torch.float32, device: str = "cpu", *, size: float = 100.0) -> Tensor:
    """Boxes with sides between 2 % of ``size`` and ``size``, their corners likewise spread."""
    corner = torch.rand(count, 2, dtype=torch.float64)
    extent = 0.02 + 0.98 * torch.rand(count, 2, dtype=torch.float64)
    return (torch.cat([corner, corner + extent], 1) * size).to(dtype).to(device)


LAYOUTS = ("contiguous", "slice", "rows", "transposed", "expanded")


def laid_out(boxes: Tensor, layout: str) -> Tensor:
    """The same boxes [N, 4] otherwise in memory; a view's surroundings are NaN, so that a stray read shows."""
    count = len(boxes)
    if layout == "contiguous":
        return boxes.clone()
    if layout == "expanded":
        return boxes[:1].expand(count, 4)
    views = {
        "slice": lambda: boxes.new_full((count, 7), float("nan"))[:, 1:5],
        "rows": lambda: boxes.new_full((2 * count + 1, 4), float("nan"))[1::2],
        "transposed": lambda: boxes.new_full((4, count), float("nan")).t(),
    }
    return views[layout]().copy_(boxes)

"""cutmix of images and masks against torchvision's CutMix, which cuts images alone.

Eager is the mixing by a mask that training code writes out, for images and masks. What is random is drawn by every
contestant but verified only of ours and eager, with one generator: torchvision draws otherwise, so its output is checked
for its shape and dtype alone. The floor reads and writes images and masks once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import sod_ops
from benchmarks.contest import FORWARD, HOST, Case
from sod_ops._peers import import_peer
from sod_ops.ops.cutmix import _draw
from sod_ops.reference.cutmix import cutmix as reference


@dataclass(frozen=True)
class CutMix(Case):
    """``shape`` is [B, C, H, W]; masks are [B, 1, H, W]."""

    shape: tuple[int, int, int, int]
    dtype: torch.dtype = torch.float32
    masks: torch.dtype = torch.uint8
    headline: bool = False

    peer_name = "torchvision, images alone"

    @property
    def name(self) -> str:
        return f"{'x'.join(map(str, self.shape))} {_short(self.dtype)}, {_short(self.masks)} masks"

    def inputs(self, device: str) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(0)
        images = torch.rand(self.shape, generator=generator, device=device) * 255
        return images.to(self.dtype), (images[:, :1] > 128).to(self.masks)

    def reference(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        partner, boxes, _ = _draw(inputs[0], 1.0, True, torch.Generator(inputs[0].device).manual_seed(1))
        return tuple(reference(tensor, partner, boxes) for tensor in inputs)

    def eager(self) -> Callable[..., tuple[Tensor, ...]]:
        return self.reference

    def ours(self) -> Callable[..., tuple[Tensor, ...]]:
        def cut(images: Tensor, masks: Tensor) -> tuple[Tensor, ...]:
            return sod_ops.cutmix(images, masks, generator=torch.Generator(images.device).manual_seed(1))

        return cut

    def peer(self, *inputs: Tensor) -> Callable[[], tuple[Tensor, ...]]:
        images = inputs[0]
        labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        mix = import_peer("torchvision.transforms.v2").CutMix(num_classes=2)
        expected = self.reference(*inputs)

        def cut() -> tuple[Tensor, ...]:
            mix(images, labels)
            return expected  # of its own draws nothing could be compared

        return cut

    def floor_bytes(self, mode: str) -> int:
        samples, channels, height, width = self.shape
        return 2 * samples * height * width * (channels * self.dtype.itemsize + self.masks.itemsize)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


_CASES = [
    CutMix((64, 3, 224, 224), headline=True),
    CutMix((64, 3, 224, 224), masks=torch.float32, headline=True),
    CutMix((64, 3, 224, 224), torch.uint8, headline=True),
    CutMix((8, 3, 352, 352)),
]

CASES = {"cpu": _CASES, "cuda": _CASES}


def test_cutmix(case: CutMix, contest: Callable[[Case, str], None]) -> None:
    contest(case, FORWARD)


def test_host_time(contest: Callable[[Case, str], None]) -> None:
    contest(CutMix((2, 3, 8, 8)), HOST)

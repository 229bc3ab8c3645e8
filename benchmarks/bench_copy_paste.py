"""copy_paste of images and padded instance masks against a loop over the masks, and against PyTorch on the whole batch.

Eager is the loop that training code writes: a sample at a time, a mask at a time, what is pasted first and then what is left
of each mask beneath and its box. The peer is the op's definition, which takes all masks at once. What is random is drawn by
every contestant from one generator. The floor reads images and masks once and writes what is returned once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import sod_ops
from benchmarks.contest import FORWARD, HOST, Case
from sod_ops.ops.copy_paste import _draw
from sod_ops.reference.copy_paste import blend_alpha
from sod_ops.reference.copy_paste import copy_paste as reference

_MIN_VISIBLE = 0.3


def _loop(
    images: Tensor, masks: Tensor, partner: Tensor, chosen: Tensor, blend_sigma: float
) -> tuple[Tensor, Tensor, Tensor]:
    composed, together = images.clone(), torch.zeros_like(torch.cat([masks, masks], 1))
    boxes = torch.zeros(*together.shape[:2], 4, dtype=torch.int64, device=masks.device)
    slots = masks.shape[1]
    for n, other in enumerate(partner.tolist()):
        pasted = torch.zeros_like(masks[n, 0])
        for i in chosen[n].nonzero()[:, 0].tolist():
            mask = masks[other, i]
            if blend_sigma == 0:
                composed[n] = torch.where(mask, images[other], composed[n])
            together[n, slots + i] = mask
            pasted |= mask
        if blend_sigma > 0:
            alpha = blend_alpha(pasted[None], blend_sigma).to(images.dtype)
            composed[n] = (1 - alpha) * images[n] + alpha * images[other]
        for i, mask in enumerate(masks[n]):
            left = mask & ~pasted
            if left.sum() >= _MIN_VISIBLE * mask.sum():
                together[n, i] = left
        for i, mask in enumerate(together[n]):
            if mask.any():
                y, x = torch.where(mask)
                boxes[n, i] = torch.stack([x.min(), y.min(), x.max(), y.max()])
    return composed, together, boxes


@dataclass(frozen=True)
class CopyPaste(Case):
    """``shape`` is [B, C, H, W]; of ``slots`` masks all hold an instance, half of which are pasted."""

    shape: tuple[int, int, int, int]
    slots: int
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    blend_sigma: float = 0
    headline: bool = False

    peer_name = "all masks at once"

    @property
    def name(self) -> str:
        parts = ["x".join(map(str, self.shape)), str(self.dtype).removeprefix("torch.")]
        parts += ["channels_last"] * self.channels_last + ["blended"] * (self.blend_sigma > 0)
        return " ".join(parts) + f", {self.slots} masks"

    def inputs(self, device: str) -> tuple[Tensor, ...]:
        """Ellipses of 10 to 70 pixels to either side, a twentieth of the image each."""
        generator = torch.Generator(device).manual_seed(0)
        samples, _, height, width = self.shape
        images = (torch.rand(self.shape, generator=generator, device=device) * 255).to(self.dtype)
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        numbers = torch.rand(4, samples, self.slots, 1, generator=generator, device=device)
        y, x = (torch.arange(size, device=device) for size in (height, width))
        across = (x - numbers[0] * width) / (10 + 60 * numbers[1])
        down = (y - numbers[2] * height) / (10 + 60 * numbers[3])
        return images, down.square()[..., :, None] + across.square()[..., None, :] < 1

    def reference(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        images, masks = inputs
        composed, together, boxes, *_ = reference(images, masks, *self._drawn(masks), self.blend_sigma, _MIN_VISIBLE)
        return _comparable(composed, together, boxes)

    def eager(self) -> Callable[..., tuple[Tensor, ...]]:
        def loop(images: Tensor, masks: Tensor) -> tuple[Tensor, ...]:
            return _comparable(*_loop(images, masks, *self._drawn(masks), self.blend_sigma))

        return loop

    def ours(self) -> Callable[..., tuple[Tensor, ...]]:
        def paste(images: Tensor, masks: Tensor) -> tuple[Tensor, ...]:
            unused = torch.empty(*masks.shape[:2], 4, dtype=torch.int64, device=masks.device)
            generator = torch.Generator(masks.device).manual_seed(1)
            results = sod_ops.copy_paste(
                images, masks, unused, blend_sigma=self.blend_sigma, min_visible=_MIN_VISIBLE, generator=generator
            )
            return _comparable(*results)

        return paste

    def peer(self, *inputs: Tensor) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: self.reference(*inputs)

    def floor_bytes(self, mode: str) -> int:
        samples, channels, height, width = self.shape
        return samples * height * width * (2 * channels * self.dtype.itemsize + 3 * self.slots + 1)

    def _drawn(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        return _draw(masks, 0.5, torch.Generator(masks.device).manual_seed(1))


def _comparable(images: Tensor, masks: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
    """Masks as bytes, of which differences can be taken."""
    return images, masks.view(torch.uint8), boxes


_CASES = [
    CopyPaste((16, 3, 320, 320), 16, headline=True),
    CopyPaste((16, 3, 320, 320), 16, torch.uint8, headline=True),
    CopyPaste((4, 3, 320, 320), 16, blend_sigma=2, headline=True),
    CopyPaste((4, 3, 320, 320), 16, torch.uint8, channels_last=True),
]

CASES = {"cpu": _CASES, "cuda": _CASES}


def test_copy_paste(case: CopyPaste, contest: Callable[[Case, str], None]) -> None:
    contest(case, FORWARD)


def test_host_time(contest: Callable[[Case, str], None]) -> None:
    contest(CopyPaste((2, 3, 8, 8), 2), HOST)

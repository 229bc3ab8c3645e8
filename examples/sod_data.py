"""Pairs of images and masks from folders, and the batches of a training run in an order that a seed decides."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

_MEAN = (0.485, 0.456, 0.406)  # ImageNet's, which timm's pretrained encoders expect
_DEVIATION = (0.229, 0.224, 0.225)
_SUFFIXES = (".png", ".jpg", ".jpeg")


class Pair(NamedTuple):
    image: Path
    mask: Path


def find_pairs(folder: Path) -> list[Pair]:
    """The pairs in ``folder/images`` and ``folder/masks`` with equal stems, in the order of their names.

    Raises:
        ValueError: there are none, or an image has no mask, or a mask no image.
    """
    files: list[dict[str, Path]] = []
    for part in ("images", "masks"):
        if not (folder / part).is_dir():
            raise ValueError(f"{folder} has no folder {part}: expected {folder}/images/NAME.png and masks/NAME.png")
        found = sorted(path for path in (folder / part).iterdir() if path.suffix.lower() in _SUFFIXES)
        files.append({path.stem: path for path in found})
        if not found:
            raise ValueError(f"no {part} found in {folder / part}: expected files {', '.join(_SUFFIXES)}")
    images, masks = files
    for part, alone in (("mask", images.keys() - masks.keys()), ("image", masks.keys() - images.keys())):
        if alone:
            raise ValueError(f"{len(alone)} files in {folder} have no {part} of the same stem, the first: {min(alone)}")
    return [Pair(images[stem], masks[stem]) for stem in images]


def split(pairs: Sequence[Pair], part: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """What is trained on, and a random ``part`` of the pairs (one at least) that is held out."""
    order = np.random.default_rng(seed).permutation(len(pairs)).tolist()
    held_out = max(1, round(part * len(pairs)))
    return [pairs[i] for i in sorted(order[held_out:])], [pairs[i] for i in sorted(order[:held_out])]


class Training(Dataset[tuple[Tensor, Tensor]]):
    """Images ``[3, size, size]`` uint8 and masks ``[1, size, size]`` bool, flipped, cropped and lightened at random.

    What is random depends on the seed, the epoch and the number of the pair alone, not on the process or the worker that
    reads it, so that a resumed run sees what the uninterrupted one would have seen. An index is (epoch, number).
    """

    def __init__(self, pairs: Sequence[Pair], size: int, seed: int, change: bool) -> None:
        self.pairs, self.size, self.seed, self.change = pairs, size, seed, change

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, number = index
        image, mask = open_image(self.pairs[number].image), open_mask(self.pairs[number].mask)
        if mask.size != image.size:
            raise ValueError(f"{self.pairs[number].mask} has {mask.size} pixels, its image {image.size}")
        if not self.change:
            return _resized(image, mask, self.size, None, flip=False, light=1.0)
        rng = np.random.default_rng((self.seed, epoch, number))
        part = rng.uniform(0.75, 1.0)
        width, height = part * image.width, part * image.height
        left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
        box = (left, top, left + width, top + height)
        return _resized(image, mask, self.size, box, flip=rng.uniform() < 0.5, light=rng.uniform(0.75, 1.25))


class HeldOut(Dataset[tuple[Tensor, int]]):
    """Images ``[3, size, size]`` uint8 and their numbers; masks are read in their own size by who compares."""

    def __init__(self, pairs: Sequence[Pair], size: int) -> None:
        self.pairs, self.size = pairs, size

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        image = open_image(self.pairs[number].image).resize((self.size, self.size), Image.Resampling.BILINEAR)
        return _planes(image), number


class Steps(Sampler[list[tuple[int, int]]]):
    """Which pairs each step of one process takes: its share of the step's batch over all processes.

    Every epoch is another permutation of the pairs, of which the last ones that fill no batch are left out.
    """

    def __init__(self, pairs: int, batch: int, steps: range, seed: int, rank: int, ranks: int) -> None:
        self.pairs, self.batch, self.steps, self.seed, self.rank, self.ranks = pairs, batch, steps, seed, rank, ranks

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        whole = self.batch * self.ranks
        for step in self.steps:
            epoch, place = divmod(step, self.pairs // whole)
            first = place * whole + self.rank * self.batch
            order = np.random.default_rng((self.seed, epoch)).permutation(self.pairs)
            yield [(epoch, number) for number in order[first : first + self.batch].tolist()]


def loader(dataset: Dataset[tuple[Tensor, Tensor]], steps: Steps, workers: int) -> DataLoader[tuple[Tensor, Tensor]]:
    """The batches of ``steps``. It draws from a generator of its own: what the model draws does not depend on it."""
    return DataLoader(
        dataset,
        batch_sampler=steps,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=_settle_worker,
    )


def _settle_worker(_: int) -> None:
    """Ctrl-C reaches every process of the terminal; the training process alone decides what it means."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)


def normalised(images: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 images as the encoder takes them, in channels_last."""
    mean, deviation = (torch.tensor(c, dtype=dtype, device=images.device).view(3, 1, 1) for c in (_MEAN, _DEVIATION))
    scaled = (images.to(dtype) - 255 * mean) / (255 * deviation)
    return scaled.contiguous(memory_format=torch.channels_last)


def open_image(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")


def open_mask(path: Path) -> Image.Image:
    return Image.open(path).convert("L")


def _resized(
    image: Image.Image,
    mask: Image.Image,
    size: int,
    box: tuple[float, float, float, float] | None,
    flip: bool,
    light: float,
) -> tuple[Tensor, Tensor]:
    both = [picture.resize((size, size), Image.Resampling.BILINEAR, box) for picture in (image, mask)]
    if flip:
        both = [picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for picture in both]
    if light != 1.0:
        both[0] = both[0].point(lambda value: min(255, round(value * light)))
    return _planes(both[0]), _planes(both[1]) >= 128


def _planes(picture: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(picture))
    return pixels.unsqueeze(0) if pixels.dim() == 2 else pixels.permute(2, 0, 1).contiguous()

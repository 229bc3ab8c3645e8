"""A data set of salient objects that is drawn, not downloaded: pairs of PNG files in ``images`` and ``masks``.

An image is a textured background, with patches a little different from it, and one or two objects in other colours and
another texture: ellipses, polygons, stars and blobs. A picture depends on the seed and its number alone.
"""

import math
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

# Masks are drawn so many times larger and reduced, which gives their edges the places that pixels can't.
_FINER = 4


def generate(folder: Path, count: int, size: int, seed: int) -> None:
    """Writes ``count`` pairs of ``size`` x ``size`` pixels into ``folder``, unless it is there: whole or not at all."""
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
        whole = Path(unfinished) / folder.name
        for part in ("images", "masks"):
            (whole / part).mkdir(parents=True)
        for number in range(count):
            image, mask = draw(np.random.default_rng((seed, number)), size)
            name = f"{number:05d}.png"
            Image.fromarray(image).save(whole / "images" / name)
            Image.fromarray(mask).save(whole / "masks" / name)
        whole.rename(folder)


def draw(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """An image ``[size, size, 3]`` and its mask ``[size, size]`` of 0 and 255, both uint8."""
    background = _colour(rng)
    image = _texture(rng, size, background)
    for _ in range(rng.integers(0, 4)):  # a little like the background: not salient
        colour = np.clip(background + rng.normal(0, 12, 3), 0, 255)
        image = _over(image, _texture(rng, size, colour), _shape(rng, size) * 0.6)
    mask = np.zeros((size, size))
    for _ in range(rng.integers(1, 3)):
        shape = _shape(rng, size)
        image = _over(image, _texture(rng, size, _colour(rng, unlike=background)), shape)
        mask = np.maximum(mask, shape)
    image += rng.normal(0, 4, image.shape)
    return image.clip(0, 255).astype(np.uint8), np.where(mask >= 0.5, 255, 0).astype(np.uint8)


def _over(image: np.ndarray, layer: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    return image + (layer - image) * opacity[..., None]


def _colour(rng: np.random.Generator, unlike: np.ndarray | None = None) -> np.ndarray:
    while True:
        colour = rng.uniform(20, 235, 3)
        if unlike is None or np.linalg.norm(colour - unlike) > 90:
            return colour


def _texture(rng: np.random.Generator, size: int, colour: np.ndarray) -> np.ndarray:
    """``[size, size, 3]`` in about one colour: clouds, stripes or spots, and light that falls from one side."""
    y, x = np.mgrid[:size, :size] / size
    angle = rng.uniform(0, 2 * math.pi)
    along = math.cos(angle) * x + math.sin(angle) * y
    kind = rng.integers(3)
    if kind == 0:
        pattern = _clouds(rng, size)
    elif kind == 1:
        pattern = np.sin(2 * math.pi * (rng.uniform(3, 16) * along + rng.uniform()))
    else:
        across = math.cos(angle) * y - math.sin(angle) * x
        frequency = rng.uniform(6, 20)
        pattern = np.sin(2 * math.pi * frequency * along) * np.sin(2 * math.pi * frequency * across)
    light = rng.uniform(-40, 40) * (along - along.mean())
    return colour + (rng.uniform(6, 28) * pattern + light)[..., None] * rng.uniform(0.6, 1.0, 3)


def _clouds(rng: np.random.Generator, size: int) -> np.ndarray:
    """Noise of several scales, about from -1 to 1."""
    total = np.zeros((size, size))
    for cells, weight in ((4, 0.5), (9, 0.3), (20, 0.2)):
        noise = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
        total += weight * np.asarray(noise.resize((size, size), Image.Resampling.BICUBIC))
    return 1.5 * total


def _shape(rng: np.random.Generator, size: int) -> np.ndarray:
    """``[size, size]`` from 0 to 1: an ellipse, a polygon, a star or a blob, which may stick out of the image a little."""
    angles = np.linspace(0, 2 * math.pi, 120, endpoint=False)
    kind = rng.integers(4)
    if kind == 0:
        radii = np.ones_like(angles)
    elif kind == 1:
        angles = np.sort(rng.uniform(0, 2 * math.pi, rng.integers(5, 9)))
        radii = rng.uniform(0.7, 1.0, len(angles))
    elif kind == 2:
        points = rng.integers(4, 8)
        angles = np.linspace(0, 2 * math.pi, 2 * points, endpoint=False)
        radii = np.where(np.arange(2 * points) % 2, rng.uniform(0.4, 0.7), 1.0)
    else:
        waves = [(n, rng.normal(0, 0.35 / n), rng.uniform(0, 2 * math.pi)) for n in range(2, 7)]
        radii = np.clip(1 + sum(height * np.cos(n * angles + phase) for n, height, phase in waves), 0.3, 1.4)
    large = size * _FINER
    scale = rng.uniform(0.14, 0.3) * large
    stretch, turn = rng.uniform(0.6, 1.0), rng.uniform(0, 2 * math.pi)
    u, v = scale * radii * np.cos(angles), scale * radii * np.sin(angles) * stretch
    middle = rng.uniform(0.22, 0.78, 2) * large
    xs = middle[0] + math.cos(turn) * u - math.sin(turn) * v
    ys = middle[1] + math.sin(turn) * u + math.cos(turn) * v
    canvas = Image.new("L", (large, large))
    ImageDraw.Draw(canvas).polygon(list(zip(xs.tolist(), ys.tolist(), strict=True)), fill=255)
    reduced = canvas.resize((size, size), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(0.4))
    return np.asarray(reduced) / 255.0

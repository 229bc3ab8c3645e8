"""What a run shows: metrics on held-out images, a picture of images, masks and predictions, and the curve of its losses."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sod_data import HeldOut, Pair, normalised, open_image, open_mask


@torch.no_grad()
def predictions(
    model: nn.Module, pairs: Sequence[Pair], size: int, batch: int, device: torch.device, autocast: Any
) -> Iterator[tuple[Pair, np.ndarray, np.ndarray]]:
    """Every pair with its mask and the predicted one, uint8, in the mask's own size."""
    dtype = next(model.parameters()).dtype
    held_out = DataLoader(HeldOut(pairs, size), batch, generator=torch.Generator().manual_seed(0))
    model.eval()
    try:
        for images, numbers in held_out:
            with autocast:
                logits: Tensor = model(normalised(images.to(device), dtype)).float()
            for logit, number in zip(logits, numbers.tolist(), strict=True):
                mask = np.asarray(open_mask(pairs[number].mask))
                whole = F.interpolate(logit[None], mask.shape, mode="bilinear", align_corners=False)
                predicted = (255 * whole[0, 0].sigmoid()).round().to(torch.uint8).cpu().numpy()
                yield pairs[number], mask, predicted
    finally:
        model.train()


def measure(results: Iterator[tuple[Pair, np.ndarray, np.ndarray]]) -> dict[str, float]:
    """MAE, the F-measure (beta^2 = 0.3; the largest and the mean over thresholds) and the S-measure, by pysodmetrics.

    As usual in the field, it stretches each prediction to [0, 1] first.
    """
    # Here and not above: it takes a second, which a run without evaluation need not wait.
    import py_sod_metrics

    mae, s_measure = py_sod_metrics.MAE(), py_sod_metrics.Smeasure()
    handler = py_sod_metrics.FmeasureHandler(with_dynamic=True, with_adaptive=False, beta=0.3)
    f_measure = py_sod_metrics.FmeasureV2({"fm": handler})
    for _, mask, predicted in results:
        for metric in (mae, f_measure, s_measure):
            metric.step(predicted, mask)
    curve = f_measure.get_results()["fm"]["dynamic"]
    return {
        "MAE": float(mae.get_results()["mae"]),
        "max F": float(curve.max()),
        "mean F": float(curve.mean()),
        "S": float(s_measure.get_results()["sm"]),
    }


def save_pictures(results: Iterator[tuple[Pair, np.ndarray, np.ndarray]], path: Path, rows: int, side: int) -> None:
    """A PNG of ``rows`` rows: image, mask and prediction side by side, each ``side`` x ``side`` pixels."""
    lines = []
    for (pair, mask, predicted), _ in zip(results, range(rows), strict=False):
        pictures = [open_image(pair.image), *(Image.fromarray(grey).convert("RGB") for grey in (mask, predicted))]
        lines.append(np.hstack([np.asarray(p.resize((side, side), Image.Resampling.BILINEAR)) for p in pictures]))
    Image.fromarray(np.vstack(lines)).save(path)


def save_losses(losses: Sequence[float], rates: Sequence[float], path: Path) -> None:
    """A CSV file, and beside it the curve as a PNG: each step's loss and their running mean."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "loss", "learning rate"])
        writer.writerows([i, repr(loss), repr(rate)] for i, (loss, rate) in enumerate(zip(losses, rates, strict=True)))
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(losses, color="0.75", linewidth=0.8, label="step")
    window = max(1, min(50, len(losses) // 5))
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    axes.plot(np.arange(len(smooth)) + window - 1, smooth, label=f"mean of {window} steps")
    axes.set(xlabel="step", ylabel="loss, weighted sum of all heads", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path.with_suffix(".png"), dpi=120)

"""The plot of ``accelerate``: each model's speed-up beside its bound."""

from pathlib import Path

from matplotlib.figure import Figure

from sod_ops.cli.results import PHASES, Result

_INCHES_PER_MODEL = 0.45


def draw(results: list[Result], caption: str, path: Path) -> None:
    """Writes a PNG: a panel for forward and one for forward + backward, a bar with its quartiles for each model."""
    figure = Figure(figsize=(10, 1.9 + _INCHES_PER_MODEL * len(results)), layout="constrained")
    panels = figure.subplots(1, len(PHASES), sharey=True)
    rows = range(len(results))
    for axes, (phase, title) in zip(panels, PHASES.items(), strict=True):
        quartiles = [result.speed_up(phase) for result in results]
        gains = [middle - 1 for _, middle, _ in quartiles]
        spread = ([middle - low for low, middle, _ in quartiles], [high - middle for _, middle, high in quartiles])
        axes.barh(
            rows, gains, left=1, xerr=spread, height=0.55, color="#3b6fb6", label="with sod_ops (line: quartiles)"
        )
        bounds = {row: bound for row, result in enumerate(results) if (bound := result.bound(phase)) is not None}
        axes.plot(
            list(bounds.values()),
            list(bounds),
            linestyle="none",
            marker="|",
            markersize=18,
            markeredgewidth=2.5,
            color="#d9822b",
            label="if the swapped modules cost nothing",
        )
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("times faster than before", fontsize=8)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    panels[0].set_yticks(rows, [result.model for result in results])
    panels[0].invert_yaxis()
    figure.suptitle(caption, fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False, markerscale=0.5)
    figure.savefig(path, dpi=150)

"""Tables and plots from the results.

    python -m benchmarks.report [DIRECTORY ...] [--readme README.md] [--check]

writes into each directory (default: every one in benchmarks/results) a README.md with all that was measured there and a
plot of every op, and with ``--readme`` the table between the markers in that file. ``--check`` writes nothing and fails
where what is there is not what the results give.
"""

import argparse
import importlib.util
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks import results, tables, targets
from benchmarks.contest import FORWARD, MODES, TRAINING
from benchmarks.tables import Document

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"

_HOW_TO_READ = """\
Drawn by `python -m benchmarks.report` from the JSON files beside it. Every contestant's result was verified against the
float64 reference; then all were timed in turn, one sample of each in every round. A time is the median of the rounds,
± half the distance between their 20th and 80th percentiles. A speedup is the median (20th to 80th percentile) of the
ratios within a round; *the better* is that of eager and torch.compile over which it is smaller. The floor is what the
op must read and write at least, at the speed of a large copy in the same rounds; a small case that stays in cache can
beat it. Peak memory is what the tensors allocated in a call hold at most, results included and inputs not."""


def device_page(documents: Sequence[Document]) -> str:
    """The README.md of a device's results."""
    lines = [f"# {documents[0]['device']['name']}", "", _HOW_TO_READ, ""]
    for document in documents:
        heading = document["op"] + ("" if tables.memory_reused(document) else ", default allocator")
        lines += [f"## {heading}", "", tables.origin(document), "", f"    {document['command']}", ""]
        if tables.measured(document):
            lines += [f"![{heading}]({_plot_name(document)})", ""]
        lines += tables.tables(document)
    if documents[0]["device"]["type"] == "cuda":
        lines += ["## What was to be shown", "", *targets.section(documents)]
    return "\n".join(lines).rstrip() + "\n"


def readme_section(directories: Iterable[Path], readme: Path) -> str:
    """What stands between the README's markers: the headline cases of each device, and where ours is slower; GPUs first."""
    lines: list[str] = []
    devices = [
        (directory, [d for d in results.read(directory) if tables.memory_reused(d)]) for directory in directories
    ]
    devices = sorted(devices, key=lambda device: not _on_gpu(device[1]))
    if not any(_on_gpu(documents) for _, documents in devices):
        lines += [
            "Nothing has been measured on a GPU yet: `make gpu` does that, and the table of one would stand here.",
            "",
        ]
    for directory, documents in devices:
        if not documents:
            continue
        page = os.path.relpath(directory / "README.md", readme.parent)
        lines += [
            f"### {tables.machine(documents[0])}",
            "",
            f"Milliseconds, {FORWARD} / {TRAINING}, and the speedup over the better of eager and torch.compile. "
            f"[All cases, spread, memory, host time and versions]({page})",
            "",
        ]
        for document in documents:
            lines += [
                *tables.headline_table(document),
                "",
                tables.occasion(document),
                "",
                *tables.shortfalls(document),
            ]
    return "\n".join(lines)


def _on_gpu(documents: Sequence[Document]) -> bool:
    return bool(documents) and documents[0]["device"]["type"] == "cuda"


def with_section(text: str, section: str, begin: str = BEGIN, end: str = END) -> str:
    """``text`` with ``section`` between its markers.

    Raises:
        ValueError: the markers are not there, once each and in order.
    """
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"expected one {begin} and then one {end}")
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n{section}{end}{rest.partition(end)[2]}"


def draw(document: Document, path: Path) -> None:
    """Plots each mode's time, and its fraction of the floor, against the bytes that the op must move."""
    import matplotlib  # only here: tables are drawn without it
    from matplotlib import pyplot

    matplotlib.use("Agg")
    clock = tables.clocks(document)[0]
    by_size = sorted(tables.measured(document), key=lambda record: record["floor_bytes"])
    modes = [mode for mode in MODES if any(record["mode"] == mode for record in by_size)]
    figure, axes = pyplot.subplots(len(modes), 2, figsize=(11, 4 * len(modes)), squeeze=False, layout="constrained")
    for (time_axis, fraction_axis), mode in zip(axes, modes, strict=True):
        records = [record for record in by_size if record["mode"] == mode]
        for name in tables.contestants(document):
            timed = [record for record in records if "median" in record["contestants"].get(name, {}).get(clock, {})]
            sizes = [record["floor_bytes"] / 2**20 for record in timed]
            times = [record["contestants"][name][clock]["median"] for record in timed]
            fractions = [record["floor"][clock]["median"] / time for record, time in zip(timed, times, strict=True)]
            label = tables.title(document, name)
            time_axis.plot(sizes, [1e3 * time for time in times], "o", label=label, alpha=0.7)
            fraction_axis.plot(sizes, fractions, "o", label=label, alpha=0.7)
        sizes = [record["floor_bytes"] / 2**20 for record in records]
        floors = [1e3 * record["floor"][clock]["median"] for record in records]
        time_axis.plot(sizes, floors, "k--", label="floor")
        fraction_axis.axhline(1, color="k", linestyle="--", label="floor")
        time_axis.set(title=f"{mode}: time", ylabel=f"milliseconds ({clock})", yscale="log")
        fraction_axis.set(title=f"{mode}: fraction of the floor", ylabel="floor / time")
        for axis in (time_axis, fraction_axis):
            axis.set(xlabel="MiB that must be moved", xscale="log")
            axis.grid(alpha=0.3)
    axes[0, 0].legend()
    figure.suptitle(f"{document['op']} on {document['device']['name']}")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description="Tables and plots of the results.")
    parser.add_argument(
        "directories", nargs="*", type=Path, metavar="DIRECTORY", help="default: all in benchmarks/results"
    )
    parser.add_argument("--readme", type=Path, help=f"also the table between {BEGIN} and {END} in this file")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail where a file differs from the results"
    )
    options = parser.parse_args(arguments)

    plots = not options.check and importlib.util.find_spec("matplotlib") is not None
    if not plots and not options.check:
        print("no plots: they need matplotlib", file=sys.stderr)
    directories = options.directories or sorted(path for path in results.DIRECTORY.glob("*") if path.is_dir())
    pages: dict[Path, str] = {}
    for directory in directories:
        documents = results.read(directory)
        if not documents:
            parser.error(f"no results in {directory}")
        pages[directory / "README.md"] = device_page(documents)
        if plots:
            for document in filter(tables.measured, documents):
                draw(document, directory / _plot_name(document))
    if options.readme is not None:
        try:
            text = options.readme.read_text()
            pages[options.readme] = with_section(text, readme_section(directories, options.readme))
        except (OSError, ValueError) as error:
            parser.error(f"{options.readme}: {error}")

    stale = [path for path, text in pages.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if options.check:
            print(f"{path} is not what the results give: run `python -m benchmarks.report`", file=sys.stderr)
        else:
            path.write_text(pages[path])
            print(f"wrote {path}")
    return int(options.check and bool(stale))


def _plot_name(document: Document) -> str:
    return document["op"] + ("" if tables.memory_reused(document) else "-default-allocator") + ".png"


if __name__ == "__main__":
    sys.exit(main())

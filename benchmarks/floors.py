"""What each case of a GPU's benchmarks must move, and how long that takes at least.

    python -m benchmarks.floors            prints the table
    python -m benchmarks.floors --write    puts it between the markers in NOTES.md

A run measures the bandwidth that its floors are drawn from. The times here are at a nominal one, to predict with.
"""

import argparse
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks import tables
from benchmarks.contest import FORWARD, TRAINING, Case
from benchmarks.report import with_section

NOTES = Path(__file__).parent / "NOTES.md"
BEGIN, END = "<!-- floors:begin -->", "<!-- floors:end -->"
NOMINAL = 4.8e12  # bytes a second: an H200's memory, as its data sheet says


def cases() -> Iterator[tuple[str, Case]]:
    """Every op's cases for the README on a GPU."""
    for path in sorted(Path(__file__).parent.glob("bench_*.py")):
        module = importlib.import_module(f"benchmarks.{path.stem}")
        for case in module.CASES["cuda"]:
            if case.headline:
                yield path.stem.removeprefix("bench_"), case


def section() -> str:
    """The table, in Markdown."""
    header = ["op", "case", "forward: MB", "µs", "Gop", "forward + backward: MB", "µs", "Gop"]
    rows = []
    before = ""
    for op, case in cases():
        figures = []
        for mode in (FORWARD, TRAINING):
            size, operations = case.floor_bytes(mode), case.operations(mode)
            figures += [tables.three_digits(size / 1e6), tables.three_digits(1e6 * size / NOMINAL)]
            figures.append("" if operations is None else tables.three_digits(operations / 1e9))
        rows.append(["" if op == before else op, case.name, *figures])
        before = op
    return "\n".join(tables.table(header, rows)) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.floors", description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help=f"put the table into {NOTES.name}")
    if parser.parse_args().write:
        NOTES.write_text(with_section(NOTES.read_text(), section(), BEGIN, END))
    else:
        print(section(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())

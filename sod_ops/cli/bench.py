"""Runs the benchmarks of a checkout: python -m sod_ops bench [OP ...] [options for pytest].

The words up to the first option name ops; the option and all that follows go to pytest.
"""

import argparse
import difflib
import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import sod_ops
from sod_ops.cli.errors import UsageError

_PREFIX = "bench_"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "ops", nargs="*", metavar="OP", help="an op such as squeeze_excite; all of them if none is named"
    )


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words for this command's own parser, and those for pytest."""
    own = ("-h", "--help", "--traceback")
    cut = next((i for i, word in enumerate(words) if word.startswith("-") and word not in own), len(words))
    return list(words[:cut]), list(words[cut:])


def run(arguments: argparse.Namespace) -> int:
    root = _checkout()
    known = {path.stem.removeprefix(_PREFIX): path for path in sorted((root / "benchmarks").glob(f"{_PREFIX}*.py"))}
    for op in arguments.ops:
        if op not in known:
            close = difflib.get_close_matches(op, known, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise UsageError(f"there is no benchmark of {op!r}{hint}; there are {', '.join(known)}")
    if importlib.util.find_spec("pytest") is None:
        raise UsageError("the benchmarks need pytest and pytest-benchmark: pip install pytest pytest-benchmark")
    files = [str(known[op].relative_to(root)) for op in arguments.ops or known]
    command = [sys.executable, "-m", "pytest", *files, *arguments.for_pytest]
    return subprocess.run(command, cwd=root, check=False).returncode


def _checkout() -> Path:
    """The checkout that the package was imported from, or the one that is the current directory."""
    for root in (Path(sod_ops.__file__).parent.parent, Path.cwd()):
        if (root / "sod_ops").is_dir() and any((root / "benchmarks").glob(f"{_PREFIX}*.py")):
            return root
    raise UsageError("benchmarks are not part of the installed package: run this in a checkout of the repository")

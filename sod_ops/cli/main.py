"""The parser, and what every command's outcome means as an exit code.

0: done. 1: something is wrong with sod_ops itself (a backend that fails, an accelerated model that differs).
2: bad input, or something that the command needs is missing. 130: interrupted.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from sod_ops._version import __version__
from sod_ops.cli import accelerate, bench, doctor
from sod_ops.cli.errors import UsageError

_COMMANDS = {"doctor": doctor, "accelerate": accelerate, "bench": bench}
_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors take one line: the usage is a --help away."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(argv: Sequence[str] | None = None, *, may_restart: bool = False) -> int:
    """Runs one command.

    Args:
        argv: the words after ``python -m sod_ops``; None takes them from ``sys.argv``.
        may_restart: whether the process may be replaced by one with other allocator settings.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    # argparse would read the options that are meant for pytest as its own.
    words, for_pytest = bench.split(words) if words[:1] == ["bench"] else (words, [])
    try:
        arguments = _parser().parse_args(words)
    except SystemExit as end:  # after --help, --version or an error, which argparse has printed
        return end.code if isinstance(end.code, int) else 2
    arguments.words = words
    arguments.may_restart = may_restart
    arguments.for_pytest = for_pytest
    try:
        return _COMMANDS[arguments.command].run(arguments)
    except UsageError as error:
        if arguments.traceback:
            raise
        print(f"sod_ops {arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"sod_ops {arguments.command}: interrupted", file=sys.stderr)
        return _INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="sod_ops", description="Fused kernels for salient object detection and segmentation.")
    parser.add_argument("--version", action="version", version=f"sod_ops {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, command in _COMMANDS.items():
        summary = (command.__doc__ or "").partition("\n")[0]
        subparser = commands.add_parser(
            name, help=summary, description=command.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        subparser.add_argument("--traceback", action="store_true", help="show where an error comes from")
        command.add_arguments(subparser)
    return parser

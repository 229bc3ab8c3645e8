"""What the user can put right: reported in one line, without a traceback."""

import textwrap


class UsageError(Exception):
    """Bad input, or something that is missing here. The command prints its message and ends with exit code 2."""


def one_line(error: BaseException) -> str:
    """An exception as one line that fits a terminal: its type and the beginning of its message."""
    message = textwrap.shorten(str(error), width=300, placeholder=" ...")
    name = type(error).__name__
    return f"{name}: {message}" if message else name

"""The memory allocator's settings, which decide what a benchmark on a CPU measures.

By default glibc returns every large result to the kernel and maps the next one afresh, zeroed and page-faulted: the
same function, timed twice in one process, took 47 and 13 ms. With these settings memory is reused, and it took 9.1 and
8.9. glibc reads them when a process starts, so that a process without them replaces itself.
"""

import os
import sys

REUSED = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
CHOICES = ("reused", "default")


def settings() -> dict[str, str | None]:
    """What this process was started with, by variable; None where a variable is not set."""
    return {name: os.environ.get(name) for name in REUSED}


def restart_with(choice: str) -> None:
    """Starts this process's command again with the settings of ``choice``; returns where it has them already.

    The new process finds what it wants in its environment and so does not start another.
    """
    wanted = {name: value if choice == "reused" else None for name, value in REUSED.items()}
    if settings() == wanted:
        return
    environment = {name: value for name, value in os.environ.items() if name not in wanted}
    environment.update({name: value for name, value in wanted.items() if value is not None})
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)

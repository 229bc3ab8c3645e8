"""The benchmarks' side of pytest: options, the allocator's settings, the fixture that measures, the results at the end.

    python -m pytest benchmarks                                    every op on this machine's GPU, or else its CPU
    python -m pytest benchmarks/bench_squeeze_excite.py            one op
    python -m pytest benchmarks -k 8x256x56x56 --out /tmp/results  some cases
    python -m pytest benchmarks --minutes 4 --out /tmp/results     what fits, the first cases of every op first

pytest-benchmark calls the rounds, holds garbage collection off meanwhile, and stores every case's figures with
``--benchmark-json``. Its own table would show how long a round of all contestants takes; ours shows each of them.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import allocator, results, tables
from benchmarks.contest import FORWARD, FULL, MODES, QUICK, Case, describe_error, measure
from benchmarks.devices import Device, open_device

_DEVICE: pytest.StashKey[Device] = pytest.StashKey()
_PROVENANCE: pytest.StashKey[dict[str, Any]] = pytest.StashKey()
_DOCUMENTS: pytest.StashKey[dict[str, tables.Document]] = pytest.StashKey()  # by op
_COLLECTED: pytest.StashKey[Counter[str]] = pytest.StashKey()  # parts of an op, before any was deselected
_DEADLINE: pytest.StashKey[float] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("benchmarks of sod_ops")
    group.addoption("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU")
    group.addoption("--out", type=Path, help="results go to <out>/<device>/<op>.json; default: benchmarks/results")
    group.addoption("--quick", action="store_true", help="three rounds, to see that all works; written only with --out")
    group.addoption(
        "--minutes",
        type=float,
        help="start no case after this; every op's first cases come before anyone's second ones",
    )
    group.addoption("--no-autotune", action="store_true", help="on a GPU: leave out torch.compile's max-autotune")
    group.addoption(
        "--allocator",
        choices=allocator.CHOICES,
        default="reused",
        help="reused (default): memory stays with the process from call to call; default: as the C library does",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    # Here pytest does not capture output, which a process started in this one's place would lose.
    allocator.restart_with(config.option.allocator)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("python_files", "bench_*.py")
    config.option.benchmark_quiet = True
    config.option.benchmark_disable_gc = True
    processor = config.hook.pytest_benchmark_generate_machine_info(config=config)["cpu"].get("brand_raw", "CPU")
    device = open_device(config.option.device, processor)
    commit = config.hook.pytest_benchmark_generate_commit_info(config=config)
    config.stash[_DEVICE] = device
    config.stash[_PROVENANCE] = results.provenance(device, commit)
    config.stash[_DOCUMENTS] = {}
    config.stash[_COLLECTED] = Counter()
    minutes = config.option.minutes
    config.stash[_DEADLINE] = float("inf") if minutes is None else time.monotonic() + 60 * minutes


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A benchmark that takes ``case`` runs on every case of its file; one that takes ``mode``, in every mode."""
    if "case" in metafunc.fixturenames:
        cases = metafunc.module.CASES[metafunc.config.stash[_DEVICE].type]
        metafunc.parametrize("case", cases, ids=[case.name.replace(" ", "-") for case in cases])
    if "mode" in metafunc.fixturenames:
        metafunc.parametrize("mode", MODES, ids=[mode.replace(" + ", "-") for mode in MODES])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.stash[_COLLECTED].update(_op(item) for item in items)
    if config.option.minutes is not None:
        items.sort(key=_worth)


@pytest.fixture
def contest(request: pytest.FixtureRequest, benchmark: Any) -> Iterator[Callable[[Case, str], None]]:
    """Measures a case in a mode, and keeps for the results what it found, or its error."""
    config = request.config
    device = config.stash[_DEVICE]
    if time.monotonic() > config.stash[_DEADLINE]:
        pytest.skip(f"the {config.option.minutes:g} minutes were up")

    def run_rounds(function: Callable[[], None], rounds: int) -> None:
        benchmark.pedantic(function, rounds=rounds)

    def keep(case: Case, mode: str) -> None:
        budget = QUICK if config.option.quick else FULL[device.type]
        record: tables.Record = {"case": case.name, "mode": mode, "headline": case.headline}
        op = _op(request.node)
        document = {"op": op, "peer": case.peer_name} | config.stash[_PROVENANCE] | {"results": []}
        config.stash[_DOCUMENTS].setdefault(op, document)["results"].append(record)
        try:
            record.update(measure(case, mode, device, budget, run_rounds, autotune=not config.option.no_autotune))
        except Exception as error:
            record["error"] = describe_error(error)
            raise
        finally:
            if config.option.out is not None:  # after every case: a run that is cut off leaves what it has
                _write(config, op)
        benchmark.extra_info.update(record)

    yield keep
    device.release()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Shows the results of every op and writes them."""
    options = config.option
    for op, document in config.stash[_DOCUMENTS].items():
        _finish(config, op)
        terminalreporter.section(op)
        terminalreporter.write_line("\n".join([tables.origin(document), "", *tables.tables(document)]))
        if options.out is None and (options.quick or not document["complete"]):
            terminalreporter.write_line(f"{op}: a quick run, or a part of the cases, is written only with --out")
            continue
        terminalreporter.write_line(f"{op}: wrote {_write(config, op)}")


def _finish(config: pytest.Config, op: str) -> None:
    """What a document says of its results as a whole."""
    document = config.stash[_DOCUMENTS][op]
    named = any("::" in argument for argument in config.args)  # then the rest was not even collected
    document["quick"] = config.option.quick
    document["complete"] = not named and len(document["results"]) == config.stash[_COLLECTED][op]


def _write(config: pytest.Config, op: str) -> Path:
    options = config.option
    _finish(config, op)
    name = op if options.allocator == "reused" else f"{op}-{options.allocator}-allocator"
    path: Path = (options.out or results.DIRECTORY) / config.stash[_DEVICE].slug / f"{name}.json"
    results.write(path, config.stash[_DOCUMENTS][op])
    return path


def _worth(item: pytest.Item) -> tuple[bool, int, bool]:
    """What is measured first where time is short: the host's time, then every op's cases in the order of its file.

    Training before the forward alone, and cases for the README before others.
    """
    parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    case = parameters.get("case")
    if not isinstance(case, Case) or not isinstance(item, pytest.Function):
        return (False, -1, False)
    rank = item.module.CASES[item.config.stash[_DEVICE].type].index(case)
    return (not case.headline, rank, parameters.get("mode") == FORWARD)


def _op(item: pytest.Item) -> str:
    """The op's name, from the name of the benchmark's file."""
    return item.path.stem.removeprefix("bench_")

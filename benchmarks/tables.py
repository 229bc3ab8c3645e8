"""Results as tables and sentences, in Markdown."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from benchmarks.contest import HOST, MODES

Document: TypeAlias = dict[str, Any]  # as benchmarks.results describes it
Record: TypeAlias = dict[str, Any]  # one of its results

_TITLES = {
    "eager": "eager",
    "compile": "torch.compile",
    "compile_autotuned": "torch.compile, max-autotune",
    "peer": "peer",  # replaced by the peer's own name
    "triton": "ours, Triton",
    "ours": "ours",
}
RIVALS = ("eager", "compile", "compile_autotuned")  # which "the better" is the best of
_CLOCKS = {
    "wall": "elapsed time",
    "events": "time on the stream, cold L2 cache",
    "graph": "replay of a CUDA graph, cold L2 cache",
}


def measured(document: Document) -> list[Record]:
    """The results that have figures, without those of the host's time."""
    return [record for record in document["results"] if record["mode"] != HOST and "error" not in record]


def clocks(document: Document) -> list[str]:
    return list(dict.fromkeys(clock for record in measured(document) for clock in record["floor"]))


def contestants(document: Document) -> list[str]:
    """Names in the order of the columns."""
    present = {name for record in measured(document) for name in record["contestants"]}
    return [name for name in _TITLES if name in present]


def title(document: Document, contestant: str) -> str:
    return document["peer"] if contestant == "peer" else _TITLES.get(contestant, contestant)


def memory_reused(document: Document) -> bool:
    return all(value is not None for value in document["allocator"].values())


def machine(document: Document) -> str:
    device = document["device"]
    if device["type"] == "cuda":
        return f"{device['name']} (driver {device['driver']}, CUDA {device['cuda']})"
    return f"{device['name']} ({device['instruction_set']}), {document['threads']} threads"


def origin(document: Document) -> str:
    """Where the figures come from, in one paragraph."""
    versions = document["versions"]
    backends = [name for name, missing in document["backends"].items() if missing is None]
    settings = [f"{name}={value}" for name, value in document["allocator"].items() if value is not None]
    parts = [
        machine(document),
        f"backend {document['backend']} (there: {', '.join(backends)})",
        f"sod_ops {versions['sod_ops']} at {_commit(document)}",
        *(f"{name} {versions[name]}" for name in ("torch", "triton", "torchvision", "python") if versions.get(name)),
        document["date"][:10],
        f"load average {document['load_average']:.1f} at the start",
        f"memory reused ({' '.join(settings)})" if memory_reused(document) else "the C library's default allocator",
    ]
    return "; ".join(parts) + "." + _warnings(document)


def occasion(document: Document) -> str:
    """When an op was measured, and how."""
    return f"`{document['command']}` at {_commit(document)}, {document['date'][:10]}." + _warnings(document)


def _commit(document: Document) -> str:
    commit = document["commit"]
    return f"{commit['id'][:10]}{' with changes' if commit['dirty'] else ''}"


def _warnings(document: Document) -> str:
    warnings = ["Too few rounds to be quoted."] if document.get("quick") else []
    warnings += [] if document.get("complete", True) else ["Only a part of the cases."]
    return "".join(f" **{warning}**" for warning in warnings)


def tables(document: Document) -> list[str]:
    """Everything that was measured of an op."""
    lines: list[str] = []
    for clock in clocks(document):
        for mode in MODES:
            records = [record for record in measured(document) if record["mode"] == mode]
            if records:
                lines += [f"### {mode}: {_CLOCKS[clock]}", "", *_mode_table(document, records, clock), ""]
    return [*lines, *notes(document)]


def headline_table(document: Document) -> list[str]:
    """An op's headline cases, forward / forward + backward."""
    if not measured(document):
        return []
    clock = clocks(document)[0]
    names = contestants(document)
    cases: dict[str, list[Record]] = {}
    for record in measured(document):
        if record["headline"]:
            cases.setdefault(record["case"], []).append(record)
    header = [
        document["op"],
        *(f"{title(document, name)}, ms" for name in names),
        "speedup over the better",
        "of the floor",
    ]
    rows = [
        [
            case,
            *(" / ".join(_time(record, name, clock) for record in records) for name in names),
            " / ".join(_speedup_over_better(record, clock) for record in records),
            " / ".join(f"{record['floor_fraction'][clock]['median']:.0%}" for record in records),
        ]
        for case, records in cases.items()
    ]
    return table(header, rows)


def notes(document: Document) -> list[str]:
    """The host's time, where ours is slower, and what failed."""
    return [*(line for sentence in _host_times(document) for line in (sentence, "")), *shortfalls(document)]


def shortfalls(document: Document) -> list[str]:
    """Where ours is slower, and what failed."""
    lines: list[str] = []
    if measured(document):
        slower = _losses(document) or ["nowhere among the cases measured"]
        lines += ["Where ours is slower (its speed relative to the other's, 20th to 80th percentile):", ""]
        lines += [*_bullets(slower), ""]
    failed = _failures(document)
    if failed:
        lines += ["What failed:", "", *_bullets(failed), ""]
    return lines


def _mode_table(document: Document, records: Sequence[Record], clock: str) -> list[str]:
    names = contestants(document)
    header = [
        "case",
        *(f"{title(document, name)}, ms" for name in names),
        "speedup over the better",
        "floor, ms",
        "of the floor",
        f"peak memory, MiB: {' / '.join(title(document, name) for name in names)}",
    ]
    rows = [
        [
            record["case"],
            *(_time(record, name, clock, spread=True) for name in names),
            _speedup_over_better(record, clock, spread=True),
            three_digits(1e3 * record["floor"][clock]["median"]),
            f"{record['floor_fraction'][clock]['median']:.0%}",
            " / ".join(_mebibytes(record, name) for name in names),
        ]
        for record in records
    ]
    return table(header, rows)


def _host_times(document: Document) -> list[str]:
    sentences = []
    for record in document["results"]:
        if record["mode"] == HOST and "error" not in record:
            times = {name: 1e6 * figures["host"]["median"] for name, figures in record["contestants"].items()}
            over = {key: 1e6 * value for key, value in record["over_empty_operator"].items()}
            sentences.append(
                f"A call without gradients on {record['case']} returns after {times['ours']:.1f} µs (eager "
                f"{times['eager']:.1f}, an operator that computes nothing {times['empty operator']:.1f}): "
                f"{over['median']:.1f} µs ({over['p20']:.1f} to {over['p80']:.1f}) over that operator."
                + _with_gradients(record)
            )
    return sentences


def _with_gradients(record: Record) -> str:
    if "with_gradients" not in record:
        return ""
    phases = {
        phase: " (eager ".join(f"{1e6 * times[name]['median']:.1f}" for name in ("ours", "eager")) + ")"
        for phase, times in record["with_gradients"].items()
    }
    return f" With gradients it returns after {phases['forward']}, and its backward alone after {phases['backward']}."


def _losses(document: Document) -> list[str]:
    """Every contestant that was faster than ours, by the median of the ratios within a round."""
    return [
        f"{record['case']}, {record['mode']} ({clock}): {_range(speedup)} of {title(document, name)}"
        for record in measured(document)
        for clock, speedups in record["speedup"].items()
        for name, speedup in speedups.items()
        if round(speedup["median"], 2) < 1
    ]


def _failures(document: Document) -> list[str]:
    """Every case and every contestant that has an error instead of a time."""
    lines = []
    for record in document["results"]:
        place = f"{record['case']}, {record['mode']}"
        if "error" in record:
            lines.append(f"{place}: `{record['error']}`")
        for name, figures in record.get("contestants", {}).items():
            if "error" in figures:
                lines.append(f"{place}, {title(document, name)}: `{figures['error']}`")
            lines += [
                f"{place}, {title(document, name)} ({clock}): `{entry['error']}`"
                for clock, entry in figures.items()
                if clock in _CLOCKS and "error" in entry
            ]
    return lines


def _time(record: Record, contestant: str, clock: str, *, spread: bool = False) -> str:
    """Milliseconds; with half the distance between the 20th and the 80th percentile."""
    figures = record["contestants"].get(contestant)
    if figures is None:
        return "-"
    statistics = figures.get(clock, {})
    if "median" not in statistics:
        return "failed"
    text = three_digits(1e3 * statistics["median"])
    if not spread:
        return text
    return f"{text} ±{(statistics['p80'] - statistics['p20']) / (2 * statistics['median']):.0%}"


def _speedup_over_better(record: Record, clock: str, *, spread: bool = False) -> str:
    """The least of the speedups over eager and torch.compile."""
    speedups = [record["speedup"][clock][name] for name in RIVALS if name in record["speedup"][clock]]
    if not speedups:
        return "-"
    least = min(speedups, key=lambda speedup: speedup["median"])
    return _range(least) if spread else f"{least['median']:.2f}"


def _mebibytes(record: Record, contestant: str) -> str:
    figures = record["contestants"].get(contestant)
    if figures is None:
        return "-"
    return three_digits(figures["memory"] / 2**20) if "memory" in figures else "failed"


def _range(statistics: dict[str, float]) -> str:
    return f"{statistics['median']:.2f} ({statistics['p20']:.2f} to {statistics['p80']:.2f})"


def three_digits(value: float) -> str:
    """Three significant digits, from a thousandth on."""
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{decimals}f}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return [f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines]


def _bullets(lines: Iterable[str]) -> list[str]:
    return [f"- {line}" for line in lines]

"""What the ops are to show on a GPU of the H200's class, and whether a GPU's results show it."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks import tables
from benchmarks.contest import HOST, TRAINING
from benchmarks.tables import Document, Record


@dataclass(frozen=True)
class Target:
    """At least, for the op's cases whose names match: forward + backward, but for the host's time."""

    op: str
    cases: str  # a regular expression
    better: float | None = None  # speedup over the better of eager and torch.compile
    eager: float | None = None  # speedup over eager
    floor: float | None = None  # fraction of the floor
    memory: float | None = None  # at most this part of eager's peak
    host: float | None = None  # at most these microseconds, of a call without gradients


TARGETS = (
    Target("squeeze_excite", r"(64x256x56x56|64x1024x14x14|32x96x112x112) ", better=2),
    Target("squeeze_excite", r"64x256x128x128 ", floor=0.9),
    Target("pyramid_pool", r"8x2048x64x64 ", better=3, floor=0.9),
    Target("pyramid_upsample_concat", r"8x2048x64x64 ", better=3, floor=0.9),
    Target("pyramid_conv2d", r"(8x2048x64x64|8x512x32x32) ", better=1.8, memory=0.6),
    Target("sigmoid_focal_loss", r"16x1x512x512 .*mean$", better=1.5, eager=10),
    Target("sigmoid_focal_loss", r"64x1x1024x1024 .*mean$", floor=0.95),
    Target("box_iou_loss", r"complete (1000|100000) mean", better=5, eager=30),
    Target("box_iou_loss", r"complete 2 mean", host=15),
    Target("structure_loss", r"16x1x352x352 6 heads", better=30, floor=0.6),
    Target("training_step", r"timm:(seresnet50|efficientnet_b3) ", better=1.1),
    Target("training_step", r"smp:UPerNet\(encoder_name=resnet50", better=1.25),
    Target("training_step", r"F3Net heads 16x3x352x352 ", better=1.5),
)


def section(documents: Sequence[Document]) -> list[str]:
    """Every target against what a GPU's documents hold, met, not met or not measured."""
    header = ["op", "case", "wanted", "found", "met"]
    return tables.table(header, [row for target in TARGETS for row in _rows(target, documents)])


def _rows(target: Target, documents: Sequence[Document]) -> Iterator[list[str]]:
    mode = TRAINING if target.host is None else HOST
    records = [
        record
        for document in documents
        if document["op"] == target.op and tables.memory_reused(document)
        for record in document["results"]
        if record["mode"] == mode and re.match(target.cases, record["case"])
    ]
    if not records:
        yield [target.op, f"`{target.cases}`", _all_wanted(target), "not measured", "-"]
    for record in records:
        if "error" in record:
            yield [target.op, record["case"], _all_wanted(target), f"`{record['error']}`", "no"]
            continue
        for wanted, found, met in _cells(target, record):
            yield [target.op, record["case"], wanted, found, "yes" if met else "no"]


def _all_wanted(target: Target) -> str:
    bounds = {
        "{:g} times the better": target.better,
        "{:g} times eager": target.eager,
        "{:.0%} of the floor": target.floor,
        "{:.0%} of eager's peak memory": target.memory,
        "{:g} µs of the host": target.host,
    }
    return ", ".join(text.format(bound) for text, bound in bounds.items() if bound is not None)


def _cells(target: Target, record: Record) -> Iterator[tuple[str, str, bool]]:
    """What is wanted, what was found, whether that is enough: by the device's own time, where a graph could be replayed."""
    if target.host is not None:
        found = 1e6 * record["contestants"]["ours"]["host"]["median"]
        yield f"{target.host:g} µs of the host", f"{found:.1f}", found <= target.host
        return
    clock = "graph" if "ours" in record["contestants"] and "graph" in record["floor"] else next(iter(record["floor"]))
    for name, bound in (("better", target.better), ("eager", target.eager)):
        if bound is None:
            continue
        speedups = {k: v["median"] for k, v in record["speedup"][clock].items() if name == "better" or k == name}
        rivals = [speedups[rival] for rival in tables.RIVALS if rival in speedups]
        found = min(rivals, default=0.0)
        yield f"{bound:g} times {'the better' if name == 'better' else name}", f"{found:.2f}", found >= bound
    if target.floor is not None:
        found = record["floor_fraction"][clock]["median"]
        yield f"{target.floor:.0%} of the floor", f"{found:.0%}", found >= target.floor
    if target.memory is not None:
        ours, eager = (record["contestants"][name].get("memory", 0) for name in ("ours", "eager"))
        found = ours / eager if eager else float("inf")
        yield f"{target.memory:.0%} of eager's peak memory", f"{found:.0%}", found <= target.memory

"""The benchmarks: one small case from end to end, what they verify and record, and the report."""

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from test_operators import OPS
from torch import Tensor

import sod_ops
from benchmarks import allocator, floors, report, targets
from benchmarks.bench_structure_loss import StructureLoss
from benchmarks.bench_training_step import CASES, TrainingStep
from benchmarks.contest import FORWARD, HOST, MODES, QUICK, TRAINING, Case, Function, WrongResultError, measure
from benchmarks.devices import Clock, Cpu, Run
from sod_ops.cli.models import resolve

ROOT = Path(__file__).parents[1]


def run_benchmarks(*arguments: str) -> str:
    """What pytest prints. The variables that a developer or other tests may have set must not reach it."""
    foreign = {*allocator.REUSED, "SOD_OPS_BACKEND", "TRITON_INTERPRET", *(v for v in os.environ if "XDIST" in v)}
    environment = {name: value for name, value in os.environ.items() if name not in foreign}
    benchmark = "benchmarks/bench_squeeze_excite.py"
    command = [sys.executable, "-m", "pytest", benchmark, "--device", "cpu", "--quick", *arguments]
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


class Finished(NamedTuple):
    output: str
    directory: Path
    document: dict[str, Any]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The smallest case and the host's time, measured once for all tests here."""
    out = tmp_path_factory.mktemp("results")
    output = run_benchmarks("-k", "2x16x8x8 or host", "--out", str(out))
    (path,) = out.glob("*/*.json")
    return Finished(output, path.parent, json.loads(path.read_text()))


def test_results_say_where_they_come_from(finished: Finished) -> None:
    document = finished.document
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    assert document["commit"]["id"] == (head.stdout.strip() if head.returncode == 0 else "unversioned")
    assert document["device"]["type"] == "cpu"
    assert document["threads"] == torch.get_num_threads()
    assert document["versions"]["torch"] == torch.__version__
    assert document["versions"]["sod_ops"] == sod_ops.__version__
    assert "-k '2x16x8x8 or host'" in document["command"]
    assert document["quick"]
    assert not document["complete"]


def test_memory_is_reused_and_the_output_says_so(finished: Finished) -> None:
    assert finished.document["allocator"] == allocator.REUSED
    assert all(f"{name}={value}" in finished.output for name, value in allocator.REUSED.items())


@pytest.mark.parametrize("mode", MODES)
def test_every_contestant_has_its_figures(finished: Finished, mode: str) -> None:
    (record,) = [record for record in finished.document["results"] if record["mode"] == mode]
    assert list(record["contestants"]) == ["eager", "compile", "peer", "ours"]
    result_bytes = 2 * 16 * 8 * 8 * 4
    for figures in record["contestants"].values():
        assert 0 < figures["wall"]["p20"] <= figures["wall"]["median"] <= figures["wall"]["p80"]
        # y, and with a backward x's gradient; no contestant needs ten maps for either
        assert result_bytes <= figures["memory"] <= 10 * result_bytes
    assert list(record["speedup"]["wall"]) == ["eager", "compile", "peer"]
    assert record["floor_bytes"] == (2 if mode == FORWARD else 5) * result_bytes
    floor = record["floor"]["wall"]
    assert floor["median"] == pytest.approx(record["floor_bytes"] / floor["bandwidth"], rel=1e-3)
    assert record["rounds"] == QUICK.least_rounds


def test_host_time_is_compared_with_an_empty_operator(finished: Finished) -> None:
    (record,) = [record for record in finished.document["results"] if record["mode"] == HOST]
    assert list(record["contestants"]) == ["eager", "ours", "empty operator"]
    assert record["over_empty_operator"]["median"] > 0
    for phase in ("forward", "backward"):
        times = record["with_gradients"][phase]
        assert list(times) == ["eager", "ours"]
        assert all(0 < figures["p20"] <= figures["median"] for figures in times.values())
    assert re.search(
        r"With gradients it returns after [\d.]+ \(eager [\d.]+\), and its backward alone", finished.output
    )


def test_a_part_is_not_written_over_the_results() -> None:
    output = run_benchmarks("-k", "host")
    assert "written only with --out" in output
    assert "wrote" not in output


def test_report_draws_and_checks(finished: Finished, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    arguments = [str(finished.directory), "--readme", str(readme)]
    assert report.main([*arguments, "--check"]) == 1
    assert report.main(arguments) == 0
    assert report.main([*arguments, "--check"]) == 0

    # The case is none of the README's, but what was slower there is.
    text = readme.read_text()
    assert text.startswith(f"before\n{report.BEGIN}\n")
    assert text.endswith(f"{report.END}\nafter\n")
    assert "Too few rounds to be quoted" in text
    assert "Where ours is slower" in text
    page = (finished.directory / "README.md").read_text()
    assert len(re.findall(r"^\| 2x16x8x8 R=4 float32 \|", page, flags=re.MULTILINE)) == len(MODES)
    assert (finished.directory / "squeeze_excite.png").read_bytes().startswith(b"\x89PNG")

    readme.write_text(text.replace("nowhere", "everywhere").replace("Milliseconds", "Seconds"))
    assert report.main([*arguments, "--check"]) == 1


def test_report_names_what_lost_and_what_failed(finished: Finished, tmp_path: Path) -> None:
    document = json.loads(json.dumps(finished.document))
    record = document["results"][0]
    record["headline"] = True
    record["speedup"]["wall"]["eager"] = {"median": 0.5, "p20": 0.4, "p80": 0.6}
    record["contestants"]["compile"] = {"error": "InductorError: no"}
    del record["speedup"]["wall"]["compile"]
    (tmp_path / "squeeze_excite.json").write_text(json.dumps(document))
    section = report.readme_section([tmp_path], tmp_path / "README.md")
    assert f"- {record['case']}, {record['mode']} (wall): 0.50 (0.40 to 0.60) of eager\n" in section
    assert f"- {record['case']}, {record['mode']}, torch.compile: `InductorError: no`\n" in section
    (row,) = [line for line in section.splitlines() if line.startswith(f"| {record['case']} |")]
    assert row.split(" | ")[2] == "failed"
    assert row.split(" | ")[5] == "0.50"  # the better is the one that is left


def test_report_draws_a_part(finished: Finished, tmp_path: Path) -> None:
    for mode in (FORWARD, HOST):
        records = [record for record in finished.document["results"] if record["mode"] == mode]
        path = tmp_path / mode / "squeeze_excite.json"
        path.parent.mkdir()
        path.write_text(json.dumps(finished.document | {"results": records}))
        assert report.main([str(path.parent)]) == 0
        assert path.with_suffix(".png").exists() == (mode == FORWARD)  # of the host's time there is nothing to plot


def test_peak_memory_counts_what_is_held_at_once() -> None:
    def run() -> tuple[Tensor, ...]:
        first = torch.zeros(1000, dtype=torch.uint8)
        second = torch.zeros(2000, dtype=torch.uint8)
        del first
        third = torch.zeros(500, dtype=torch.uint8)
        return second, third

    run()
    assert Cpu("a processor").peak_memory(run) == 3000


def test_readme_shows_the_results_of_this_repository() -> None:
    assert report.main(["--readme", str(ROOT / "README.md"), "--check"]) == 0


def test_readme_without_markers_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "README.md").write_text("nothing to replace here\n")
    with pytest.raises(SystemExit) as stopped:
        report.main(["--readme", str(tmp_path / "README.md")])
    assert stopped.value.code == 2
    assert report.BEGIN in capsys.readouterr().err


@dataclass(frozen=True)
class Doubling(Case):
    """y = 2x, with an error in ours or a peer that fails where a test wants one."""

    our_factor: float = 2.0
    our_gradient_factor: float = 1.0
    peer_error: Exception | None = None

    peer_name = "a peer"
    name = "doubling"
    headline = False

    def inputs(self, device: str) -> tuple[Tensor, ...]:
        return (torch.linspace(-1, 1, 64, device=device).requires_grad_(),)

    def reference(self, *inputs: Tensor) -> Tensor:
        return 2 * inputs[0]

    def eager(self) -> Function:
        return lambda x: x + x

    def ours(self) -> Function:
        def double(x: Tensor) -> Tensor:
            y = self.our_factor * x
            if y.requires_grad:
                y.register_hook(lambda gradient: gradient * self.our_gradient_factor)
            return y

        return double

    def peer(self, *inputs: Tensor) -> Callable[[], Tensor]:
        def double() -> Tensor:
            y = inputs[0].mul(2)
            if self.peer_error is not None:
                y.sum().backward()
                raise self.peer_error
            return y

        return double

    def floor_bytes(self, mode: str) -> int:
        return 512


class DriftingClock:
    """Pretends that each contestant takes its own time, on a machine that gets slower from round to round."""

    name = "wall"
    seconds_of_entrants = (6e-3, 8e-3, 2e-3, 1e-3)  # eager, peer, ours, copy

    def __init__(self) -> None:
        self.prepared: list[Run] = []
        self.rounds = 0

    def prepare(self, run: Run) -> Run:
        self.prepared.append(run)
        return run

    def seconds(self, run: Run, calls: int) -> float:
        return self.seconds_of_entrants[self.prepared.index(run)] * (1 + self.rounds)


class Bench:
    """Measures a case here, without torch.compile."""

    def __init__(self) -> None:
        self.clock = DriftingClock()
        self.device = Cpu("a processor")
        self.device.compile_modes = {}

    def measure(self, case: Case, mode: str) -> dict[str, Any]:
        return measure(case, mode, self.device, QUICK, self.run_rounds, autotune=False)

    def run_rounds(self, function: Callable[[], None], rounds: int) -> None:
        for _ in range(rounds):
            function()
            self.clock.rounds += 1


def test_ratios_are_formed_within_a_round() -> None:
    bench = Bench()
    clocks: tuple[Clock, ...] = (bench.clock,)
    bench.device.clocks = clocks
    record = bench.measure(Doubling(), FORWARD)
    assert record["contestants"]["ours"]["wall"]["p80"] > 1.5 * record["contestants"]["ours"]["wall"]["p20"]
    for name, speedup in (("eager", 3.0), ("peer", 4.0)):
        assert record["speedup"]["wall"][name] == pytest.approx({"median": speedup, "p20": speedup, "p80": speedup})
    copied = 2 * 256 * 2**20
    assert record["floor_fraction"]["wall"]["median"] == pytest.approx(512 / copied / 2)


@pytest.mark.parametrize(
    ("case", "mode"),
    [
        (Doubling(our_factor=2.01), FORWARD),
        (Doubling(our_factor=float("nan")), FORWARD),
        (Doubling(our_gradient_factor=1.01), TRAINING),
        (Doubling(our_factor=2.01), HOST),
    ],
    ids=["forward", "nan", "gradient", "host"],
)
def test_a_wrong_result_is_not_timed(case: Case, mode: str) -> None:
    bench = Bench()
    with pytest.raises(WrongResultError, match=r"ours: result \d differs from the reference"):
        bench.measure(case, mode)
    assert bench.clock.rounds == 0


def test_a_contestant_that_fails_is_named_and_leaves_no_gradient_to_the_others() -> None:
    record = Bench().measure(Doubling(peer_error=NotImplementedError("not\nhere")), TRAINING)
    assert record["contestants"]["peer"] == {"error": "NotImplementedError: not"}
    assert list(record["speedup"]["wall"]) == ["eager"]


@pytest.mark.parametrize(
    "case",
    [
        TrainingStep("F3Net heads", (2, 3, 64, 64)),
        StructureLoss((2, 1, 40, 40), heads=2, dtype=torch.bfloat16),
    ],
    ids=lambda case: case.name,
)
def test_cases_of_a_gpu_at_a_small_size(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every contestant is right; torch.compile stands aside."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    record = Bench().measure(case, TRAINING)
    assert list(record["contestants"]) == ["eager", "peer", "ours"]
    assert not [figures["error"] for figures in record["contestants"].values() if "error" in figures]


@pytest.mark.parametrize(
    "case",
    [
        TrainingStep("timm:seresnet18", (2, 3, 64, 64), dtype=torch.float32),
        TrainingStep("smp:UPerNet(encoder_name=resnet18, classes=21)", (2, 3, 64, 64), dtype=torch.float32),
    ],
    ids=lambda case: case.name,
)
def test_training_steps_of_models_are_swapped_and_give_the_reference_s_loss(case: TrainingStep) -> None:
    """Once each: these models are too large for a contest here."""
    inputs = case.inputs("cpu")
    exact = [t.double() if t.is_floating_point() else t for t in inputs]
    expected = case.reference(*exact).item()
    for step in (case.eager(), case.ours()):
        assert step(*inputs).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("case", CASES["cuda"], ids=lambda case: case.name)
def test_the_models_of_a_gpu_exist(case: TrainingStep) -> None:
    if case.library is not None:
        assert resolve(case.model)


def test_a_training_step_ends_with_the_optimizer_and_without_gradients() -> None:
    case = TrainingStep("F3Net heads", (2, 3, 32, 32), dtype=torch.float32)
    step: Any = case.ours()
    inputs = case.inputs("cpu")
    step(*inputs).backward()
    (model, optimizer) = (next(c.cell_contents for c in f.__closure__ if isinstance(c.cell_contents, kind))
                          for f, kind in ((step, torch.nn.Module), (step.finish, torch.optim.Optimizer)))  # fmt: skip
    before = [p.detach().clone() for p in model.parameters()]
    assert all(p.grad is not None for p in model.parameters())
    step.finish()
    assert all(p.grad is None for p in model.parameters())
    assert len(optimizer.state) == len(before)
    for p, b in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, b)


def test_the_notes_show_what_the_cases_must_move() -> None:
    text = floors.NOTES.read_text()
    assert text == report.with_section(text, floors.section(), floors.BEGIN, floors.END), (
        "python -m benchmarks.floors --write"
    )


def made_up_gpu(folder: Path) -> Path:
    """Results as a GPU would leave them: test data, nothing of it was measured."""
    clocks = ("events", "graph")

    def statistics(median: float) -> dict[str, float]:
        return {"median": median, "p20": 0.9 * median, "p80": 1.1 * median}

    def record(case: str, ours: float, *, eager: float = 1e-3, compiled: float = 5e-4, floor: float = 1e-4) -> Any:
        times = {"eager": eager, "compile": compiled, "compile_autotuned": compiled, "peer": eager, "ours": ours}
        return {
            "case": case, "mode": TRAINING, "headline": True, "rounds": 15, "floor_bytes": 10**8,
            "contestants": {
                name: {"memory": 10**6 if name == "ours" else 2 * 10**6} | {clock: statistics(t) for clock in clocks}
                for name, t in times.items()
            },
            "floor": {clock: statistics(floor) | {"bandwidth": 1e12} for clock in clocks},
            "floor_fraction": {clock: statistics(floor / ours) for clock in clocks},
            "speedup": {clock: {k: statistics(t / ours) for k, t in times.items() if k != "ours"} for clock in clocks},
        }  # fmt: skip

    common = {
        "device": {"type": "cuda", "name": "Test Data GPU", "driver": "1.2.3", "cuda": "13.0", "host": "a CPU"},
        "threads": 8, "backend": "auto", "backends": {"triton": None}, "versions": {"sod_ops": "0", "torch": "2.11"},
        "commit": {"id": "0" * 40, "dirty": False}, "date": "2001-02-03T04:05:06+00:00", "allocator": allocator.REUSED,
        "command": "python -m pytest benchmarks", "load_average": 0.0, "complete": True, "quick": False,
    }  # fmt: skip
    documents = {
        "squeeze_excite": [record("64x256x56x56 R=16 float32", 2e-4), record("64x1024x14x14 R=64 float32", 6e-4)],
        "pyramid_conv2d": [record("8x2048x64x64 +512@1 to 512 bfloat16", 2.5e-4)],
    }
    directory = folder / "test-data-gpu"
    directory.mkdir()
    for op, records in documents.items():
        (directory / f"{op}.json").write_text(json.dumps(common | {"op": op, "peer": "a peer", "results": records}))
    return directory


def test_results_of_a_gpu_give_its_table_with_name_and_date_and_where_it_loses(tmp_path: Path) -> None:
    section = report.readme_section([made_up_gpu(tmp_path)], tmp_path / "README.md")
    assert section.startswith("### Test Data GPU (driver 1.2.3, CUDA 13.0)\n")
    assert "2001-02-03" in section
    assert "| 64x256x56x56 R=16 float32 | 1.00 | 0.500 | 0.500 | 1.00 | 0.200 | 2.50 | 50% |" in section
    assert "- 64x1024x14x14 R=64 float32, forward + backward (graph): 0.83 (0.75 to 0.92) of torch.compile" in section
    assert "on a GPU yet" not in section


def test_a_gpu_stands_before_cpus_and_its_absence_is_said(finished: Finished, tmp_path: Path) -> None:
    gpu = made_up_gpu(tmp_path)
    section = report.readme_section([finished.directory, gpu], tmp_path / "README.md")
    assert section.count("### ") == 2
    assert section.startswith("### Test Data GPU")
    section = report.readme_section([finished.directory], tmp_path / "README.md")
    assert section.startswith("Nothing has been measured on a GPU yet")


def test_a_gpu_s_page_says_which_targets_are_met(tmp_path: Path) -> None:
    directory = made_up_gpu(tmp_path)
    assert report.main([str(directory)]) == 0
    page = (directory / "README.md").read_text()
    for row in (
        "| squeeze_excite | 64x256x56x56 R=16 float32 | 2 times the better | 2.50 | yes |",
        "| squeeze_excite | 64x1024x14x14 R=64 float32 | 2 times the better | 0.83 | no |",
        "| pyramid_conv2d | 8x2048x64x64 +512@1 to 512 bfloat16 | 1.8 times the better | 2.00 | yes |",
        "| pyramid_conv2d | 8x2048x64x64 +512@1 to 512 bfloat16 | 60% of eager's peak memory | 50% | yes |",
        "| pyramid_pool | `8x2048x64x64 ` | 3 times the better, 90% of the floor | not measured | - |",
    ):
        assert row in page


@pytest.mark.parametrize("op", OPS)
def test_every_op_s_host_time_is_measured(op: str) -> None:
    assert hasattr(importlib.import_module(f"benchmarks.bench_{op}"), "test_host_time")


@pytest.mark.parametrize("target", targets.TARGETS, ids=lambda target: f"{target.op} {target.cases}")
def test_every_target_has_its_cases(target: targets.Target) -> None:
    """In float32 and bfloat16, but for boxes, whose coordinates bfloat16 rounds to pixels, and models in autocast."""
    module = importlib.import_module(f"benchmarks.bench_{target.op}")
    if target.host is not None:
        return
    cases = [case for case in module.CASES["cuda"] if re.match(target.cases, case.name)]
    assert cases
    assert all(case.headline for case in cases)
    if target.op not in ("box_iou_loss", "training_step"):
        assert {case.dtype for case in cases} == {torch.float32, torch.bfloat16}
    if any(case.channels_last for case in cases if hasattr(case, "channels_last")) and target.op != "training_step":
        assert {(case.dtype, case.channels_last) for case in cases} == {
            (dtype, last) for dtype in (torch.float32, torch.bfloat16) for last in (False, True)
        }

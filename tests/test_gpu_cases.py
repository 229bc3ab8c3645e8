"""What a visit to a GPU runs, as far as a machine without one can tell: its cases, its selection of tests, its script."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gpu_cases import CALLS, LARGE, SMALL, Draw, Training, assert_equals_the_reference, stem
from test_operators import OPS, public_functions

import sod_ops

ROOT = Path(__file__).parents[1]


def test_every_public_function_has_its_call() -> None:
    assert set(CALLS) == {name for op in OPS for name in public_functions(op)}


def test_every_cuda_source_is_sanitized() -> None:
    """A call of its op's name is; and calls that store a gradient scale it, by their incoming gradient of 1/2."""
    sources = {path.stem for path in ROOT.glob("csrc/cuda/*.cu")} - {"scale_gradient"}
    assert sources <= {stem(name) for name in CALLS}
    assert any(call(Draw(SMALL[0], torch.float32, "cpu")).stores_gradient for call in CALLS.values())


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_calls_agree_with_the_reference_here(name: str, dtype: torch.dtype, channels_last: bool) -> None:
    assert_equals_the_reference(CALLS[name](Draw(SMALL[0], dtype, "cpu", channels_last)), dtype)


@pytest.mark.parametrize("name", LARGE)
def test_large_calls_at_a_small_size(name: str) -> None:
    shape = LARGE[name].shape
    assert torch.Size(shape).numel() > 2**31
    LARGE[name].check("cpu", (*shape[:2], 9, 11))


def test_the_model_trains_here() -> None:
    losses = Training.on("cpu", 32).train(6, torch.bfloat16, channels_last=True)
    with sod_ops.use_backend("reference"):
        plain = Training.on("cpu", 32).train(6, torch.bfloat16, channels_last=True)
    assert losses[-1] < losses[0]
    assert losses == pytest.approx(plain, rel=0.05)


def test_what_a_gpu_adds_is_selected() -> None:
    """With a GPU believed in: every op on both GPU backends, its own tests and no other machine's."""
    environment = {name: value for name, value in os.environ.items() if "XDIST" not in name and "TRITON" not in name}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "stand_ins")])
    command = [sys.executable, "-m", "pytest", "-p", "a_gpu", "-m", "gpu", "--collect-only", "-q", "tests"]
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr
    selected = [line for line in finished.stdout.splitlines() if "::" in line]
    assert not [line for line in selected if re.search(r"\[(reference|cpu)-cpu", line)]
    for op in OPS:
        assert any(re.match(rf"tests/test_{op}\.py::test_gradcheck\S*\[triton-cuda", line) for line in selected), op
    for source in ROOT.glob("csrc/cuda/*.cu"):
        # squeeze_excite's own tests ask the device what fits on its chip.
        if source.stem not in ("scale_gradient", "squeeze_excite"):
            test = rf"tests/test_{source.stem}\.py::test_gradcheck\S*\[cuda-cuda"
            assert any(re.match(test, line) for line in selected), source
    for name in CALLS:
        for backend in ("triton", "cuda"):
            assert f"tests/test_gpu.py::test_graph_capture_and_replay[{backend}-{name}]" in selected


@pytest.fixture
def visit(tmp_path: Path) -> "Visit":
    return Visit(tmp_path)


class Visit:
    """A run of scripts/gpu in a folder of its own, with stand-ins that note what they are asked to run."""

    STAND_IN = """#!/usr/bin/env bash
if [[ $1 == -c ]]; then
  [[ $2 == *get_device_capability* ]] && echo 9.0
  [[ $2 == *find_spec* && -n ${WITHOUT:-} && $2 == *"'$WITHOUT'"* ]] && exit 1
  exit 0
fi
echo "$(basename "$0") $* [$TORCH_CUDA_ARCH_LIST ${PYTORCH_NO_CUDA_MEMORY_CACHING:-}]" >>"$NOTES"
[[ -n ${FAILING:-} && $* == *$FAILING* ]] && echo "this one fails" && exit ${STATUS:-3}
exit 0
"""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for path in ("scripts", "tests", "benchmarks/results", "bin", "out"):
            (folder / path).mkdir(parents=True)
        (folder / "scripts" / "gpu").write_text((ROOT / "scripts" / "gpu").read_text())
        (folder / "tests" / "test_gate.py").touch()
        for name in ("python", "compute-sanitizer"):
            (folder / "bin" / name).write_text(self.STAND_IN)
            (folder / "bin" / name).chmod(0o755)

    def __call__(self, **variables: str) -> tuple[int, str, list[str]]:
        """The exit code, what is printed, and the commands that were run."""
        notes = self.folder / "notes"
        notes.write_text("")
        path = os.pathsep.join([str(self.folder / "bin"), os.environ["PATH"]])
        foreign = ("ONLY", "OP", "MINUTES", "OUT")
        environment = {name: value for name, value in os.environ.items() if name not in foreign}
        environment |= {"PATH": path, "NOTES": str(notes)} | variables
        command = ["bash", str(self.folder / "scripts" / "gpu"), "python"]
        finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        return finished.returncode, finished.stdout + finished.stderr, notes.read_text().splitlines()


def test_a_visit_runs_every_part_for_its_architecture_alone(visit: Visit) -> None:
    status, output, commands = visit(OUT=str(visit.folder / "out"))
    assert status == 0, output
    assert all("[9.0" in command for command in commands)
    wanted = (
        r"python setup\.py -q build_ext",
        r"python -m pytest -q -n \d+ --dist loadgroup -m gpu tests ",
        *(rf"compute-sanitizer --tool {tool}check .* -m sanitize -k cuda .* 1\]" for tool in ("mem", "race", "init")),
        r"python -m pytest -q -n \d+ --quick benchmarks ",
        r"python -m pytest -q --minutes \S+ --out benchmarks/results benchmarks ",
        r"python -m benchmarks\.report",
    )  # fmt: skip
    for pattern in wanted:
        assert [command for command in commands if re.match(pattern, command)], pattern
    assert (visit.folder / "out" / "gpu.tar.gz").exists()
    assert {"test.log", "memcheck.log", "bench.log"} <= {p.name for p in (visit.folder / "out" / "gpu").iterdir()}


def test_parts_and_one_op_can_be_chosen(visit: Visit) -> None:
    status, _, commands = visit(ONLY="test,bench", OP="gate", WITHOUT="xdist")
    assert status == 0
    assert [command.partition(" [")[0] for command in commands] == [
        "python -m sod_ops doctor",
        "python -m pytest -q -m gpu tests/test_gpu.py tests/test_gate.py -k gate",
        "python -m pytest -q --minutes 2.5 --out benchmarks/results benchmarks/bench_gate.py",
    ]
    _, _, commands = visit(ONLY="tune", OP="squeeze_excite")
    assert [command.partition(" [")[0] for command in commands] == ["python -m benchmarks.tune squeeze_excite"]


@pytest.mark.parametrize(("failing", "part"), [("build_ext", "build"), ("memcheck", "memcheck"), ("-m gpu", "test")])
def test_parts_after_one_that_failed_still_run(visit: Visit, failing: str, part: str) -> None:
    status, output, commands = visit(FAILING=failing)
    assert status == 1
    assert f"make gpu: failed: {part}\n" in output
    assert "this one fails" in output
    assert commands[-1].startswith("python -m benchmarks.report")


def test_an_op_without_tests_of_a_kind_is_no_failure(visit: Visit) -> None:
    """pytest exits with 5 where it selects nothing."""
    status, output, _ = visit(FAILING="-m sanitize", STATUS="5", OP="cbam")
    assert status == 0
    assert "memcheck: there is nothing of cbam" in output
    status, output, _ = visit(FAILING="-m sanitize", STATUS="5")
    assert status == 1


def test_what_is_needed_is_named(visit: Visit) -> None:
    status, output, commands = visit(WITHOUT="hypothesis")
    assert status == 2
    assert "has no hypothesis" in output
    assert not commands

"""Tuning: every version of the kernels is verified, and the constants are what they were afterwards."""

import importlib

import pytest
import torch
from conftest import ON_GPU
from test_operators import COMPOSITES, OPS

from benchmarks import tune
from benchmarks.bench_gate import Gate
from benchmarks.bench_sigmoid_focal_loss import SigmoidFocalLoss
from benchmarks.contest import WrongResultError
from sod_ops.triton import _planes, gate

DEVICE = "cuda" if ON_GPU else "cpu"


def test_every_op_with_kernels_can_be_tuned() -> None:
    assert list(tune.TUNABLE) == [op for op in OPS if op not in COMPOSITES]
    for op in tune.TUNABLE:
        assert all(isinstance(getattr(*tune._find(constant)), int) for constant in tune.TUNABLE[op])


@pytest.mark.parametrize(
    ("op", "case"), [("gate", Gate((1, 2, 4, 4))), ("sigmoid_focal_loss", SigmoidFocalLoss((2, 1, 30, 40)))]
)
def test_every_version_is_verified_and_timed(op: str, case: Gate | SigmoidFocalLoss) -> None:
    before = {constant: getattr(*tune._find(constant)) for constant in tune.TUNABLE[op]}
    timings = tune.tune(op, case, DEVICE)
    assert len(timings) == 1 + 2 * len(before) + 2
    assert not [timing.error for timing in timings if timing.error]
    assert {constant: getattr(*tune._find(constant)) for constant in before} == before
    lines = tune.rows(op, case, timings)
    assert sorted(line[2] for line in lines) == sorted(version.name for version in tune.versions(op))


def test_a_version_reaches_the_kernels_and_is_gone_afterwards() -> None:
    arguments = (torch.Size((8, 64, 64, 64)), ((64 * 4096, 4096, 64, 1),), 4)
    usual = gate._plan_forward(*arguments)
    with tune.applied(tune.Version("half", "_planes._TILE", _planes._TILE // 2)):
        assert gate._plan_forward(*arguments).constants["BLOCK_P"] == usual.constants["BLOCK_P"] // 2
    assert gate._plan_forward(*arguments) == usual


def test_warps_are_scaled() -> None:
    from triton.runtime.jit import JITFunction

    launched = []

    class Kernel(JITFunction):  # type: ignore[type-arg]
        def __init__(self) -> None:
            pass

    before = JITFunction.run
    try:
        JITFunction.run = lambda self, *arguments, num_warps: launched.append(num_warps)  # type: ignore[assignment]
        with tune.applied(tune.Version("double", warps=2.0)):
            Kernel().run(num_warps=8)
            Kernel().run()
        Kernel().run(num_warps=8)
    finally:
        JITFunction.run = before
    assert launched == [16, 8, 8]


def test_wrong_kernels_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("benchmarks.bench_gate")
    monkeypatch.setattr(module.sod_ops, "gate", lambda x, *logits, **options: x)
    with pytest.raises(WrongResultError):
        tune.tune("gate", Gate((1, 3, 8, 8)), DEVICE)

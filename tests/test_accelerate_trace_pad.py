"""Decoders that pad what they upsampled: served where the sizes leave nothing to pad, and as they are where they do."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate_cases import MODEL_TOLERANCE, assert_same
from torch import Tensor, nn
from torch.nn import functional
from trace_cases import Fusion, PaddedUNet, count_fused_calls, results

import sod_ops

GENERATOR = torch.Generator().manual_seed(0)
# Inputs, and how many of the two steps have nothing to pad: at both levels, at neither, at the upper one.
SIZES = {(16, 24): 2, (17, 23): 0, (18, 22): 1}
BOTH, NEITHER, UPPER = (torch.randn(2, 3, *size, generator=GENERATOR, dtype=torch.float64) for size in SIZES)


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    return count_fused_calls(monkeypatch)


@pytest.fixture
def upsampled(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What nn.Upsample is called on."""
    calls: list[Tensor] = []
    own = nn.Upsample.forward

    def forward(self: nn.Upsample, x: Tensor) -> Tensor:
        calls.append(x)
        return own(self, x)

    monkeypatch.setattr(nn.Upsample, "forward", forward)
    return calls


def build() -> nn.Module:
    torch.manual_seed(0)
    return PaddedUNet().double()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_outputs_and_gradients(training: bool, fused_calls: list[Any], upsampled: list[Tensor]) -> None:
    model = build().train(training)
    plain, keys = copy.deepcopy(model), list(model.state_dict())
    report = sod_ops.accelerate(model, BOTH)
    assert (report.swapped, report.left) == ([("up2", "PaddedUp"), ("up1", "PaddedUp")], [])
    assert list(model.state_dict()) == keys
    for x in (BOTH, NEITHER, UPPER):
        expected = results(plain, x)
        fused_calls.clear()
        upsampled.clear()
        found = results(model, x)
        fused = SIZES[x.shape[2], x.shape[3]]
        assert (len(fused_calls), len(upsampled)) == (fused, 2 - fused)
        assert_same(found, expected, MODEL_TOLERANCE if fused else 0)
    torch.testing.assert_close(model.state_dict(), plain.state_dict())  # running statistics, too


def test_where_something_is_padded_in_the_example_it_is_left_and_named() -> None:
    model = build()
    report = sod_ops.accelerate(model, NEITHER)
    assert report.swapped == []
    assert [reason for _, _, reason in report.left] == 2 * [
        "its upsampled maps are padded before they are concatenated"
    ]
    assert sod_ops.accelerate(model, UPPER).swapped == [("up1", "PaddedUp")]


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
def test_copies_and_restore(copied: Callable[[Any], Any], fused_calls: list[Any]) -> None:
    model = build().eval()
    with torch.no_grad():
        expected = model(BOTH), model(NEITHER)
        sod_ops.accelerate(model, BOTH)
        again = copied(model)
        fused_calls.clear()
        torch.testing.assert_close((again(BOTH), again(NEITHER)), expected)
        assert len(fused_calls) == 2
        assert sod_ops.restore(model) == 2
        torch.testing.assert_close((model(BOTH), model(NEITHER)), expected, rtol=0, atol=0)


def test_compiles_for_either_kind_of_size(fused_calls: list[Any]) -> None:
    torch.compiler.reset()
    model = build().eval()
    with torch.no_grad():
        expected = [model(x) for x in (BOTH, NEITHER, UPPER)]
        sod_ops.accelerate(model, BOTH)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        fused_calls.clear()
        torch.testing.assert_close([compiled(x) for x in (BOTH, NEITHER, UPPER)], expected)
        assert fused_calls


def test_hooks_on_what_upsamples_run_once(fused_calls: list[Any]) -> None:
    model: Any = build().eval()
    sod_ops.accelerate(model, BOTH)
    seen: list[int] = []
    model.up1.upsample.register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        for x in (BOTH, NEITHER):
            expected = type(model.up1).forward(
                model.up1, x[:, :, ::2, ::2].repeat(1, 3, 1, 1)[:, :8], x.repeat(1, 2, 1, 1)
            )
            seen.clear()
            fused_calls.clear()
            found = model.up1(x[:, :, ::2, ::2].repeat(1, 3, 1, 1)[:, :8], x.repeat(1, 2, 1, 1))
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
            assert (len(seen), len(fused_calls)) == (1, 0)


def _up(self: Any, x: Tensor) -> Tensor:
    return functional.interpolate(self.deep(x), scale_factor=4, mode="bilinear")


def _by_shape(self: Any, x: Tensor) -> Tensor:
    up = _up(self, x)
    up = functional.pad(up, pad=(0, x.shape[-1] - up.shape[-1], 0, x.size(dim=2) - up.size(dim=2)), value=3.0)
    return self.fuse(torch.cat((up, x), 1))


def _crops(self: Any, x: Tensor) -> Tensor:
    up = functional.interpolate(self.deep(x), scale_factor=4.0)
    (height, width), (rows, columns) = x.shape[2:], up.shape[2:]
    up = functional.pad(up, [0, width - columns, 0, height - rows])
    return self.fuse(torch.cat((x, up), 1))


def _by_a_ratio(self: Any, x: Tensor) -> Tensor:
    """Whose size is known by upsampling alone, where something is rounded."""
    up = functional.interpolate(self.deep(x), scale_factor=3.7, mode="bilinear")
    up = functional.pad(up, [0, x.shape[3] - up.shape[3], 0, x.shape[2] - up.shape[2]])
    return self.fuse(torch.cat((x, up), 1))


def _size_alone(self: Any, x: Tensor) -> Tensor:
    up = _up(self, x[:, :, : x.shape[2] // 4 * 4, : x.shape[3] // 4 * 4])
    return self.fuse(torch.cat((x[:, :, : up.shape[2], : up.size(3)], up), 1))


def _used_elsewhere(self: Any, x: Tensor) -> Any:
    up = _up(self, x)
    padded = functional.pad(up, [0, x.shape[3] - up.shape[3], 0, x.shape[2] - up.shape[2]])
    return self.fuse(torch.cat((x, padded), 1)), up


def _padded_twice(self: Any, x: Tensor) -> Tensor:
    up = _up(self, x)
    amounts = [0, x.shape[3] - up.shape[3], 0, x.shape[2] - up.shape[2]]
    first = self.fuse(torch.cat((x, functional.pad(up, amounts)), 1))
    return first + self.fuse(torch.cat((functional.pad(up, amounts, "constant", 1.0), x), 1))


@pytest.mark.parametrize(
    ("forward", "calls"),
    [
        (_by_shape, 1),
        (_crops, 1),
        (_by_a_ratio, 1),
        (_size_alone, 1),
        (_padded_twice, 2),
    ],
)
def test_ways_to_write_it(forward: Callable[..., Any], calls: int, fused_calls: list[Any]) -> None:
    model = type("Written", (Fusion,), {"forward": forward})().double()
    plain = copy.deepcopy(model)
    # 10 times 3.7 is 37, and rounded nowhere.
    x = torch.randn(2, 3, 37, 37, generator=GENERATOR, dtype=torch.float64) if forward is _by_a_ratio else BOTH
    assert len(sod_ops.accelerate(model, x).swapped) == 1
    fused_calls.clear()
    assert_same(results(model, x), results(plain, x), MODEL_TOLERANCE)
    assert len(fused_calls) == calls
    for size in ((17, 22), (19, 27)):
        x = torch.randn(2, 3, *size, generator=GENERATOR, dtype=torch.float64)
        fused_calls.clear()
        assert_same(results(model, x), results(plain, x), MODEL_TOLERANCE if forward is _size_alone else 0)
        assert len(fused_calls) == (forward is _size_alone)


def test_a_map_that_is_used_elsewhere_is_upsampled_once(fused_calls: list[Any]) -> None:
    model = type("Written", (Fusion,), {"forward": _used_elsewhere})()
    model.deep = nn.Conv2d(3, 512, 3, 4, 1)
    model.fuse = nn.Conv2d(515, 4, 3, padding=1)
    model.double()
    plain = copy.deepcopy(model)
    assert len(sod_ops.accelerate(model, BOTH).swapped) == 1
    for x, calls in ((BOTH, 1), (NEITHER, 0)):
        fused_calls.clear()
        assert_same(results(model, x), results(plain, x), MODEL_TOLERANCE if calls else 0)
        assert len(fused_calls) == calls


def _padded_map_used_elsewhere(self: Any, x: Tensor) -> Any:
    up = _up(self, x)
    up = functional.pad(up, [0, x.shape[3] - up.shape[3], 0, x.shape[2] - up.shape[2]])
    return self.fuse(torch.cat((x, up), 1)), up


def test_a_padded_map_that_is_used_elsewhere_is_left() -> None:
    model = type("Written", (Fusion,), {"forward": _padded_map_used_elsewhere})().double()
    report = sod_ops.accelerate(model, BOTH)
    assert report.swapped == []
    assert "no fused form" in report.left[0][2]

"""Decoders of a user's own, found by a run on example inputs: what is served, what stays, and which calls are not served."""

import copy
import pickle
import random
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate_cases import MODEL_TOLERANCE, assert_same, smp, torchvision
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from trace_cases import BASNetDecoder, ConvBlock, Fusion, U2Net, count_fused_calls, results

import sod_ops

X = torch.randn(2, 3, 37, 29, generator=torch.Generator().manual_seed(0))
MODELS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {  # builder, modules swapped, fused calls
    "U2-Net": (U2Net, 6, 8),
    "BASNet": (BASNetDecoder, 1, 3),
}

pytestmark = pytest.mark.filterwarnings("ignore:.*upsample.* is deprecated")


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    return count_fused_calls(monkeypatch)


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name][0]().double()


def accelerate(model: nn.Module, x: Tensor = X) -> Any:
    return sod_ops.accelerate(model, x.to(next(model.parameters()).dtype))


def why_left(model: nn.Module, x: Tensor = X) -> str:
    report = accelerate(model, x)
    assert report.swapped == [], report
    ((_, _, reason),) = report.left
    return reason


# Decoders as they are published


def test_outputs_and_gradients(name: str, fused_calls: list[Any]) -> None:
    model, x = build(name), X.double()
    keys, children = list(model.state_dict()), list(model.modules())
    expected = results(model, x)
    report = accelerate(model)
    assert (len(report.swapped), report.left) == (MODELS[name][1], [])
    assert list(model.state_dict()) == keys
    assert list(model.modules()) == children
    fused_calls.clear()
    assert_same(results(model, x), expected, MODEL_TOLERANCE)
    assert len(fused_calls) == MODELS[name][2]


def test_other_sizes_modes_and_weights(name: str, fused_calls: list[Any]) -> None:
    """Nothing of the example's shape, of the mode or of the weights is in the trace."""
    model = build(name).eval()
    plain = copy.deepcopy(model)
    accelerate(model)
    source = build(name)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.mul_(1.5)
    for each in (model, plain):
        each.load_state_dict(source.state_dict())
    for training in (True, False):
        for shape in ((1, 3, 32, 48), (3, 3, 23, 64)):
            x = torch.randn(shape, dtype=torch.float64)
            model.train(training)
            plain.train(training)
            fused_calls.clear()
            assert_same(results(model, x), results(plain, x), MODEL_TOLERANCE)
            assert len(fused_calls) == MODELS[name][2]
    torch.testing.assert_close(model.state_dict(), plain.state_dict())  # running statistics, too


def test_training_follows_the_same_losses(name: str, fused_calls: list[Any]) -> None:
    x = X.double()
    curves = []
    for swap in (False, True):
        model = build(name).train()
        if swap:
            accelerate(model)
            fused_calls.clear()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
        curve = []
        for _ in range(20):
            optimizer.zero_grad()
            outputs = model(x)
            loss = sum((y - 0.3).square().mean() for y in outputs)
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        curves.append(curve)
    assert len(fused_calls) == 20 * MODELS[name][2]
    assert curves[0][-1] < curves[0][0]
    torch.testing.assert_close(torch.tensor(curves[1]), torch.tensor(curves[0]), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
def test_copies_and_restore(name: str, copied: Callable[[Any], Any], fused_calls: list[Any]) -> None:
    model, x = build(name).eval(), X.double()
    with torch.no_grad():
        before = model(x)
        accelerate(model)
        again = copied(model)
        expected = model(x)
        fused_calls.clear()
        torch.testing.assert_close(again(x), expected, rtol=0, atol=0)
        assert len(fused_calls) == MODELS[name][2]
        for parameter in again.parameters():
            parameter.zero_()  # of the copy alone
        torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
        fused_calls.clear()
        assert sod_ops.restore(model) == MODELS[name][1]
        torch.testing.assert_close(model(x), before, rtol=0, atol=0)
        assert not fused_calls


def test_without_example_inputs_nothing_happens(name: str) -> None:
    model = build(name)
    assert sod_ops.accelerate(model) == sod_ops.accelerate(nn.Identity())
    assert sod_ops.restore(model) == 0


def test_compile_autocast_and_jit(name: str, fused_calls: list[Any]) -> None:
    torch.compiler.reset()
    model, x = build(name).float().eval(), X
    with torch.no_grad():
        expected = model(x)
        accelerate(model)
        fused_calls.clear()
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close([y.float() for y in model(x)], list(expected), rtol=0, atol=0.1)
        fused_calls.clear()
        torch.testing.assert_close(torch.jit.trace(model, x, check_trace=False)(x), expected)
        assert not fused_calls  # the trace has PyTorch's own operators alone


def test_hooks_run(fused_calls: list[Any]) -> None:
    """On modules that the trace calls, beside the fused op; on those that it goes through, in place of it."""
    model, x = build("U2-Net").eval(), X.double()
    accelerate(model)
    seen: list[str] = []
    with torch.no_grad():
        expected = model(x)
        model.side2.register_forward_hook(lambda *_: seen.append("side2"))
        fused_calls.clear()
        torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
        assert (seen, len(fused_calls)) == (["side2"], 8)
        model.decoder2.register_forward_hook(lambda *_: seen.append("decoder2"))
        fused_calls.clear()
        torch.testing.assert_close(model(x), expected)
        assert seen[1:] == ["decoder2", "side2"]
        assert len(fused_calls) == 5  # those of the blocks, which have traces of their own
    convolution = build("BASNet").double()
    accelerate(convolution)
    convolution.decoder1[0].register_forward_hook(lambda *_: seen.append("convolution"))
    fused_calls.clear()
    convolution(x)
    assert (seen[-1], len(fused_calls)) == ("convolution", 2)


def test_a_parametrized_convolution_runs_its_own_way(fused_calls: list[Any]) -> None:
    model, x = build("BASNet").eval(), X.double()
    accelerate(model)
    nn.utils.parametrizations.weight_norm(model.decoder1[0])
    fused_calls.clear()
    with torch.no_grad():
        torch.testing.assert_close(model(x), type(model).forward(model, x))
    assert not fused_calls


# What Python decides


class Choosing(Fusion):
    align_corners, twice, mask = False, False, None

    def __init__(self) -> None:
        super().__init__()
        self.options = {"scale": 1.0}

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        deep = self.deep(x)
        up = functional.interpolate(deep, x.shape[2:], mode="bilinear", align_corners=self.align_corners)
        y = self.fuse(torch.cat((x, up), 1)) * scale * self.options["scale"]
        return y + self.bias if self.bias is not None else y


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.options.update(scale=3.0),
        lambda m: setattr(m, "bias", nn.Parameter(torch.ones(1))),
        lambda m: setattr(m, "fuse", nn.Sequential(nn.Conv2d(7, 4, 3, padding=1), nn.ReLU())),
    ],
    ids=["attribute", "parameter", "child"],
)
def test_what_a_trace_depends_on_is_looked_at_in_every_call(
    change: Callable[[Any], Any], fused_calls: list[Any]
) -> None:
    model = Choosing()
    assert len(accelerate(model).swapped) == 1
    fused_calls.clear()
    model(X)
    assert len(fused_calls) == 1
    change(model)
    torch.testing.assert_close(model(X), Choosing.forward(model, X))
    assert len(fused_calls) == 1


def test_other_arguments_run_the_modules_own_forward(fused_calls: list[Any]) -> None:
    model = Choosing()
    accelerate(model)
    fused_calls.clear()
    for args, kwargs in (((X, 2.0), {}), ((X,), {"scale": 2.0}), ((), {"x": X})):
        torch.testing.assert_close(model(*args, **kwargs), Choosing.forward(model, *args, **kwargs))
    assert fused_calls == []
    with pytest.raises(TypeError, match="unexpected keyword argument 'images'"):
        model(images=X)


class Dropping(Fusion):
    def forward(self, x: Tensor) -> Tensor:
        up = functional.interpolate(self.deep(x), x.shape[2:], mode="nearest")
        return functional.dropout(self.fuse(torch.cat((x, up), 1)), 0.5, self.training)


@pytest.mark.parametrize("training", [True, False])
def test_a_forward_that_depends_on_the_mode_is_served_in_its_mode(training: bool, fused_calls: list[Any]) -> None:
    model = Dropping().train(training)
    assert len(accelerate(model).swapped) == 1
    for mode in (training, not training, training):
        model.train(mode)
        fused_calls.clear()
        torch.manual_seed(0)
        found = model(X)
        torch.manual_seed(0)
        torch.testing.assert_close(found, Dropping.forward(model, X))
        assert len(fused_calls) == (mode is training)


class Lists(Fusion):
    def forward(self, features: list[Tensor], size: int, skip: Tensor | None = None) -> dict[str, Tensor]:
        x, *rest = features
        maps = [x] if skip is None else [skip]
        for deep in rest:
            maps.append(functional.interpolate(deep, size, mode="bilinear"))
        return {"out": self.fuse(torch.cat(maps, 1))}


class WithLists(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lists = Lists()

    def forward(self, x: Tensor) -> Tensor:
        return self.lists([x, self.lists.deep(x)], x.shape[2])["out"]


def test_lists_integers_and_dictionaries(fused_calls: list[Any]) -> None:
    model = WithLists()
    assert accelerate(model, X[..., :29, :]).swapped == [("lists", "Lists")]
    for size in (29, 16):
        x = torch.randn(1, 3, size, size)
        fused_calls.clear()
        torch.testing.assert_close(
            model.lists([x, x[:, :, ::4, ::4].repeat(1, 2, 1, 1)[:, :4]], size)["out"].shape[2], size
        )
        assert len(fused_calls) == 1
    x = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(
        model.lists([x, torch.ones(1, 4, 2, 2)], 8, 2 * x),
        Lists.forward(model.lists, [x, torch.ones(1, 4, 2, 2)], 8, 2 * x),
    )
    assert len(fused_calls) == 1


# What is left, and named


def _deep(self: Any, x: Tensor) -> Tensor:
    return functional.interpolate(self.deep(x), x.shape[2:], mode="bilinear")


def fusion(forward: Callable[..., Any]) -> nn.Module:
    return type("Written", (Fusion,), {"forward": forward})()


def _control_flow(self: Any, x: Tensor) -> Tensor:
    up = _deep(self, x)
    return self.fuse(torch.cat((x, up if x.abs().sum() > 0 else -up), 1))


def _is_a_tensor(self: Any, x: Tensor) -> Tensor:
    y = self.fuse(torch.cat((x, _deep(self, x)), 1))
    return y if isinstance(x, Tensor) else 2 * y


def _assigns(self: Any, x: Tensor) -> Tensor:
    self.last = x
    return self.fuse(torch.cat((x, _deep(self, x)), 1))


def _appends(self: Any, x: Tensor) -> Tensor:
    self.seen.append(1)
    return self.fuse(torch.cat((x, _deep(self, x)), 1))


def _draws(self: Any, x: Tensor) -> Tensor:
    up = _deep(self, x)
    return self.fuse(torch.cat((x, up if random.random() < 2 else -up), 1))


def _no_grad(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        up = _deep(self, x)
    return self.fuse(torch.cat((x, up), 1))


def _asks_for_grad_mode(self: Any, x: Tensor) -> Tensor:
    y = self.fuse(torch.cat((x, _deep(self, x)), 1))
    return y if torch.is_grad_enabled() else y.relu()


def _asks_for_autocast(self: Any, x: Tensor) -> Tensor:
    y = self.fuse(torch.cat((x, _deep(self, x)), 1))
    return y if torch.is_autocast_enabled("cpu") else y.relu()


def _no_autocast(self: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=True):
        return self.fuse(torch.cat((x, _deep(self, x)), 1))


def _checkpoints(self: Any, x: Tensor) -> Tensor:
    return checkpoint(lambda x: self.fuse(torch.cat((x, _deep(self, x)), 1)), x, use_reentrant=False)


def _makes_a_tensor(self: Any, x: Tensor) -> Tensor:
    return self.fuse(torch.cat((x, _deep(self, x)), 1)) + torch.ones(1)


def _changes_in_place(self: Any, x: Tensor) -> Tensor:
    deep = self.deep(x)
    up = functional.interpolate(deep, x.shape[2:], mode="bilinear")
    deep += 1
    return self.fuse(torch.cat((x, up), 1)) + deep.sum()


def _concatenation_used_twice(self: Any, x: Tensor) -> Tensor:
    cat = torch.cat((x, _deep(self, x)), 1)
    return self.fuse(cat) + cat.sum()


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (_control_flow, "does not trace: TraceError"),
        (_is_a_tensor, "on example_inputs the output deviates"),
        (_assigns, "assigns attributes"),
        (_appends, "assigns attributes"),
        (_draws, "draws random numbers"),
        (_no_grad, "changes the grad mode or autocast"),
        (_asks_for_grad_mode, "depends on the grad mode"),
        (_asks_for_autocast, "depends on autocast"),
        (_no_autocast, "changes the grad mode or autocast"),
        (_checkpoints, "hooks what is saved|does not trace"),
        (_makes_a_tensor, "makes a tensor"),
        (_changes_in_place, "deviates|raises RuntimeError"),
        (_concatenation_used_twice, "more than a convolution reads"),
    ],
)
def test_what_no_trace_holds_is_left_and_named(
    forward: Callable[..., Any], reason: str, fused_calls: list[Any]
) -> None:
    model: Any = fusion(forward)
    torch.manual_seed(0)
    state, generator = random.getstate(), torch.get_rng_state()
    expected = model(X)
    random.setstate(state)
    before = {key: value.copy() if isinstance(value, list) else value for key, value in vars(model).items()}
    assert re.search(reason, why_left(model))
    after = {key: value for key, value in vars(model).items() if key not in ("last", "seen")}
    assert after == {key: value for key, value in before.items() if key not in ("last", "seen")}
    assert torch.equal(torch.get_rng_state(), generator)
    fused_calls.clear()
    torch.testing.assert_close(model(X), expected)
    assert fused_calls == []


@pytest.mark.parametrize(
    ("convolution", "reason"),
    [
        (nn.Conv2d(7, 4, 3, padding=2, dilation=2), "dilation=(2, 2)"),
        (nn.Conv2d(7, 7, 3, padding=1, groups=7), "groups=7"),
        (nn.Conv2d(7, 4, 5, padding=2), "kernel_size=(5, 5)"),
        (nn.Dropout(0.5), "torch.nn.modules.dropout.Dropout"),
    ],
    ids=["dilation", "groups", "kernel", "dropout"],
)
def test_what_reads_the_concatenation_is_named(convolution: nn.Module, reason: str) -> None:
    model = Fusion()
    model.fuse = convolution
    assert reason in why_left(model)


def test_a_model_that_fails_in_float64_is_left() -> None:
    class Refuses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.dtype == torch.float64:
                raise RuntimeError("float64")
            return x

    model = Fusion()
    model.deep = nn.Sequential(model.deep, Refuses())
    assert "or those in float64, can't be had" in why_left(model)


def test_scripted_children_are_called(fused_calls: list[Any]) -> None:
    model = Fusion()
    model.deep = torch.jit.script(model.deep)
    expected = model(X)
    assert len(accelerate(model).swapped) == 1
    fused_calls.clear()
    torch.testing.assert_close(model(X), expected)
    assert len(fused_calls) == 1


# Ways to write it


def _two_convolutions(self: Any, x: Tensor) -> Tensor:
    cat = torch.cat([_deep(self, x), x], 1)
    return self.fuse(cat[:, :]) if self.last else self.fuse(cat) + self.other(cat)


def _keeps_the_map(self: Any, x: Tensor) -> Any:
    up = _deep(self, x)
    return self.fuse(torch.cat((up, x), dim=1)), up


def _scale_factor(self: Any, x: Tensor) -> Tensor:
    x = x[:, :, :36, :28]
    deep = self.deep(x)
    up = functional.interpolate(deep, scale_factor=4, mode="bilinear", align_corners=True)
    return self.fuse(torch.cat(tensors=(x, up), axis=-3))


def _between(self: Any, x: Tensor) -> Tensor:
    up = _deep(self, x)
    return self.fuse(torch.cat((x[:, :1], up, x[:, 1:]), 1))


def _two_modes(self: Any, x: Tensor) -> Tensor:
    deep = self.deep(x)
    nearest = functional.interpolate(deep[:, :1], x.shape[2:])
    bilinear = functional.interpolate(deep[:, 1:], [length * 1 for length in x.shape[2:]], mode="bilinear")
    return self.fuse(torch.cat((nearest, x, bilinear), 1))


def _branches_alone(self: Any, x: Tensor) -> Tensor:
    deep = self.deep(x)
    ups = [functional.interpolate(part, (20, 30), mode="bilinear") for part in (deep, deep[:, :3])]
    return self.fuse(torch.cat(ups, 1))


@pytest.mark.parametrize(
    ("forward", "calls"),
    [
        (_two_convolutions, 2),
        (_scale_factor, 1),
        (_between, 1),
        (_two_modes, 1),
        (_branches_alone, 1),
    ],
)
def test_ways_to_write_it(forward: Callable[..., Any], calls: int, fused_calls: list[Any]) -> None:
    model = fusion(forward).double()
    expected = results(model, X.double())
    assert len(accelerate(model).swapped) == 1
    fused_calls.clear()
    assert_same(results(model, X.double()), expected, MODEL_TOLERANCE)
    assert len(fused_calls) == calls


def test_a_map_that_is_used_elsewhere_stays(fused_calls: list[Any]) -> None:
    """It is convolved at its own size where that is cheaper, as it is for the channels of this one."""
    model = fusion(_keeps_the_map)
    model.deep = nn.Conv2d(3, 512, 3, 4, 1)
    model.fuse = nn.Conv2d(515, 4, 3, padding=1)
    model.double()
    expected = results(model, X.double())
    assert len(accelerate(model).swapped) == 1
    fused_calls.clear()
    assert_same(results(model, X.double()), expected, MODEL_TOLERANCE)
    assert len(fused_calls) == 1


def test_sizes_that_do_not_fit_fail_as_before() -> None:
    class Doubling(Fusion):
        def forward(self, x: Tensor) -> Tensor:
            up = functional.interpolate(self.deep(x), scale_factor=4.0, mode="bilinear")
            return self.fuse(torch.cat((x, up), 1))

    model = Doubling()
    assert len(accelerate(model, X[..., :32, :28]).swapped) == 1
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        model(X)


def test_deviating_trace_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    own = sod_ops.pyramid_conv2d
    module = sys.modules["sod_ops.accelerate.upsample_concat"]
    monkeypatch.setattr(module, "pyramid_conv2d", lambda *a, **k: 1.001 * own(*a, **k))
    model = build("BASNet").float()
    assert "on example_inputs" in why_left(model)
    assert "forward" not in vars(model)


# Libraries' modules that are written so


def test_the_pooling_branch_of_deeplab(fused_calls: list[Any]) -> None:
    """Its one pixel is upsampled in a module of its own, concatenated and convolved in that around it."""
    aspp = torchvision.models.segmentation.deeplabv3.ASPP(12, [2, 3, 4], 8).eval().double()
    x = torch.randn(2, 12, 11, 9, dtype=torch.float64)
    expected = results(aspp, x)
    assert accelerate(aspp, x).swapped == [("", "ASPP")]
    fused_calls.clear()
    assert_same(results(aspp, x), expected, MODEL_TOLERANCE)
    assert len(fused_calls) == 1


def test_smp_decoders() -> None:
    x = torch.randn(2, 3, 64, 96)
    model = smp.DeepLabV3Plus("resnet18", encoder_weights=None, decoder_channels=16).eval()
    report = sod_ops.accelerate(model, x)
    assert report.swapped == [("decoder.aspp.0", "ASPP")]
    assert [(kind, "groups=64" in reason) for _, kind, reason in report.left] == [("DeepLabV3PlusDecoder", True)]
    concatenating = smp.FPN(
        "resnet18", encoder_weights=None, decoder_merge_policy="cat", decoder_segmentation_channels=32
    )
    reasons = {kind: reason for _, kind, reason in sod_ops.accelerate(concatenating.eval(), x).left}
    assert "Dropout2d" in reasons["FPNDecoder"]


def test_conv_block_of_the_cases_is_not_known_by_path() -> None:
    assert sod_ops.accelerate(ConvBlock(3, 4)).left == []

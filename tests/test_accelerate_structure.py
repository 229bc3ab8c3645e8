"""Attention in modules of a user's own: CBAM, scSE and TRACER's modules, known by what they compute or consist of."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import attention_cases as cases
import pytest
import torch
from accelerate_cases import MODULE_TOLERANCE, assert_same
from torch import Tensor, nn
from torch.nn import functional

import sod_ops
from sod_ops.accelerate import attention, followers, gate, tracer

C = 8
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(3, C, 7, 9, generator=GENERATOR, dtype=torch.float64)
LOGITS = 3 * torch.randn(3, 1, 7, 9, generator=GENERATOR, dtype=torch.float64)

OPS = (
    (attention, "gate"),
    (attention, "channel_pool"),
    (attention, "global_pool"),
    (gate, "squeeze_excite"),
    (tracer, "object_attention"),
    (tracer, "attend_to_rows"),
    (tracer, "high_frequencies"),
)
# Builder, the modules swapped, and what a call then runs.
BLOCKS: dict[str, tuple[Callable[[], nn.Module], list[str], list[str]]] = {
    "CBAM": (
        lambda: cases.CBAM(C),
        ["ChannelGate", "SpatialGate", "ChannelPool"],
        ["global_pool", "gate", "channel_pool", "gate"],
    ),
    "CBAM-in-a-block": (
        lambda: cases.AttentiveBasicBlock(C),
        ["AttentiveBasicBlock", "ChannelAttention", "SpatialAttention"],
        ["global_pool", "gate", "channel_pool", "gate"],
    ),
    "CBAM-sequential": (
        lambda: cases.AttentiveBasicBlock(C, cases.SequentialChannelAttention),
        ["AttentiveBasicBlock", "SequentialChannelAttention", "SpatialAttention"],
        ["global_pool", "gate", "channel_pool", "gate"],
    ),
    "SCSEModule": (lambda: cases.SCSEModule(C), ["SCSEModule"], ["gate"]),
    "SCSEBlock": (lambda: cases.SCSEBlock(C), ["SCSEBlock", "ChannelSE", "SpatialSE"], ["gate"]),
    "ChannelSpatialSELayer": (
        lambda: cases.ChannelSpatialSELayer(C),
        ["ChannelSELayer", "SpatialSELayer"],
        ["squeeze_excite", "gate"],
    ),
    "ObjectAttention": (lambda: cases.ObjectAttention(C), ["ObjectAttention"], ["object_attention"]),
    "UnionAttentionModule": (lambda: cases.UnionAttentionModule(C), ["UnionAttentionModule"], ["attend_to_rows"]),
    "Frequency_Edge_Module": (
        lambda: cases.Frequency_Edge_Module(2, C),
        ["Frequency_Edge_Module"],
        ["high_frequencies"],
    ),
}


@pytest.fixture(params=BLOCKS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which ops ran, so that no test of equality passes by running the module's own forward; maps of all sizes are
    large enough."""
    ran: list[str] = []

    def counting(op: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            ran.append(op)
            return function(*args, **kwargs)

        return call

    for module, op in OPS:
        monkeypatch.setattr(module, op, counting(op, getattr(module, op)))
    for size in ("_SMALL", "_LARGE"):
        monkeypatch.setattr(followers, size, 0)
    return ran


def build(block: Callable[[], nn.Module]) -> nn.Module:
    """With weights and statistics that leave no part of it without effect."""
    torch.manual_seed(0)
    module = block().double()
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            assert child.running_mean is not None
            assert child.running_var is not None
            nn.init.uniform_(child.weight, 0.5, 1.5)
            nn.init.normal_(child.bias)
            child.running_mean.normal_()
            child.running_var.uniform_(0.5, 1.5)
    return module


def inputs_of(module: nn.Module, x: Tensor = X) -> tuple[Tensor, ...]:
    return (LOGITS.to(x), x) if isinstance(module, cases.ObjectAttention) else (x,)


def results(module: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """The outputs, and the gradients of all inputs and parameters; from one random state, as dropout draws."""
    torch.manual_seed(1)
    inputs = tuple(x.detach().clone().requires_grad_() for x in inputs)
    outputs = module(*inputs)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    leaves = {**{f"input {i}": x for i, x in enumerate(inputs)}, **dict(module.named_parameters())}
    loss = sum((y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum() for y in outputs)
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return {**{f"output {i}": y.detach() for i, y in enumerate(outputs)}, **dict(zip(leaves, gradients, strict=True))}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_outputs_and_gradients(name: str, training: bool, calls: list[str]) -> None:
    block, kinds, ops = BLOCKS[name]
    model = build(block).train(training)
    plain, keys = copy.deepcopy(model), list(model.state_dict())
    report = sod_ops.accelerate(model, inputs_of(model))
    assert sorted(kind for _, kind in report.swapped) == sorted(kinds)
    assert [kind for _, kind, _ in report.left if kind not in ("SCSEBlock", "ChannelSpatialSELayer")] == []
    assert list(model.state_dict()) == keys
    other_size = torch.randn(2, C, 6, 5, dtype=torch.float64)
    for mode, x in ((training, X), (not training, X), (training, X.to(memory_format=torch.channels_last))):
        inputs = inputs_of(model, x)
        model.train(mode)
        plain.train(mode)
        calls.clear()
        expected = results(plain, inputs)
        assert calls == []
        assert_same(results(model, inputs), expected, 100 * MODULE_TOLERANCE)
        assert calls == ops
    torch.testing.assert_close(model.state_dict(), plain.state_dict())  # running statistics, too
    if name != "ObjectAttention":
        assert_same(results(model, (other_size,)), results(plain, (other_size,)), 100 * MODULE_TOLERANCE)


def test_restored_copied_and_without_example_inputs(name: str, calls: list[str]) -> None:
    block, kinds, ops = BLOCKS[name]
    model = build(block).eval()
    inputs = inputs_of(model)
    assert sod_ops.accelerate(model).swapped == []
    assert sod_ops.restore(model) == 0
    expected = results(model, inputs)
    sod_ops.accelerate(model, inputs)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        calls.clear()
        assert_same(results(copied, inputs), expected, 100 * MODULE_TOLERANCE)
        assert calls == ops
    assert sod_ops.accelerate(model, inputs).swapped == []
    assert sod_ops.restore(model) == len(kinds)
    calls.clear()
    assert_same(results(model, inputs), expected, 0)
    assert calls == []


def test_hooks_run(name: str) -> None:
    """On the module, and on every one below that its own forward calls."""
    model = build(BLOCKS[name][0]).eval()
    inputs = inputs_of(model)
    counts = []
    for swap in (False, True):
        if swap:
            sod_ops.accelerate(model, inputs)
        seen: list[str] = []
        handles = [
            module.register_forward_hook(lambda *_, name=name, seen=seen: seen.append(name))
            for name, module in model.named_modules()
        ]
        model(*inputs)
        for handle in handles:
            handle.remove()
        counts.append(sorted(seen))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_float32_and_autocast(name: str, dtype: torch.dtype, calls: list[str]) -> None:
    model = build(BLOCKS[name][0]).float().eval()
    inputs = tuple(x.float() for x in inputs_of(model))
    plain = copy.deepcopy(model)
    sod_ops.accelerate(model, inputs)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16), torch.no_grad():
        calls.clear()
        found, expected = model(*inputs), plain(*inputs)
    # Where rounding decides which channels it keeps, its own forward runs.
    assert bool(calls) == (name != "UnionAttentionModule" or dtype is torch.float32)
    tolerance = 0.05 if dtype is torch.bfloat16 else 1e-5  # bfloat16 keeps 8 bits, and there are several roundings
    for a, b in zip(*((y,) if isinstance(y, Tensor) else y for y in (found, expected)), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


def test_small_maps_and_forwards_alone_keep_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    small, large = torch.zeros(1, 16, 9, 9), torch.zeros(1, 16, 256, 256)
    assert sod_ops.accelerate(cases.SpatialSE(16), small).swapped == []
    model = cases.SpatialSE(16)
    assert [kind for _, kind in sod_ops.accelerate(model, large).swapped] == ["SpatialSE"]
    gates: list[Any] = []
    monkeypatch.setattr(attention, "gate", lambda *a, **k: gates.append(a) or sod_ops.gate(*a, **k))
    for x, grad, expected in ((small, True, 0), (large, False, 0), (large, True, 1)):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(model(x), x)
        assert len(gates) == expected
    both = cases.SCSEModule(16)
    sod_ops.accelerate(both, small)
    gates.clear()
    for x in (small, large):
        both(x)
    assert len(gates) == 1


class Net(nn.Module):
    """Several of them: a block with CBAM, the frequency edge on a low level, union attention on a high one, refined."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, C, 3, padding=1)
        self.block = cases.AttentiveBasicBlock(C)
        self.cbam = cases.CBAM(C)
        self.scse = cases.SCSEModule(C)
        self.edge = cases.Frequency_Edge_Module(2, C)
        self.union = cases.UnionAttentionModule(C)
        self.refine = cases.ObjectAttention(C)

    def forward(self, x: Tensor) -> Tensor:
        low, edge = self.edge(self.cbam(self.block(self.stem(x))))
        refined: Tensor = self.refine(self.union(self.scse(low)), low)
        return refined + edge


def test_a_model_with_several_trains_alike(calls: list[str]) -> None:
    images = torch.randn(4, 3, 12, 12, dtype=torch.float64)
    curves = []
    for swap in (False, True):
        model = build(Net).train()
        if swap:
            report = sod_ops.accelerate(model, images)
            names = [found for found, _ in report.swapped]
            assert names == [
                *("block", "block.ca", "block.sa", "cbam.ChannelGate", "cbam.SpatialGate"),
                *("cbam.SpatialGate.compress", "scse", "edge", "union", "refine"),
            ]
            assert report.left == []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        torch.manual_seed(2)
        losses = []
        for _ in range(5):
            loss = functional.binary_cross_entropy_with_logits(model(images), (images[:, :1] > 0).double())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(losses)
    assert curves[1] == pytest.approx(curves[0], rel=1e-9)
    assert curves[0][-1] < curves[0][0]


def test_compiles_without_graph_breaks() -> None:
    torch.compiler.reset()
    model = build(lambda: nn.Sequential(cases.CBAM(C), cases.SCSEModule(C), cases.UnionAttentionModule(C))).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        expected = model(X)
        assert len(sod_ops.accelerate(model, X).swapped) == 5
        torch.testing.assert_close(compiled(X), expected)


# Copies that differ


class OtherPools(cases.ChannelGate):
    def __init__(self) -> None:
        super().__init__(C, pool_types=("avg", "lp", "lse"))


class SharedGradient(nn.Module):
    """The largest by amax, whose gradient equal maxima share."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)


class MaximumFirst(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.max(dim=1, keepdim=True).values, x.mean(dim=1, keepdim=True)], dim=-3)


class Residual(cases.SpatialGate):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.spatial(self.compress(x))) + x


class Dilated(cases.SpatialGate):
    def __init__(self) -> None:
        super().__init__(dilation=2)


class MaximumOfGates(cases.SCSEModule):
    def __init__(self) -> None:
        super().__init__(C)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.maximum(self.cSE(x), self.sSE(x))


class WholeWindows(nn.Module):
    """Pools in windows of the whole map, with linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        size = x.size()[2:]
        mean, maximum = functional.avg_pool2d(x, size), functional.adaptive_max_pool2d(x, (1, 1))
        logits = self.fc(mean.flatten(1)) + self.fc(maximum.flatten(1))
        return torch.sigmoid(logits)[:, :, None, None].expand(x.size()) * x


class HalfWindows(WholeWindows):
    """Pools that are not of the whole map."""

    def forward(self, x: Tensor) -> Tensor:
        mean = functional.avg_pool2d(x, (7, 8), stride=8)
        maximum = functional.max_pool2d(x, (7, 8), stride=8)
        return x * torch.sigmoid(self.fc(mean.flatten(1)) + self.fc(maximum.flatten(1)))[..., None, None]


@pytest.mark.parametrize(
    ("block", "ops"),
    [
        (OtherPools, ["gate"]),
        (MaximumFirst, ["channel_pool"]),
        (Dilated, ["channel_pool", "gate"]),
        (WholeWindows, ["global_pool", "gate"]),
        (HalfWindows, ["gate"]),
        (Residual, ["channel_pool"]),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_what_fits_of_another_form_is_served(block: Callable[[], nn.Module], ops: list[str], calls: list[str]) -> None:
    """Ties among maxima included."""
    model = build(block).eval()
    plain = copy.deepcopy(model)
    x = X.round()
    assert sod_ops.accelerate(model, x).left == []
    calls.clear()
    assert_same(results(model, (x,)), results(plain, (x,)), 100 * MODULE_TOLERANCE)
    assert calls == ops


@pytest.mark.parametrize("block", [SharedGradient, MaximumOfGates])
def test_other_steps_are_left(block: Callable[[], nn.Module], calls: list[str]) -> None:
    model = build(block)
    report = sod_ops.accelerate(model, X)
    assert report.swapped == []
    assert calls == []


class HiddenThreshold(cases.ObjectAttention):
    """Whose attribute is not what its forward compares with."""

    def forward(self, decoder_map: Tensor, encoder_map: Tensor) -> Tensor:
        probability = torch.sigmoid(decoder_map)
        kept = torch.where(1 - probability > 0.9, 0.0, 1 - probability)
        x = probability * encoder_map + kept * encoder_map
        return torch.relu(self.conv1(self.branches(x))) + decoder_map


class WithoutTheMap(cases.ObjectAttention):
    def forward(self, decoder_map: Tensor, encoder_map: Tensor) -> Tensor:
        return super().forward(decoder_map, encoder_map) - decoder_map


class DropsInTraining(cases.ObjectAttention):
    def forward(self, decoder_map: Tensor, encoder_map: Tensor) -> Tensor:
        return functional.dropout(super().forward(decoder_map, encoder_map), 0.5, self.training)


class WithoutResidual(cases.UnionAttentionModule):
    def Channel_Tracer(self, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: N802
        traced, mask = super().Channel_Tracer(x)
        return traced - x, mask


class LowFrequencies(cases.Frequency_Edge_Module):
    def mask_radial(self, img: Tensor, r: float) -> Tensor:
        return 1 - super().mask_radial(img, r)


class SoftMask(cases.Frequency_Edge_Module):
    def mask_radial(self, img: Tensor, r: float) -> Tensor:
        return super().mask_radial(img, r) * 0.5


class OtherHead(cases.Frequency_Edge_Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, edge = super().forward(x)
        return y - 2 * edge, edge


OTHER_MASK = "its mask_radial is another mask than a circle around the middle of the spectrum"


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (lambda: HiddenThreshold(C), "on inputs made from example_inputs, in training the output deviates by"),
        (lambda: WithoutTheMap(C), "on example_inputs the output deviates by"),
        (lambda: DropsInTraining(C), "on inputs made from example_inputs, in training the output deviates by"),
        (lambda: WithoutResidual(C), "on example_inputs the output deviates by"),
        (lambda: LowFrequencies(2, C), OTHER_MASK),
        (lambda: SoftMask(2, C), OTHER_MASK),
        (lambda: OtherHead(2, C), "on inputs made from example_inputs, in training the output 0 deviates by"),
    ],
    ids=["threshold", "without the map", "dropout", "without residual", "low frequencies", "soft mask", "head"],
)
def test_copies_that_deviate_are_undone_and_named(block: Callable[[], nn.Module], reason: str) -> None:
    model = build(block).eval()
    inputs = (LOGITS.clamp(-1, 1), X) if isinstance(model, cases.ObjectAttention) else (X,)  # where no threshold shows
    report = sod_ops.accelerate(model, inputs)
    ((found, kind, why),) = report.left
    assert (found, kind, report.swapped) == ("", type(model).__name__, [])
    assert why.startswith(reason), why
    assert sod_ops.restore(model) == 0


class Centred(cases.Frequency_Edge_Module):
    """As copies mend it: from the middle of either axis."""

    def distance(self, i: int, j: int, imageSize: tuple[int, int], r: float) -> float:  # noqa: N803
        return float((i - imageSize[0] / 2) ** 2 + (j - imageSize[1] / 2) ** 2 < r**2)


@pytest.mark.parametrize(
    "block",
    [lambda: cases.ObjectAttention(C, denoise=0.6), lambda: Centred(2.5, C)],
    ids=["another threshold", "another centre"],
)
def test_what_can_be_read_is(block: Callable[[], nn.Module], calls: list[str]) -> None:
    model = build(block).eval()
    plain, inputs = copy.deepcopy(model), inputs_of(model)
    assert sod_ops.accelerate(model, inputs).left == []
    calls.clear()
    assert_same(results(model, inputs), results(plain, inputs), 100 * MODULE_TOLERANCE)
    assert len(calls) == 1
    for each in (model, plain):  # also where it changes
        each.denoise = 0.7  # type: ignore[assignment]
        each.radius = 3.5  # type: ignore[assignment]
    assert_same(results(model, inputs), results(plain, inputs), 100 * MODULE_TOLERANCE)


def _without_branch(module: nn.Module) -> None:
    del module.DWConv3
    module.forward = lambda x: x


def _larger_row(module: Any) -> None:
    module.spatial_k = nn.Conv2d(C, 1, 3, padding=1, bias=False, dtype=torch.float64)


@pytest.mark.parametrize(
    ("block", "change", "reason"),
    [
        (
            lambda: cases.ObjectAttention(C),
            _without_branch,
            "it has the name of TRACER's ObjectAttention, but not its DWConv3",
        ),
        (
            lambda: cases.UnionAttentionModule(C),
            _larger_row,
            "its spatial_k is Conv2d(8, 1, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False), not a plain 1x1 "
            "Conv2d to one channel without bias",
        ),
    ],
    ids=["child", "convolution"],
)
def test_other_structures_are_left_and_named(
    block: Callable[[], nn.Module], change: Callable[[Any], None], reason: str
) -> None:
    model = build(block)
    change(model)
    ((_, _, why),) = sod_ops.accelerate(nn.Sequential(model), X).left
    assert why == reason


def test_not_reached_is_left_and_named() -> None:
    model = build(Net)
    model.unused = build(lambda: cases.ObjectAttention(C))
    report = sod_ops.accelerate(model, torch.randn(2, 3, 8, 8, dtype=torch.float64))
    assert report.left == [("unused", "ObjectAttention", "example_inputs do not reach it")]

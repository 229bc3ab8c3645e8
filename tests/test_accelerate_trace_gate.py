"""Squeeze-and-excitation in modules of a user's own, found by a run on example inputs."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate_cases import MODULE_TOLERANCE, assert_same, count_fused_calls, output_and_gradients
from torch import Tensor, nn
from torch.nn import functional

import sod_ops
from sod_ops.accelerate import attention, followers, gate

X = torch.randn(2, 8, 7, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls = count_fused_calls(monkeypatch)
    monkeypatch.setattr(followers, "_SMALL", 0)
    monkeypatch.setattr(gate, "squeeze_excite", lambda *a, **k: calls.append(a) or sod_ops.squeeze_excite(*a, **k))
    monkeypatch.setattr(attention, "gate", lambda *a, **k: calls.append(a) or sod_ops.gate(*a, **k))
    return calls


class SwishFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        sigmoid = torch.sigmoid(x)
        return grad_output * sigmoid * (1 + x * (1 - sigmoid))


class MemoryEfficientSwish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = SwishFunction.apply(x)
        return y


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class HardSigmoid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(x + 3) / 6
        return y


class SamePaddingConv2d(nn.Conv2d):
    """As EfficientNet's copies have it: padded by a module, convolved by a function."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.static_padding = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.static_padding(x)
        return functional.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class InvertedResidual(nn.Module):
    """EfficientNet's block with the squeeze-and-excitation in its forward."""

    def __init__(self, swish: nn.Module, convolution: Any = SamePaddingConv2d) -> None:
        super().__init__()
        self.expand = nn.Conv2d(8, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self._se_reduce = convolution(8, 4, 1)
        self._se_expand = convolution(4, 8, 1)
        self.swish = swish
        self.has_se = True

    def forward(self, inputs: Tensor, drop_connect_rate: float | None = None) -> Tensor:
        x = self.swish(self.norm(self.expand(inputs)))
        if self.has_se:
            squeezed = functional.adaptive_avg_pool2d(x, 1)
            squeezed = self._se_expand(self.swish(self._se_reduce(squeezed)))
            x = torch.sigmoid(squeezed) * x
        if drop_connect_rate:
            x = functional.dropout(x, drop_connect_rate, self.training)
        return x + inputs


class Layer(nn.Module):
    """With linear layers and views."""

    def __init__(self, activation: nn.Module | None = None, sigmoid: nn.Module | None = None) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(8, 4, bias=False), activation or nn.ReLU(), nn.Linear(4, 8), sigmoid or nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        y = self.fc(self.avg_pool(x).view(b, c)).view(b, c, 1, 1)
        return x * y.expand_as(x)


class SpatialAndChannel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.channel = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 8, 1), nn.Sigmoid()
        )
        self.spatial = nn.Sequential(nn.Conv2d(8, 1, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.channel(x) + x * self.spatial(x)


class Effective(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * functional.hardsigmoid(self.fc(x.mean((2, 3), keepdim=True)))


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "memory-efficient": lambda: InvertedResidual(MemoryEfficientSwish()),
    "swish": lambda: InvertedResidual(Swish()),
    "silu": lambda: InvertedResidual(nn.SiLU(), nn.Conv2d),
    "layer": Layer,
    "mobilenet": lambda: Layer(nn.Hardswish(), HardSigmoid()),
    "scse": SpatialAndChannel,
    "effective": Effective,
}
# PyTorch's own hardsigmoid knows the 1/6 of its gradient in float32 only.
TOLERANCES = {"mobilenet": 1e-7, "effective": 1e-7}


@pytest.fixture(params=BLOCKS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_output_and_gradients(name: str, training: bool, fused_calls: list[Any]) -> None:
    model = BLOCKS[name]().double().train(training)
    expected = output_and_gradients(model, X)
    report = sod_ops.accelerate(model, X)
    assert (len(report.swapped), report.left) == (1, [])
    for mode in (training, not training, training):
        plain = copy.deepcopy(model.train(mode))
        assert sod_ops.restore(plain) == 1
        fused_calls.clear()
        expected = output_and_gradients(plain, X)
        assert not fused_calls
        assert_same(output_and_gradients(model, X), expected, TOLERANCES.get(name, 10 * MODULE_TOLERANCE))
        assert len(fused_calls) == 1


def test_copies_and_what_is_not_served(name: str, fused_calls: list[Any]) -> None:
    model = BLOCKS[name]().double().eval()
    before = model(X)
    sod_ops.accelerate(model, X)
    fused_calls.clear()
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(copied(X), before, rtol=1e-6, atol=1e-6)
    assert len(fused_calls) == 2
    last = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))][-1]
    if name == "scse":
        last = model.channel[4]  # type: ignore[union-attr,index]
    seen: list[Any] = []
    last.register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(model(X), before)
    assert seen == [1]
    assert len(fused_calls) == 2


def test_without_example_inputs_nothing_happens(name: str) -> None:
    model = BLOCKS[name]()
    sod_ops.accelerate(model)
    assert sod_ops.restore(model) == 0


class LearnedSwish(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.beta * x)


def test_another_gate_is_left_and_named() -> None:
    report = sod_ops.accelerate(Layer(sigmoid=nn.Tanh()).double(), X)
    assert report.swapped == []
    assert [kind for _, kind, _ in report.left] == ["Layer"]


@pytest.mark.parametrize(
    "activation",
    [nn.Softplus(), LearnedSwish(), nn.Dropout(0.5), nn.BatchNorm1d(4)],
    ids=["function", "parameter", "dropout", "norm"],
)
def test_another_activation_leaves_the_product(activation: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followers, "_LARGE", 0)
    model = Layer(activation=activation).double()
    plain = copy.deepcopy(model)
    report = sod_ops.accelerate(model, X)
    assert (len(report.swapped), report.left) == (1, [])
    for mode in (True, False):
        results = []
        for each in (plain.train(mode), model.train(mode)):
            torch.manual_seed(0)
            results.append(output_and_gradients(each, X))
        assert_same(results[1], results[0], MODULE_TOLERANCE)


def test_a_swish_that_lies_about_its_gradient_is_undone() -> None:
    class Lying(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(x).detach()

    ((_, _, reason),) = sod_ops.accelerate(Layer(Lying()).double(), X).left
    assert "deviates" in reason

"""The proof on example inputs where a value lies within rounding of a kink: what is excused by that, and what is not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sod_ops.accelerate import verify
from sod_ops.accelerate.swap import Swap

C = 4
PIXEL = (0, 0, 2, 3)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Kinked(nn.Module):
    """A ReLU of convolved maps, of which the first is the sum of the first two, convolved."""

    def __init__(self, rounds_otherwise: bool = False) -> None:
        super().__init__()
        self.rounds_otherwise = rounds_otherwise
        self.sum = nn.Conv2d(C, C, 1)
        self.head = nn.Conv2d(C, C, 3, padding=1)
        with torch.no_grad():
            self.sum.weight[0] = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(C, 1, 1)
            assert self.sum.bias is not None
            self.sum.bias[0] = 0

    def forward(self, x: Tensor) -> Tensor:
        return rounded_otherwise(self, x) if self.rounds_otherwise else plain(self, x)


def plain(module: Any, x: Tensor) -> Tensor:
    y: Tensor = module.head(torch.relu(module.sum(x)))
    return y


def rounded_otherwise(module: Any, x: Tensor) -> Tensor:
    """Sums that come out smaller by a unit in the last place of 1."""
    sums = module.sum(x)
    below = torch.zeros_like(sums)
    below[:, 0] = torch.finfo(x.dtype).eps
    y: Tensor = module.head(torch.relu(sums - below))
    return y


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def build(dtype: torch.dtype, rounds_otherwise: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return Kinked(rounds_otherwise).to(dtype)


def inputs(dtype: torch.dtype, at_pixel: float, height: int = 6, width: int = 7) -> Tensor:
    """Whose first sum is so many units in the last place of 1 at one pixel, and far from 0 elsewhere."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, C, height, width, generator=generator)
    x[:, :2] = torch.rand(2, 2, height, width, generator=generator) / 2 + 0.5
    x[:, :2] *= torch.where(torch.rand(2, 1, height, width, generator=generator) < 0.5, -1, 1)
    x = x.to(dtype)
    batch, channel, row, column = PIXEL
    x[batch, channel, row, column] = 0.75
    x[batch, channel + 1, row, column] = -0.75 + at_pixel * torch.finfo(dtype).eps
    return x


def why(module: nn.Module, fused: Callable[[Any, Tensor], Tensor], x: Tensor) -> str | None:
    """The reason why ``fused`` does not stand for ``module``; None where it may."""
    swap = Swap(lambda module, spec, x: fused(module, x), None)
    return verify.deviations(module, {"": (module, swap)}, ((x,), {})).get("")


@pytest.mark.parametrize("own_form", [False, True], ids=["fused", "own"])
def test_a_value_on_the_other_side_is_accepted(dtype: torch.dtype, own_form: bool) -> None:
    """Of either form."""
    x = inputs(dtype, 0.5)
    module = build(dtype, rounds_otherwise=own_form)
    fused = plain if own_form else rounded_otherwise
    gradients = []
    for form in (plain, rounded_otherwise):
        leaf = x.detach().clone().requires_grad_()
        gradients.append(torch.autograd.grad(form(module, leaf)[PIXEL], leaf)[0])
    assert float((gradients[0] - gradients[1]).abs().max()) > 0.05 * float(gradients[0].abs().max())
    assert why(module, fused, x) is None


def _with_gradient_of(y: Tensor, other: Tensor) -> Tensor:
    return y.detach() + (other - other.detach())


def _without_bias(module: Any, x: Tensor) -> Tensor:
    return module.head(torch.relu(functional.conv2d(x, module.sum.weight, module.sum.bias.detach())))


def _partly_detached(module: Any, x: Tensor, index: Any) -> Tensor:
    reached = torch.ones_like(x)
    reached[index] = 0
    return plain(module, _with_gradient_of(x, reached * x))


# What has another gradient than plain.
FAULTS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "factor": lambda module, x: 1.02 * plain(module, x),
    "slope": lambda module, x: module.head(functional.leaky_relu(module.sum(x), 0.02)),
    "operands": lambda module, x: plain(module, x.flip(1)),
    "bias": _without_bias,
    "channel": lambda module, x: _partly_detached(module, x, (slice(None), 2)),
    "pixel": lambda module, x: _partly_detached(module, x, PIXEL),
    "column": lambda module, x: _partly_detached(module, x, (..., -1)),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("flip", ["none", "fused", "own"])
def test_other_gradients_are_refused(dtype: torch.dtype, fault: str, flip: str) -> None:
    """Also beside a value on the other side, which explains a deviation that is as large."""
    form = rounded_otherwise if flip == "fused" else plain
    module = build(dtype, rounds_otherwise=flip == "own")

    def fused(module: Any, x: Tensor) -> Tensor:
        return _with_gradient_of(form(module, x), FAULTS[fault](module, x))

    reason = why(module, fused, inputs(dtype, 0.5))
    assert reason is not None
    assert reason.startswith("on example_inputs the gradient of ")
    assert reason.endswith("in float64)")


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "pixel"])
@pytest.mark.parametrize("flip", ["none", "fused", "own"])
def test_other_gradients_in_the_dtype_at_hand_alone_are_refused(fault: str, flip: str) -> None:
    """As of a kernel that float64 does not run; but for one value alone, which is what a kink does. On a map as large as
    those on which there are such values."""
    form = rounded_otherwise if flip == "fused" else plain
    module = build(torch.float32, rounds_otherwise=flip == "own")

    def fused(module: Any, x: Tensor) -> Tensor:
        y = form(module, x)
        return y if x.dtype == torch.float64 else _with_gradient_of(y, FAULTS[fault](module, x))

    reason = why(module, fused, inputs(torch.float32, 0.5, 96, 96))
    assert reason is not None
    assert reason.startswith("on example_inputs the gradient of ")
    assert reason.endswith("in float32)")


def test_another_gradient_at_the_kink_is_refused(dtype: torch.dtype) -> None:
    def passes_at_zero(module: Any, x: Tensor) -> Tensor:
        sums = module.sum(x)
        return module.head(torch.where(sums >= 0, sums, 0))

    module = build(dtype)
    assert why(module, passes_at_zero, inputs(dtype, 0.5)) is None
    reason = why(module, passes_at_zero, inputs(dtype, 0))
    assert reason is not None
    assert reason.endswith("in float64)")


def test_outputs_have_no_second_chance(dtype: torch.dtype) -> None:
    x = inputs(dtype, 0.5)

    def once(module: Any, y: Tensor) -> Tensor:
        return plain(module, y) + (y.dtype == dtype and torch.equal(x, y))

    reason = why(build(dtype), once, x)
    assert reason is not None
    assert reason.startswith("on example_inputs the output deviates by")


class Counts(nn.Module):
    """Something other at every call, as an iteration that goes on in training is."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


def test_all_forms_run_in_the_same_state() -> None:
    module = Counts()
    assert why(module, Counts.forward, torch.ones(2)) is None
    assert module.calls == 0

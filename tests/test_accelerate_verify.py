"""accelerate with example_inputs: what is proven on them, what is undone, and that nothing else changes."""

import functools

import pytest
import torch
from accelerate_cases import Net, block, peer_class, timm, torchvision
from torch import nn

import sod_ops

TORCHVISION_SE = torchvision.ops.SqueezeExcitation
TIMM_SE = peer_class("timm.layers.squeeze_excite.SEModule")
X = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    return Net(block("torchvision.ops.misc.SqueezeExcitation", 16, 4))


def lie(monkeypatch, change):
    """Makes every SqueezeExcitation return ``change`` of its output and input, and look as if it did not."""
    own = TORCHVISION_SE.forward

    @functools.wraps(own)
    def forward(self, x):
        return change(own(self, x), x)

    monkeypatch.setattr(TORCHVISION_SE, "forward", forward)


class WithOptions(Net):
    def forward(self, x, *, scale=1.0):
        return super().forward(scale * x)


@pytest.mark.parametrize(
    "example_inputs", [X, (X,), {"x": X}, {"x": X, "scale": 2.0}], ids=["tensor", "tuple", "dict", "more"]
)
def test_agreeing_blocks_are_swapped(example_inputs):
    model = WithOptions(block("torchvision.ops.misc.SqueezeExcitation", 16, 4))
    report = sod_ops.accelerate(model, example_inputs)
    assert report.swapped == [("se", "SqueezeExcitation")]
    assert report.left == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_whole_model_agrees(dtype):
    model = timm.create_model("mobilenetv3_small_100").to(dtype)
    report = sod_ops.accelerate(model, torch.randn(2, 3, 32, 32).to(dtype))
    assert report.left == []


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda y, x: 1.0001 * y, "output"),
        (lambda y, x: y + 1e-3, "output"),
        (lambda y, x: y.detach() + 0 * x, "gradient of input 0"),
        (lambda y, x: y + (x - x.detach()), "gradient of input 0"),
    ],
    ids=["factor", "shift", "detached", "gradient"],
)
def test_deviating_block_is_left_and_named(model, monkeypatch, change, what):
    lie(monkeypatch, change)
    before = dict(vars(model.se))
    report = sod_ops.accelerate(model, X)
    assert report.swapped == []
    [(name, class_name, reason)] = report.left
    assert (name, class_name) == ("se", "SqueezeExcitation")
    assert reason.startswith(f"on example_inputs the {what} deviates by ")
    assert vars(model.se) == before


def test_only_the_deviating_block_is_left(model, monkeypatch):
    lie(monkeypatch, lambda y, x: 2 * y)
    both = nn.Sequential(model, nn.Conv2d(2, 16, 1), TIMM_SE(16))
    report = sod_ops.accelerate(both, X)
    assert report.swapped == [("2", "SEModule")]
    assert [name for name, _, _ in report.left] == ["0.se"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda y, x: y[:, :4], "the output has another shape or dtype"),
        (lambda y, x: y.double(), "the output has another shape or dtype"),
    ],
    ids=["shape", "dtype"],
)
def test_another_shape_or_dtype(monkeypatch, change, reason):
    lie(monkeypatch, change)
    [(_, _, found)] = sod_ops.accelerate(TORCHVISION_SE(16, 4), torch.randn(1, 16, 4, 4)).left
    assert found == f"on example_inputs {reason}"


def test_block_that_the_inputs_do_not_reach_is_left(model):
    model.unused = TIMM_SE(16)
    report = sod_ops.accelerate(model, X)
    assert report.swapped == [("se", "SqueezeExcitation")]
    assert report.left == [("unused", "SEModule", "example_inputs do not reach it")]


def test_everything_else_stays_as_it_was():
    model = timm.create_model("mobilenetv3_small_100", drop_rate=0.5, drop_path_rate=0.5).train()
    x = torch.randn(2, 3, 32, 32, requires_grad=True)
    model(x).sum().backward()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = {name: (value.grad, value.grad.clone()) for name, value in (*model.named_parameters(), ("x", x))}
    random_state = torch.get_rng_state()

    report = sod_ops.accelerate(model, x)

    assert len(report.swapped) == 9
    assert torch.equal(torch.get_rng_state(), random_state)
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    for name, value in (*model.named_parameters(), ("x", x)):
        assert value.grad is gradients[name][0]
        assert torch.equal(value.grad, gradients[name][1])
    assert all(module.training and not module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_gradients_are_compared_also_where_grad_mode_is_off(model, monkeypatch, mode):
    lie(monkeypatch, lambda y, x: y + (x - x.detach()))
    with mode():
        [(_, _, reason)] = sod_ops.accelerate(model, X.clone()).left
    assert reason.startswith("on example_inputs the gradient of input 0 deviates")


def test_frozen_parameters_are_compared_without_gradients(model):
    model.requires_grad_(False)
    assert sod_ops.accelerate(model, X).left == []


def test_under_autocast(model):
    with torch.autocast("cpu", torch.bfloat16):
        assert sod_ops.accelerate(model, X).left == []


def test_model_that_fails_on_the_inputs_is_left_as_it_was(model):
    model.norm = nn.BatchNorm2d(2)

    def forward(x):
        model.norm(Net.forward(model, x))
        raise RuntimeError("no such input")

    model.forward = forward
    with pytest.raises(RuntimeError, match="no such input"):
        sod_ops.accelerate(model, X)
    assert "forward" not in vars(model.se)
    assert not model.se._forward_pre_hooks
    assert int(model.norm.num_batches_tracked) == 0


@pytest.mark.parametrize("example_inputs", [[X], 3, "x", {1: X}], ids=["list", "number", "string", "keys"])
def test_example_inputs_of_another_type(model, example_inputs):
    with pytest.raises(TypeError, match="accelerate: example_inputs must be a Tensor, a tuple"):
        sod_ops.accelerate(model, example_inputs)

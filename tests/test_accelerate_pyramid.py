"""Models whose heads convolve upsampled maps, accelerated: outputs, gradients, training, and calls left alone."""

import copy
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate_cases import MODEL_TOLERANCE, assert_as_accurate, assert_same, output_and_gradients, smp
from torch import Tensor, nn

import sod_ops

# With statistics of its own, as one value alone has none.
_INSTANCE_NORM = {"type": "instancenorm", "affine": True, "track_running_stats": True}

# Each with the classes that are swapped in it.
MODELS = {
    "UPerNet": (
        lambda: smp.UPerNet("resnet18", encoder_weights=None, decoder_channels=32),
        ["UPerNetDecoder", "PSPModule"],
    ),
    "PSPNet": (lambda: smp.PSPNet("resnet18", encoder_weights=None, psp_out_channels=64), ["PSPDecoder"]),
    "PSPNet-no-norm": (
        lambda: smp.PSPNet("resnet18", encoder_weights=None, psp_out_channels=64, decoder_use_norm=False),
        ["PSPDecoder"],
    ),
    "UPerNet-instance-norm": (
        lambda: smp.UPerNet(
            "resnet18",
            encoder_weights=None,
            decoder_channels=32,
            decoder_use_norm=_INSTANCE_NORM,
        ),
        ["UPerNetDecoder", "PSPModule"],
    ),
}
# The coarsest map is 5 x 3, of which few bins divide a side; 9 x 7 for PSPNet, which stops at an eighth.
SIZES = {"UPerNet": (160, 96), "PSPNet": (72, 56)}


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def build(name: str, batch: int = 2) -> tuple[nn.Module, Tensor]:
    """The model in evaluation mode, where batch norm has statistics of its own, and an input."""
    model = MODELS[name][0]().eval()
    return model, torch.randn(batch, 3, *SIZES[name.partition("-")[0]])


def swapped(model: nn.Module) -> list[str]:
    return [kind for _, kind in sod_ops.accelerate(model).swapped]


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What reaches the fused op, so that no test of equality passes by running the model's own forward."""
    calls: list[Any] = []

    def pyramid_conv2d(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(args)
        return sod_ops.pyramid_conv2d(*args, **kwargs)

    monkeypatch.setattr(sys.modules["sod_ops.accelerate.pyramid"], "pyramid_conv2d", pyramid_conv2d)
    return calls


def test_output_and_gradients(name: str, fused_calls: list[Any]) -> None:
    model, x = build(name)
    exact = output_and_gradients(copy.deepcopy(model).double(), x.double())
    plain = output_and_gradients(model, x)
    keys = list(model.state_dict())
    assert swapped(model) == MODELS[name][1]
    assert list(model.state_dict()) == keys
    assert_as_accurate(output_and_gradients(model, x), plain, exact, ["output"])
    assert len(fused_calls) == len(MODELS[name][1])
    assert_same(output_and_gradients(model.double(), x.double()), exact, MODEL_TOLERANCE)


def test_restore_gives_the_original_back(name: str, fused_calls: list[Any]) -> None:
    model, x = build(name)
    with torch.no_grad():
        before = model(x)
        sod_ops.accelerate(model)
        assert sod_ops.restore(model) == len(MODELS[name][1])
        assert torch.equal(model(x), before)
    assert not fused_calls


def test_example_inputs_prove_the_swaps(name: str) -> None:
    model, x = build(name)
    report = sod_ops.accelerate(model, x)
    assert [kind for _, kind in report.swapped] == MODELS[name][1], report


@pytest.mark.parametrize("name", ["UPerNet", "PSPNet"])
def test_training_follows_the_same_losses(name: str, fused_calls: list[Any]) -> None:
    """20 steps with batch norm in training mode, in float64, where what differs is rounding and not its growth."""
    model, x = build(name)
    x = x[:, :, :64, :32].double()
    losses = []
    for accelerate in (False, True):
        trained = copy.deepcopy(model).double().train()
        if accelerate:
            sod_ops.accelerate(trained)
        for module in trained.modules():
            if isinstance(module, nn.Dropout2d):
                module.p = 0.0  # what it draws is the same, but after other calls
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.01, momentum=0.9)
        curve = []
        for _ in range(20):
            optimizer.zero_grad()
            loss = (trained(x) - 0.5).square().mean()
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        losses.append(curve)
    assert losses[0][-1] < losses[0][0]
    assert fused_calls
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), rtol=1e-6, atol=1e-9)


def test_batch_norm_over_one_value_raises_as_before() -> None:
    model, x = build("UPerNet", batch=1)
    sod_ops.accelerate(model.train())
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(x)


def test_autocast_and_channels_last(name: str, fused_calls: list[Any]) -> None:
    model, x = build(name)
    with torch.no_grad():
        expected = model(x)
        sod_ops.accelerate(model)
        last = model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model(x)
    scale = expected.abs().max().item()
    torch.testing.assert_close(last, expected, rtol=0, atol=1e-4 * scale)
    torch.testing.assert_close(half.float(), expected, rtol=0, atol=0.1 * scale)  # bfloat16 through 20 layers
    assert len(fused_calls) == 2 * len(MODELS[name][1])


def test_a_convolution_that_was_changed_since_runs_its_own_way(fused_calls: list[Any]) -> None:
    model, x = build("UPerNet")
    sod_ops.accelerate(model)
    seen: list[Any] = []
    model.decoder.fusion_block[0].register_forward_hook(lambda *a: seen.append(a))
    with torch.no_grad():
        model(x)
    assert len(seen) == 1
    assert len(fused_calls) == 1  # that of the pyramid


def test_heads_that_are_not_served_are_named() -> None:
    model, _ = build("UPerNet")
    model.decoder.fusion_block[0] = nn.Conv2d(128, 32, 3, padding=1, dilation=2)
    model.decoder.psp.out_conv[0].register_forward_hook(lambda *a: None)
    reasons = {kind: reason for _, kind, reason in sod_ops.accelerate(model).left}
    assert "dilation=(2, 2)" in reasons["UPerNetDecoder"]
    assert "hooks" in reasons["PSPModule"]


def test_compile_and_trace(fused_calls: list[Any]) -> None:
    model, x = build("UPerNet")
    with torch.no_grad():
        expected = model(x)
        sod_ops.accelerate(model)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)
        fused_calls.clear()
        traced = torch.jit.trace(model, x, check_trace=False)
        assert not fused_calls  # the trace has PyTorch's own operators alone
        torch.testing.assert_close(traced(x), expected, rtol=1e-4, atol=1e-5)

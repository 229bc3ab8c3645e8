"""Whole models of the peers: the same outputs and gradients, and a report that says what was found."""

import copy

import pytest
import torch
from accelerate_cases import (
    FACTOR,
    MODEL_TOLERANCE,
    assert_same,
    output_and_gradients,
    smp,
    timm,
    torchvision,
)

import sod_ops

MODELS = {
    "seresnet18": (lambda: timm.create_model("seresnet18"), 8),
    "legacy_seresnet18": (lambda: timm.create_model("legacy_seresnet18"), 8),
    "efficientnet_b0": (lambda: timm.create_model("efficientnet_b0"), 16),
    "mobilenetv3_small_100": (lambda: timm.create_model("mobilenetv3_small_100"), 9),
    "regnety_002": (lambda: timm.create_model("regnety_002"), 13),
    "rexnet_100": (lambda: timm.create_model("rexnet_100"), 13),
    "ese_vovnet19b_dw": (lambda: timm.create_model("ese_vovnet19b_dw"), 4),
    "torchvision-mobilenet_v3_small": (lambda: torchvision.models.mobilenet_v3_small(), 9),
    "torchvision-regnet_y_400mf": (lambda: torchvision.models.regnet_y_400mf(), 16),
    "smp-Unet-scse": (lambda: smp.Unet("resnet18", encoder_weights=None, decoder_attention_type="scse"), 10),
}


def built(name):
    build, blocks = MODELS[name]
    return build().eval(), blocks


@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_gradients_are_the_same(name):
    model, blocks = built(name)
    model.double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected = output_and_gradients(model, x)
    report = sod_ops.accelerate(model)
    assert len(report.swapped) == blocks
    # scSE reads the concatenation that the Unet's blocks would do without.
    assert {kind for _, kind, _ in report.left} <= {"UnetDecoderBlock"}
    assert_same(output_and_gradients(model, x), expected, MODEL_TOLERANCE)
    assert sod_ops.restore(model) == blocks
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected["output"], rtol=0, atol=0)


def test_float32_is_as_accurate():
    model, _ = built("efficientnet_b0")
    x = torch.randn(2, 3, 32, 32)
    plain = output_and_gradients(model, x)
    exact = output_and_gradients(copy.deepcopy(model).double(), x.double())
    sod_ops.accelerate(model)
    found = output_and_gradients(model, x)

    def error(values):
        # Of all gradients as one vector: one activation that rounding tips over a kink may change one of them by much.
        squares = [
            ((values[name].double() - value).square().sum(), value.square().sum()) for name, value in exact.items()
        ]
        difference, whole = torch.tensor(squares).sum(0)
        return float((difference / whole).sqrt())

    # Or 64 units in the last place, where the plain model is better than that by luck.
    assert error(found) <= max(FACTOR * error(plain), 64 * torch.finfo(torch.float32).eps)


def test_training_takes_the_same_steps():
    model, blocks = built("mobilenetv3_small_100")
    model.double().train()
    twin = copy.deepcopy(model)
    assert len(sod_ops.accelerate(twin).swapped) == blocks
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    for trained in (model, twin):
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.01)
        for _ in range(2):
            optimizer.zero_grad()
            trained(x).square().mean().backward()
            optimizer.step()
    assert_same(twin.state_dict(), model.state_dict(), MODEL_TOLERANCE)
    model.load_state_dict(twin.state_dict())


def test_rexnet_in_training_is_left_alone():
    with torch.device("meta"):
        report = sod_ops.accelerate(timm.create_model("rexnet_100"))
    assert report.swapped == []
    assert len(report.left) == 13
    assert {reason for _, _, reason in report.left} == {
        "its bn is in training mode (call model.eval() before accelerate)"
    }


def test_quantizable_mobilenet_is_left_alone():
    with torch.device("meta"):
        report = sod_ops.accelerate(torchvision.models.quantization.mobilenet_v3_large(weights=None))
    assert report.swapped == []
    assert {(kind, reason) for _, kind, reason in report.left} == {
        (
            "QuantizableSqueezeExcitation",
            "a subclass of torchvision.ops.misc.SqueezeExcitation, which may compute something else",
        )
    }

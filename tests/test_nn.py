"""The modules of sod_ops.nn."""

import pytest
import torch

import sod_ops


def test_computes_the_op_with_its_parameters():
    module = sod_ops.nn.SqueezeExcitation(12, 3, activation="silu", gate="hardsigmoid")
    x = torch.randn(2, 12, 5, 4)
    expected = sod_ops.squeeze_excite(x, *module.parameters(), activation="silu", gate="hardsigmoid")
    torch.testing.assert_close(module(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("bias", [True, False])
def test_state_dict(bias):
    module = sod_ops.nn.SqueezeExcitation(12, 3, bias=bias)
    shapes = {name: list(value.shape) for name, value in module.state_dict().items()}
    weights = {"reduce.weight": [3, 12, 1, 1], "expand.weight": [12, 3, 1, 1]}
    assert shapes == weights | ({"reduce.bias": [3], "expand.bias": [12]} if bias else {})


def test_gradients_reach_every_parameter():
    module = sod_ops.nn.SqueezeExcitation(12, 3, dtype=torch.float64)
    x = torch.randn(2, 12, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: module(x), (x, *module.parameters()))


def test_device_and_dtype():
    module = sod_ops.nn.SqueezeExcitation(12, 3, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in module.parameters()} == {("meta", torch.bfloat16)}


def test_compile_and_export():
    torch.compiler.reset()
    module = sod_ops.nn.SqueezeExcitation(12, 3)
    x = torch.randn(2, 12, 5, 4)
    torch.testing.assert_close(torch.compile(module, fullgraph=True, backend="aot_eager")(x), module(x))
    torch.testing.assert_close(torch.export.export(module, (x,)).module()(x), module(x))


def test_repr_names_the_functions():
    assert "activation='relu', gate='sigmoid'" in repr(sod_ops.nn.SqueezeExcitation(12, 3))


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        ((0, 3), {}, ValueError, "channels must be at least 1, got 0"),
        ((12, -1), {}, ValueError, "reduced_channels must be at least 1, got -1"),
        ((12.0, 3), {}, TypeError, r"channels must be an integer, got 12.0 \(float\)"),
        ((12, True), {}, TypeError, r"reduced_channels must be an integer, got True \(bool\)"),
        ((12, 3), {"activation": "tanh"}, ValueError, "activation must be one of 'identity', 'relu'"),
        ((12, 3), {"gate": torch.sigmoid}, TypeError, "gate must be a string, one of 'sigmoid'"),
    ],
)
def test_bad_arguments(arguments, keywords, error, message):
    with pytest.raises(error, match=f"SqueezeExcitation: {message}"):
        sod_ops.nn.SqueezeExcitation(*arguments, **keywords)


def test_input_of_other_channels():
    with pytest.raises(ValueError, match=r"reduce_weight must be of shape \[R, 8\]"):
        sod_ops.nn.SqueezeExcitation(12, 3)(torch.randn(1, 8, 4, 4))

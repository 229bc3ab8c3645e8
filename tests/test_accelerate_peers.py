"""Every block that accelerate serves, in every mix found in the peers' models, against the block itself."""

import copy

import pytest
import torch
from accelerate_cases import (
    HARDSIGMOID_TOLERANCE,
    MODULE_TOLERANCE,
    assert_as_accurate,
    assert_same,
    block,
    count_fused_calls,
    output_and_gradients,
    peer_class,
)
from torch import nn

import sod_ops
from sod_ops.accelerate import functions
from sod_ops.accelerate import timm as timm_peer
from sod_ops.reference import squeeze_excite as reference

C = 24
TIMM_SE = "timm.layers.squeeze_excite.SEModule"
TIMM_EFFECTIVE = "timm.layers.squeeze_excite.EffectiveSEModule"
TIMM_EFFICIENTNET = "timm.models._efficientnet_blocks.SqueezeExcite"
TIMM_SENET = "timm.models.senet.SEModule"
TORCHVISION = "torchvision.ops.misc.SqueezeExcitation"
SMP = "segmentation_models_pytorch"

CASES = {
    "timm-relu": (TIMM_SE, (C,), {}),
    "timm-silu": (TIMM_SE, (C,), {"act_layer": nn.SiLU}),
    "timm-batch_norm": (TIMM_SE, (C,), {"norm_layer": nn.BatchNorm2d}),
    "timm-batch_norm-without_bias": (TIMM_SE, (C,), {"norm_layer": nn.BatchNorm2d, "bias": False}),
    "timm-gelu-without_bias": (TIMM_SE, (C,), {"act_layer": "gelu", "bias": False}),
    "timm-leaky_relu": (TIMM_SE, (C,), {"act_layer": nn.LeakyReLU}),
    "timm-hard_sigmoid": (TIMM_SE, (C,), {"gate_layer": "hard_sigmoid"}),
    "timm-effective": (TIMM_EFFECTIVE, (C,), {}),
    "timm-effective-sigmoid": (TIMM_EFFECTIVE, (C,), {"gate_layer": "sigmoid"}),
    "timm-efficientnet-silu": (TIMM_EFFICIENTNET, (C,), {"act_layer": nn.SiLU}),
    "timm-efficientnet-relu": (TIMM_EFFICIENTNET, (C,), {}),
    "timm-efficientnet-relu-hard_sigmoid": (TIMM_EFFICIENTNET, (C,), {"gate_layer": nn.Hardsigmoid}),
    "timm-efficientnet-hard_swish": (
        TIMM_EFFICIENTNET,
        (C,),
        {"act_layer": nn.Hardswish, "gate_layer": "hard_sigmoid"},
    ),
    "timm-senet": (TIMM_SENET, (C, 4), {}),
    "torchvision-relu": (TORCHVISION, (C, 6), {}),
    "torchvision-silu": (TORCHVISION, (C, 6), {"activation": nn.SiLU}),
    "torchvision-hard_sigmoid": (TORCHVISION, (C, 6), {"scale_activation": nn.Hardsigmoid}),
    "smp-senet": (f"{SMP}.encoders._senet.SEModule", (C, 4), {}),
    "smp-mobileone": (f"{SMP}.encoders.mobileone.SEBlock", (C, 0.25), {}),
    "smp-scse": (f"{SMP}.base.modules.SCSEModule", (C, 4), {}),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def module(request):
    path, args, kwargs = request.param
    return block(path, *args, **kwargs)


def accelerated(module):
    copied = copy.deepcopy(module)
    assert sod_ops.accelerate(copied).swapped == [("", type(module).__name__)]
    return copied


@pytest.fixture
def fused_calls(monkeypatch):
    return count_fused_calls(monkeypatch)


def test_output_and_gradients_in_float64(module, fused_calls):
    module.double()
    x = torch.randn(3, C, 7, 5, dtype=torch.float64)
    found = output_and_gradients(accelerated(module), x)
    assert len(fused_calls) == 1
    hard = any(isinstance(child, nn.Hardsigmoid) for child in module.children())
    tolerance = HARDSIGMOID_TOLERANCE if hard else MODULE_TOLERANCE
    assert_same(found, output_and_gradients(module, x), tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_output_and_gradients_in_shorter_dtypes(module, dtype, fused_calls):
    module.to(dtype)
    x = torch.randn(3, C, 7, 5).to(dtype)
    found = output_and_gradients(accelerated(module), x)
    assert len(fused_calls) == 1
    plain = output_and_gradients(module, x)
    assert_as_accurate(found, plain, output_and_gradients(module.double(), x.double()))


def test_channels_last_stays(module, fused_calls):
    x = torch.randn(2, C, 6, 5).contiguous(memory_format=torch.channels_last)
    found = accelerated(module)(x)
    assert len(fused_calls) == 1
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert found.stride() == module(x).stride()


def test_no_samples(module):
    x = torch.randn(0, C, 6, 5)
    found, expected = output_and_gradients(accelerated(module), x), output_and_gradients(module, x)
    assert_same(found, expected, 0.0)


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast(module, x_dtype, fused_calls):
    x = torch.randn(2, C, 6, 5).to(x_dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found = output_and_gradients(accelerated(module), x)
        plain = output_and_gradients(module, x)
    assert len(fused_calls) == 1
    exact = output_and_gradients(module.double(), x.double())
    # In float32, the plain block computes its gates in bfloat16 under autocast; the fused one does not.
    assert_as_accurate(found, plain, exact)


@pytest.mark.parametrize(
    ("table", "functions_of_op"),
    [(timm_peer._ACTIVATIONS, reference.ACTIVATIONS), (timm_peer._GATES, reference.GATES)],
    ids=["activations", "gates"],
)
def test_tables_name_what_the_classes_compute(table, functions_of_op):
    def value_and_gradient(function):
        # No multiple of 3 or 0: at the kinks of the hard functions, the one-sided gradients are both right.
        z = torch.linspace(-8.05, 8.05, 322, dtype=torch.float64).requires_grad_()
        y = function(z)
        return {"y": y.detach(), "gradient": torch.autograd.grad(y.sum(), z)[0]}

    assert (
        table.keys() >= (functions.ACTIVATIONS if functions_of_op is reference.ACTIVATIONS else functions.GATES).keys()
    )
    for path, entry in table.items():
        attribute, names = ("", {None: entry}) if isinstance(entry, str) else entry
        for value, name in names.items():
            instance = peer_class(path)(**({attribute: value} if attribute else {}))
            tolerance = HARDSIGMOID_TOLERANCE if name == "hardsigmoid" else MODULE_TOLERANCE
            assert_same(value_and_gradient(instance), value_and_gradient(functions_of_op[name]), tolerance)

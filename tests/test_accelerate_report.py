"""What accelerate leaves alone, for which reason, and how its report reads."""

from functools import partial

import pytest
import torch
from accelerate_cases import block, peer_class, timm, torchvision
from torch import nn

import sod_ops
from sod_ops.accelerate import Report

TIMM_SE = peer_class("timm.layers.squeeze_excite.SEModule")
TIMM_EFFECTIVE = peer_class("timm.layers.squeeze_excite.EffectiveSEModule")
SCSE = peer_class("segmentation_models_pytorch.base.modules.SCSEModule")
TORCHVISION_SE = torchvision.ops.SqueezeExcitation


@pytest.fixture
def se():
    return block("torchvision.ops.misc.SqueezeExcitation", 16, 4)


class SubclassedSE(TIMM_SE):
    def forward(self, x):
        return super().forward(x) + 1


class SELayer(nn.Module):
    """One of the many of this name."""

    def forward(self, x):
        return x


def _with(module, change):
    change(module)
    return module


def _double_size(se):
    se.fc1 = nn.Conv2d(16, 4, 3, padding=1)


def _own_convolution(se):
    class Conv2d(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    se.fc1 = Conv2d(16, 4, 1)


LEFT = {
    "subclass": (
        lambda: SubclassedSE(16),
        "a subclass of timm.layers.squeeze_excite.SEModule, which may compute something else",
    ),
    "quantizable": (
        lambda: peer_class("torchvision.models.quantization.mobilenetv3.QuantizableSqueezeExcitation")(16, 4),
        "a subclass of torchvision.ops.misc.SqueezeExcitation",
    ),
    "other class of that name": (SELayer, "test_accelerate_report.SELayer is not a class that sod_ops knows"),
    "channels last variant": (
        lambda: peer_class("timm.layers.squeeze_excite.SqueezeExciteCl")(16),
        "timm.layers.squeeze_excite.SqueezeExciteCl is not a class that sod_ops knows",
    ),
    "scripted": (lambda: torch.jit.script(TORCHVISION_SE(16, 4)), "compiled by TorchScript"),
    "scripted child": (
        lambda: _with(TORCHVISION_SE(16, 4), lambda se: setattr(se, "fc1", torch.jit.script(se.fc1))),
        "its fc1 is torch.jit._script.RecursiveScriptModule, not a plain Conv2d",
    ),
    "hook on a child": (
        lambda: _with(TIMM_SE(16), lambda se: se.gate.register_forward_hook(print)),
        "its child gate has hooks",
    ),
    "hook inside scSE": (
        lambda: _with(SCSE(16), lambda scse: scse.cSE[1].register_forward_hook(print)),
        "its child 1 has hooks",
    ),
    "hook on a part of scSE": (
        lambda: _with(SCSE(16), lambda scse: scse.cSE.register_forward_hook(print)),
        "its cSE is not a plain Sequential, or has hooks",
    ),
    "old weight norm": (
        lambda: _with(TIMM_SE(16), lambda se: nn.utils.spectral_norm(se.fc1)),
        "its child fc1 has hooks",
    ),
    "forward of the instance": (
        lambda: _with(TIMM_SE(16), lambda se: setattr(se, "forward", lambda x: x)),
        "its forward has been replaced",
    ),
    "forward of a child": (
        lambda: _with(TIMM_SE(16), lambda se: setattr(se.fc1, "forward", lambda x: x)),
        "its child fc1 has hooks, or a forward of its own",
    ),
    "max pooling": (lambda: TIMM_SE(16, add_maxpool=True), "it adds max pooling (add_maxpool=True)"),
    "max pooling, effective": (lambda: TIMM_EFFECTIVE(16, add_maxpool=True), "it adds max pooling (add_maxpool=True)"),
    "unknown activation": (
        lambda: TIMM_SE(16, act_layer="tanh"),
        "its activation is timm.layers.activations.Tanh, which has no fused form",
    ),
    "unknown gate": (
        lambda: TORCHVISION_SE(16, 4, scale_activation=nn.Softsign),
        "its gate is torch.nn.modules.activation.Softsign, which has no fused form",
    ),
    "another slope": (
        lambda: TORCHVISION_SE(16, 4, activation=lambda: nn.LeakyReLU(0.2)),
        "its activation is torch.nn.modules.activation.LeakyReLU with negative_slope=0.2, which has no fused form",
    ),
    "batch norm in training": (lambda: TIMM_SE(16, norm_layer=nn.BatchNorm2d), "its bn is in training mode"),
    "batch norm without statistics": (
        lambda: TIMM_SE(16, norm_layer=partial(nn.BatchNorm2d, track_running_stats=False)).eval(),
        "its bn normalises by the batch's own statistics",
    ),
    "another norm": (
        lambda: TIMM_SE(16, norm_layer=lambda c, **_: nn.GroupNorm(1, c)).eval(),
        "its bn is torch.nn.modules.normalization.GroupNorm, not BatchNorm2d",
    ),
    "3x3": (lambda: _with(TIMM_SE(16), _double_size), "its fc1 has kernel_size=(3, 3), not (1, 1)"),
    "another convolution": (lambda: _with(TIMM_SE(16), _own_convolution), "Conv2d, not a plain Conv2d"),
    "another pool": (
        lambda: _with(TORCHVISION_SE(16, 4), lambda se: setattr(se, "avgpool", nn.AdaptiveAvgPool2d(2))),
        "its avgpool is AdaptiveAvgPool2d(output_size=2), not AdaptiveAvgPool2d(1)",
    ),
    "one more child": (
        lambda: _with(TIMM_SE(16), lambda se: se.add_module("drop", nn.Dropout())),
        "its children are fc1, bn, act, fc2, gate, drop, where fc1, bn, act, fc2, gate were expected",
    ),
}


@pytest.mark.parametrize(("build", "reason"), LEFT.values(), ids=LEFT.keys())
def test_left_alone_with_the_reason(build, reason):
    module = build()
    before = dict(vars(module))
    report = sod_ops.accelerate(nn.ModuleDict({"block": module}))
    assert report.swapped == []
    [(name, class_name, found)] = report.left
    assert name == "block"
    assert class_name == getattr(module, "original_name", type(module).__name__)
    assert reason in found
    assert vars(module) == before


@pytest.mark.parametrize(
    "name",
    [
        "SELayer",
        "SE_Block",
        "ChannelSELayer",
        "RegNetSELayer",
        "SqueezeAndExcitation",
        "EfficientNetSqueezeExciteLayer",
    ],
)
def test_names_that_look_familiar_are_listed(name):
    module = type(name, (nn.Identity,), {})()
    assert sod_ops.accelerate(module).left == [
        ("", name, f"test_accelerate_report.{name} is not a class that sod_ops knows")
    ]


@pytest.mark.parametrize("name", ["Base", "SENet", "SEBottleneck", "NoiseLayer", "DENSEBlock"])
def test_names_of_something_else_are_not(name):
    assert sod_ops.accelerate(type(name, (nn.Identity,), {})()).left == []


def test_forward_of_the_class_replaced(se, monkeypatch):
    monkeypatch.setattr(TORCHVISION_SE, "forward", lambda self, x: x)
    [(_, _, reason)] = sod_ops.accelerate(se).left
    assert reason == "the forward of its class has been replaced"


def test_own_module_is_not_left_behind():
    """It runs the fused op already, and has nothing to be told."""
    report = sod_ops.accelerate(sod_ops.nn.SqueezeExcitation(16, 4))
    assert report == Report()


def test_forward_bound_over_ours_by_somebody_else_is_not_taken_off(se):
    sod_ops.accelerate(se)
    se.forward = theirs = lambda x: x
    assert sod_ops.restore(se) == 0
    assert se.forward is theirs


# The report


def test_report_as_text():
    model = nn.Sequential(
        *(TIMM_SE(16) for _ in range(12)), TIMM_SE(16, add_maxpool=True), *(SubclassedSE(16) for _ in range(2))
    )
    text = str(sod_ops.accelerate(model))
    assert text.splitlines() == [
        "12 modules swapped, 3 left as they were",
        "",
        "swapped",
        "  12   SEModule       0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11",
        "",
        "left",
        "   1   SEModule       12",
        "       it adds max pooling (add_maxpool=True)",
        "   2   SubclassedSE   13, 14",
        "       a subclass of timm.layers.squeeze_excite.SEModule, which may compute",
        "       something else",
    ]
    assert repr(sod_ops.accelerate(nn.Identity())) == "0 modules swapped, 0 left as they were"


def test_report_of_many_modules_fits_a_terminal():
    with torch.device("meta"):
        model = timm.create_model("efficientnet_b0")
    report = sod_ops.accelerate(model)
    assert len(report.swapped) == 16
    assert "  16   SqueezeExcite   blocks.0.0.se ... blocks.6.0.se" in str(report)
    assert all(len(line) <= 80 for line in str(report).splitlines())

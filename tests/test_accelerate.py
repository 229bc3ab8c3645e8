"""accelerate and restore: what is swapped, what is left alone, what stays, and when a block runs its own forward."""

import copy
import gc
import pickle
import subprocess
import sys
import types
import weakref
from functools import partial

import pytest
import torch
from accelerate_cases import Net, assert_same, block, fused_module, output_and_gradients, peer_class, timm, torchvision
from torch import nn

import sod_ops
from sod_ops.accelerate import Report

TIMM_SE = peer_class("timm.layers.squeeze_excite.SEModule")
TIMM_EFFECTIVE = peer_class("timm.layers.squeeze_excite.EffectiveSEModule")
SCSE = peer_class("segmentation_models_pytorch.base.modules.SCSEModule")
TORCHVISION_SE = torchvision.ops.SqueezeExcitation
X = torch.randn(2, 16, 6, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def se():
    return block("torchvision.ops.misc.SqueezeExcitation", 16, 4)


@pytest.fixture
def batch_norm_se():
    return block("timm.layers.squeeze_excite.SEModule", 16, rd_channels=4, norm_layer=nn.BatchNorm2d)


@pytest.fixture
def fused_calls(monkeypatch):
    calls = []

    def squeeze_excite(*args, **kwargs):
        calls.append((args, kwargs))
        return sod_ops.squeeze_excite(*args, **kwargs)

    monkeypatch.setattr(fused_module(), "squeeze_excite", squeeze_excite)
    return calls


# What stays as it was


def test_only_the_forward_of_the_instance_changes(se):
    model = Net(se)
    before = dict(vars(se))
    parameters = [id(p) for p in model.parameters()]
    keys, modules = list(model.state_dict()), list(model.modules())

    report = sod_ops.accelerate(model)

    assert report.swapped == [("se", "SqueezeExcitation")]
    assert report.left == []
    assert type(se) is TORCHVISION_SE
    assert [id(p) for p in model.parameters()] == parameters
    assert list(model.state_dict()) == keys
    assert list(model.modules()) == modules
    assert "forward" in vars(se)
    assert sod_ops.restore(model) == 1
    assert vars(se) == before


def test_second_call_changes_nothing(se):
    model = Net(se)
    sod_ops.accelerate(model)
    before = se.forward
    report = sod_ops.accelerate(model)
    assert report.swapped == []
    assert report.left == [("se", "SqueezeExcitation", "already accelerated")]
    assert se.forward is before


def test_restore_of_what_was_never_accelerated_does_nothing(se):
    before = dict(vars(se))
    assert sod_ops.restore(Net(se)) == 0
    assert vars(se) == before


def test_restored_model_can_be_scripted(se):
    sod_ops.accelerate(se)
    sod_ops.restore(se)
    torch.testing.assert_close(torch.jit.script(se)(X), se(X))


def test_shared_module_is_swapped_once(se):
    model = nn.ModuleDict({"first": se, "second": nn.Sequential(se)})
    assert sod_ops.accelerate(model).swapped == [("first", "SqueezeExcitation")]


def test_model_that_is_a_block(se):
    report = sod_ops.accelerate(se)
    assert report.swapped == [("", "SqueezeExcitation")]
    assert "(the model itself)" in str(report)


def test_model_without_blocks():
    report = sod_ops.accelerate(nn.Linear(2, 2))
    assert report == Report()
    assert str(report) == "0 modules swapped, 0 left as they were"


def test_hooks_on_the_block_fire(se):
    seen = []
    se.register_forward_hook(lambda module, args, output: seen.append("before"))
    sod_ops.accelerate(se)
    se.register_forward_pre_hook(lambda module, args: seen.append("pre"))
    se.register_full_backward_hook(lambda module, grad_input, grad_output: seen.append("backward"))
    se(X.clone().requires_grad_()).sum().backward()
    assert seen == ["pre", "before", "backward"]


def test_state_dict_round_trip(se, fused_calls):
    source = Net(block("torchvision.ops.misc.SqueezeExcitation", 16, 4))
    target = Net(se)
    sod_ops.accelerate(target)
    target.load_state_dict(source.state_dict())
    x = torch.randn(2, 3, 6, 5)
    torch.testing.assert_close(target(x), source(x))
    assert len(fused_calls) == 1
    restored = Net(block("torchvision.ops.misc.SqueezeExcitation", 16, 4))
    restored.load_state_dict(target.state_dict())
    torch.testing.assert_close(restored(x), source(x))


# Copies


@pytest.mark.parametrize(
    "copy_of", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies_are_accelerated_and_independent(se, copy_of, fused_calls):
    model = Net(se)
    sod_ops.accelerate(model)
    copied = copy_of(model)
    x = torch.randn(2, 3, 6, 5)
    before = model(x)
    with torch.no_grad():
        copied.se.fc2.bias.fill_(50.0)  # opens every gate
    fused_calls.clear()
    torch.testing.assert_close(copied(x), copied.head(copied.stem(x)))
    assert len(fused_calls) == 1
    torch.testing.assert_close(model(x), before)
    assert sod_ops.restore(copied) == 1
    assert "forward" in vars(se)


def test_replica_of_data_parallel_runs_on_its_own_weights(se, fused_calls):
    """What torch.nn.parallel.replicate does for each device, on the CPU."""
    sod_ops.accelerate(se)
    replica = se._replicate_for_data_parallel()
    for name, child in se._modules.items():
        replica._modules[name] = copied = child._replicate_for_data_parallel()
        for key, parameter in child._parameters.items():
            setattr(copied, key, parameter.detach() * 0)
    torch.testing.assert_close(replica(X), 0.5 * X)
    assert len(fused_calls) == 1


def test_deleted_model_frees_its_memory_at_once(se):
    """Without a cycle of references, nothing waits for the garbage collector."""
    model = Net(copy.deepcopy(se))
    sod_ops.accelerate(model)
    model(torch.randn(2, 3, 6, 5)).sum().backward()
    block, weight = weakref.ref(model.se), weakref.ref(model.se.fc1.weight)
    gc.disable()
    try:
        del model
        assert block() is None
        assert weight() is None
    finally:
        gc.enable()


# Weights are read at every call


def test_weights_are_read_at_every_call(se, fused_calls):
    sod_ops.accelerate(se)
    plain = TORCHVISION_SE.forward
    se.double()
    torch.testing.assert_close(se(X.double()), plain(se, X.double()))
    se.float()
    se.fc1.weight = nn.Parameter(torch.randn(4, 16, 1, 1))
    torch.testing.assert_close(se(X), plain(se, X))
    zero = {name: torch.zeros_like(value) for name, value in se.named_parameters()}
    torch.testing.assert_close(torch.func.functional_call(se, zero, (X,)), 0.5 * X)
    assert len(fused_calls) == 3


def test_parametrized_weight(se, fused_calls):
    nn.utils.parametrizations.weight_norm(se.fc1)
    before = output_and_gradients(se, X)
    assert sod_ops.accelerate(se).swapped == [("", "SqueezeExcitation")]
    assert_same(output_and_gradients(se, X), before, 1e-5)
    assert len(fused_calls) == 1


def test_weight_parametrized_after_the_swap(se, fused_calls):
    sod_ops.accelerate(se)
    nn.utils.parametrizations.weight_norm(se.fc1)
    torch.testing.assert_close(se(X), TORCHVISION_SE.forward(se, X))
    assert fused_calls == []


# The block's own forward, call by call


def _replace_activation(se):
    se.activation = nn.Tanh()


def _replace_gate(se):
    se.scale_activation = nn.Hardsigmoid()


def _replace_pool(se):
    se.avgpool = nn.AdaptiveMaxPool2d(1)


def _override_child_forward(se):
    se.fc1.forward = types.MethodType(lambda self, x: nn.Conv2d.forward(self, x) + 1, se.fc1)


def _hook_child(se):
    se.fc2.register_forward_hook(lambda module, args, output: 2 * output)


@pytest.mark.parametrize(
    "change", [_replace_activation, _replace_gate, _replace_pool, _override_child_forward, _hook_child]
)
def test_changed_children_are_respected(se, change, fused_calls):
    sod_ops.accelerate(se)
    before = se(X)
    change(se)
    torch.testing.assert_close(se(X), TORCHVISION_SE.forward(se, X))
    assert not torch.allclose(se(X), before)
    assert len(fused_calls) == 1


def test_changed_slope_is_respected(fused_calls):
    se = block("timm.layers.squeeze_excite.SEModule", 16, rd_channels=4, act_layer=nn.LeakyReLU)
    sod_ops.accelerate(se)
    se(X)
    se.act.negative_slope = 0.5
    torch.testing.assert_close(se(X), TIMM_SE.forward(se, X))
    assert len(fused_calls) == 1


@pytest.mark.parametrize(
    "register",
    [
        lambda child, hook: child.register_forward_hook(hook),
        lambda child, hook: child.register_forward_pre_hook(hook),
        lambda child, hook: child.register_full_backward_hook(hook),
        lambda child, hook: child.register_full_backward_pre_hook(hook),
        lambda child, hook: nn.modules.module.register_module_forward_hook(hook),
    ],
    ids=["forward", "forward_pre", "backward", "backward_pre", "global"],
)
def test_hooks_on_children_fire_while_they_are_there(se, register, fused_calls):
    sod_ops.accelerate(se)
    seen = []
    handle = register(se.scale_activation, lambda module, *_: seen.append(module))
    se(X.clone().requires_grad_()).sum().backward()
    handle.remove()
    assert se.scale_activation in seen
    assert fused_calls == []
    se(X)
    assert len(fused_calls) == 1


def test_hooks_inside_scse_fire():
    scse = SCSE(16, 4)
    sod_ops.accelerate(scse)
    seen = []
    for module in (scse.cSE, scse.sSE):
        module.register_forward_hook(lambda module, args, output: seen.append(module))
    scse(X)
    assert seen == [scse.cSE, scse.sSE]


def test_flops_are_counted(se):
    from torch.utils.flop_counter import FlopCounterMode

    def count():
        with FlopCounterMode(display=False) as counter:
            se(X)
        return counter.get_total_flops()

    before = count()
    sod_ops.accelerate(se)
    assert count() == before > 0


def test_batch_norm_in_training_runs_by_itself(batch_norm_se, fused_calls):
    se = batch_norm_se
    plain = copy.deepcopy(se)
    sod_ops.accelerate(se)
    for mode in (False, True, False):
        se.train(mode)
        plain.train(mode)
        assert_same(output_and_gradients(se, X), output_and_gradients(plain, X), 1e-5)
    assert len(fused_calls) == 2
    torch.testing.assert_close(se.state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert int(se.bn.num_batches_tracked) == 1


@pytest.mark.parametrize(
    "x",
    [X[0], X[:, :8], X.long(), X.double(), X.half(), X.bfloat16(), X.to_sparse(), X.to("meta"), None, 3.0],
    ids=["3-D", "channels", "int64", "float64", "float16", "bfloat16", "sparse", "meta", "None", "number"],
)
def test_input_that_is_not_served_is_the_blocks_own_business(se, x):
    def outcome(forward):
        try:
            return forward(x)
        except Exception as error:
            return type(error), str(error)

    expected = outcome(se)
    sod_ops.accelerate(se)
    found = outcome(se)
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected)
    else:
        assert found == expected


def test_autocast_to_another_dtype_keeps_the_blocks_dtype(se):
    x = X.bfloat16()
    with torch.autocast("cpu", torch.float16):
        expected = se(x)
        sod_ops.accelerate(se)
        found = se(x)
    assert expected.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_keyword_call_is_the_blocks_own_business(se):
    expected = se(X)
    sod_ops.accelerate(se)
    torch.testing.assert_close(se(input=X), expected)
    with pytest.raises(TypeError, match="unexpected keyword argument 'images'"):
        se(images=X)


def test_request_for_a_backend_is_not_swallowed(se, monkeypatch):
    sod_ops.accelerate(se)
    monkeypatch.setenv("SOD_OPS_BACKEND", "gpu")
    with pytest.raises(ValueError, match="SOD_OPS_BACKEND must be one of"):
        se(X)


# What is left alone


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
    "other class of that name": (SELayer, "test_accelerate.SELayer is not a class that sod_ops knows"),
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
    assert sod_ops.accelerate(module).left == [("", name, f"test_accelerate.{name} is not a class that sod_ops knows")]


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


# Errors, and peers that are not there


@pytest.mark.parametrize("function", [sod_ops.accelerate, sod_ops.restore])
@pytest.mark.parametrize("model", [None, nn.Linear, lambda x: x, "resnet18"])
def test_model_must_be_a_module(function, model):
    with pytest.raises(TypeError, match=f"{function.__name__}: model must be a torch.nn.Module, got "):
        function(model)


def test_no_peer_is_imported():
    script = (
        "import sys, torch, sod_ops\n"
        "report = sod_ops.accelerate(torch.nn.Linear(2, 2))\n"
        "assert report.swapped == report.left == []\n"
        "peers = {'timm', 'torchvision', 'segmentation_models_pytorch'} & set(sys.modules)\n"
        "assert not peers, peers\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)

"""accelerate and restore: what changes in a model, what stays, and what its copies do."""

import copy
import gc
import pickle
import subprocess
import sys
import weakref

import pytest
import torch
from accelerate_cases import (
    Net,
    assert_same,
    block,
    count_fused_calls,
    output_and_gradients,
    torchvision,
)
from torch import nn

import sod_ops
from sod_ops.accelerate import Report

TORCHVISION_SE = torchvision.ops.SqueezeExcitation
X = torch.randn(2, 16, 6, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def se():
    return block("torchvision.ops.misc.SqueezeExcitation", 16, 4)


@pytest.fixture
def fused_calls(monkeypatch):
    return count_fused_calls(monkeypatch)


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

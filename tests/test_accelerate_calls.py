"""Which calls of an accelerated block are served by the fused op, and which by the block's own forward."""

import copy
import types

import pytest
import torch
from accelerate_cases import (
    assert_same,
    block,
    count_fused_calls,
    output_and_gradients,
    peer_class,
    torchvision,
)
from torch import nn

import sod_ops

TIMM_SE = peer_class("timm.layers.squeeze_excite.SEModule")
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
    return count_fused_calls(monkeypatch)


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

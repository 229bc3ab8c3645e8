"""Accelerated models under torch.compile, torch.export, torch.fx, torch.jit.trace, ONNX export and torch.func."""

import pickle

import pytest
import torch
from accelerate_cases import Net, assert_same, block, output_and_gradients, timm
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import sod_ops

X = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(0))

BLOCKS = {
    "timm": ("timm.layers.squeeze_excite.SEModule", (16,), {"rd_channels": 4}),
    "timm-batch_norm": ("timm.layers.squeeze_excite.SEModule", (16,), {"norm_layer": nn.BatchNorm2d}),
    "timm-effective": ("timm.layers.squeeze_excite.EffectiveSEModule", (16,), {}),
    "torchvision": ("torchvision.ops.misc.SqueezeExcitation", (16, 4), {}),
    "smp-scse": ("segmentation_models_pytorch.base.modules.SCSEModule", (16, 4), {}),
}


@pytest.fixture(params=BLOCKS.values(), ids=BLOCKS.keys())
def model(request):
    torch.compiler.reset()
    path, args, kwargs = request.param
    return Net(block(path, *args, **kwargs)).eval()


# Tracing may reassociate and fuse: a few units in the last place of float32.
TOLERANCE = 1e-5


def test_compile_without_graph_breaks(model):
    expected = output_and_gradients(model, X)
    assert len(sod_ops.accelerate(model).swapped) == 1
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = output_and_gradients(compiled, X)
    assert_same({name.removeprefix("_orig_mod."): value for name, value in found.items()}, expected, TOLERANCE)


def test_compile_with_dynamic_shapes(model):
    larger = torch.randn(3, 3, 11, 10)
    expected = model(larger)
    sod_ops.accelerate(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    compiled(X)
    torch.testing.assert_close(compiled(larger), expected)


def test_compiled_batch_norm_follows_the_mode():
    torch.compiler.reset()
    model = block("timm.layers.squeeze_excite.SEModule", 16, norm_layer=nn.BatchNorm2d)
    x = torch.randn(2, 16, 4, 4)
    expected = type(model).forward(model.train(), x)
    sod_ops.accelerate(model.eval())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(x)
    model.train()
    torch.testing.assert_close(compiled(x), expected)


def test_compiled_call_that_is_not_served():
    torch.compiler.reset()
    model = block("torchvision.ops.misc.SqueezeExcitation", 16, 4)
    x = torch.randn(16, 4, 4)  # without a batch
    expected = model(x)
    sod_ops.accelerate(model)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), expected)


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
def test_export(model, strict):
    expected = model(X)
    sod_ops.accelerate(model)
    program = torch.export.export(model, (X,), strict=strict)
    assert program.state_dict.keys() == model.state_dict().keys()
    torch.testing.assert_close(program.module()(X), expected)


def test_fx(model):
    expected = output_and_gradients(model, X)
    sod_ops.accelerate(model)
    traced = torch.fx.symbolic_trace(model)
    # A batch norm's block is traced as it was: the fused op would freeze its folded weights.
    fused = any(node.target is sod_ops.squeeze_excite for node in traced.graph.nodes)
    assert fused == (not isinstance(getattr(model.se, "bn", None), nn.BatchNorm2d))
    found = output_and_gradients(traced, X)
    assert_same({name: found[name] for name in expected}, expected, TOLERANCE)
    torch.testing.assert_close(pickle.loads(pickle.dumps(traced))(X), expected["output"])


def test_fx_of_a_timm_model_and_its_features():
    from timm.models import create_feature_extractor

    model = timm.create_model("seresnet18").eval()
    x = torch.randn(1, 3, 32, 32)
    expected, stages = model(x), [model.forward_features(x)]
    sod_ops.accelerate(model)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), expected)
    features = create_feature_extractor(model, ["layer4"])
    torch.testing.assert_close(list(features(x).values()), stages)


def operators(program):
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


def test_jit_trace_records_the_blocks_own_operators(model, tmp_path):
    expected = model(X)
    sod_ops.accelerate(model)
    traced = torch.jit.trace(model, X)
    assert "sod_ops" not in str(traced.inlined_graph)
    traced.save(tmp_path / "model.pt")
    torch.testing.assert_close(torch.jit.load(tmp_path / "model.pt")(X), expected)


def test_onnx_export_records_the_blocks_own_operators(model, monkeypatch):
    """What torch.onnx.export sees: it exports through torch.export with this flag set."""
    plain = operators(torch.export.export(model, (X,)))
    sod_ops.accelerate(model)
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    assert operators(torch.export.export(model, (X,))) == plain


def test_func_transforms(model):
    expected = model(X)
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(parameters, x):
        return torch.func.functional_call(model, (parameters, buffers), (x,)).square().sum()

    gradients = torch.func.grad(loss)(parameters, X)
    sod_ops.accelerate(model)
    assert_same(torch.func.grad(loss)(parameters, X), gradients, TOLERANCE)
    torch.testing.assert_close(torch.func.vmap(model)(X[None])[0], expected)


def test_dispatch_modes_see_no_more_than_plain_operators(model):
    """A mode that knows no fused op must still be able to run the model: every operator can be re-dispatched."""

    class Redispatch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    expected = model(X)
    sod_ops.accelerate(model)
    with Redispatch():
        torch.testing.assert_close(model(X), expected)

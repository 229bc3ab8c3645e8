"""nn.PyramidPooling and nn.PyramidPoolingHead against the same of PyTorch's pools, convolutions, interpolate and cat."""

import copy
from typing import Any

import pytest
import torch
from conftest import Backend
from torch import Tensor
from torch.nn import functional

from sod_ops.nn import PyramidPooling, PyramidPoolingHead

Pyramid = PyramidPooling | PyramidPoolingHead

KINDS = {"pooling": PyramidPooling, "head": PyramidPoolingHead}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def build(kind: str, **options: Any) -> Pyramid:
    """8 channels, branches of 3, parameters and running statistics that are none's default."""
    torch.manual_seed(1)
    module: Pyramid = KINDS[kind](8, **{"channels": 3, "dtype": torch.float64, **options})
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point() and tensor.dim() == 1:
                tensor.uniform_(0.5, 1.5)
    return module


def plain(module: Pyramid, x: Tensor) -> Tensor:
    """The module as people write it, of the same submodules."""
    maps = []
    for size, branch in zip(module.bins, module.branches, strict=True):
        level = branch(functional.adaptive_avg_pool2d(x, size))
        maps.append(functional.interpolate(level, x.shape[2:], mode="bilinear", align_corners=module.align_corners))
    y = torch.cat([x, *maps] if module.x_first else [*maps, x], 1)
    return module.bottleneck(y) if isinstance(module, PyramidPoolingHead) else y


def make_x(layout: str = "contiguous", dtype: torch.dtype = torch.float64, samples: int = 2) -> Tensor:
    return torch.randn(samples, 8, 7, 9).to(dtype).contiguous(memory_format=LAYOUTS[layout])


def check(module: Pyramid, x: Tensor) -> None:
    """Output, gradients of x and of all parameters, and the norms' statistics: all in float64, so to its last digits."""
    other = copy.deepcopy(module)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [module(leaves[0]), plain(other, leaves[1])]
    torch.testing.assert_close(*outputs)
    torch.manual_seed(2)
    grad = torch.randn_like(outputs[1])
    for output in outputs:
        output.backward(grad)
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)
    for (name, a), b in zip(module.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=lambda text, name=name: f"{name}: {text}")
    for (name, a), b in zip(module.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("x_first", [True, False])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_plain_pytorch(kind: str, align_corners: bool, x_first: bool, layout: str, training: bool) -> None:
    module = build(kind, align_corners=align_corners, x_first=x_first).train(training)
    check(module, make_x(layout))
    assert module(make_x(layout)).is_contiguous(memory_format=LAYOUTS[layout]) or kind == "head"


@pytest.mark.parametrize("kind", KINDS)
def test_backends(backend: Backend, kind: str) -> None:
    module = build(kind, bins=(1, 3), device=backend.device)
    x = make_x(samples=2).to(backend.device)
    check(module, x[:, :, :3, :4] if backend.interpreted else x)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", [torch.nn.ReLU, torch.nn.SiLU, None])
@pytest.mark.parametrize("norm", [torch.nn.BatchNorm2d, lambda channels: torch.nn.GroupNorm(1, channels), None])
@pytest.mark.parametrize("kind", KINDS)
def test_norms_and_activations(kind: str, norm: Any, activation: Any, layout: str) -> None:
    module = build(kind, norm=norm, activation=activation, bins=(1, 2, 5, 8))
    assert (module.branches[0][0].bias is None) == (norm is not None)
    check(module, make_x(layout))


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind: str) -> None:
    module = build(kind, activation=torch.nn.SiLU, bins=(1, 2)).eval()  # ReLU's kink is no place for differences
    x = make_x()[:1, :, :4, :3].requires_grad_()
    inputs = (x, *module.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: module(x), inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x, *_: module(x), inputs, fast_mode=True)


def test_defaults() -> None:
    """The paper's: bins of 1, 2, 3 and 6, and channels / N each."""
    module = PyramidPooling(16)
    assert [branch[0].out_channels for branch in module.branches] == [4] * 4
    assert module(torch.randn(2, 16, 9, 9)).shape == (2, 32, 9, 9)
    assert "bins=(1, 2, 3, 6), align_corners=False, x_first=True" in repr(module)
    head = PyramidPoolingHead(16)
    assert head.bottleneck[0].weight.shape == (512, 16 + 4 * 512, 3, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_is_that_of_the_submodules(kind: str) -> None:
    module = build(kind)
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    blocks = [f"branches.{i}" for i in range(4)] + ["bottleneck"] * (kind == "head")
    assert list(module.state_dict()) == [f"{b}.{n}" for b in blocks for n in ("0.weight", *(f"1.{n}" for n in norm))]
    fresh = KINDS[kind](8, channels=3, dtype=torch.float64)
    fresh.load_state_dict(module.state_dict())
    x = make_x()
    torch.testing.assert_close(fresh.eval()(x), module.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_batch_norm_refuses_one_value_per_channel(kind: str) -> None:
    module = build(kind)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        module(make_x(samples=1))
    check(module.eval(), make_x(samples=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_autocast(kind: str, dtype: torch.dtype) -> None:
    """The dtype that plain PyTorch gives, for a map in float32 and for one that a convolution has made bfloat16."""
    module = build(kind, dtype=torch.float32).eval()
    x = make_x(dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, expected = module(x), plain(module, x)
    assert y.dtype == expected.dtype
    exact = plain(copy.deepcopy(module).double(), x.double())
    torch.testing.assert_close(y.double(), exact, rtol=0.05, atol=0.05)  # bfloat16 has 8 bits
    y.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_compile(kind: str) -> None:
    torch.compiler.reset()
    module = build(kind)
    x = make_x()
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True, backend="aot_eager")
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [module(leaves[0]), compiled(leaves[1])]
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)


def test_a_module_in_the_convolutions_place_is_called() -> None:
    """As libraries for adapters and quantisation put one there."""
    module = build("pooling").eval()
    x = make_x()
    expected = module(x)
    module.branches[0][0] = torch.nn.Sequential(module.branches[0][0])
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_device_and_dtype(kind: str) -> None:
    module = build(kind, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in module.parameters()} == {("meta", torch.bfloat16)}


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"in_channels": 0}, ValueError, "in_channels must be at least 1, got 0"),
        ({"in_channels": 8.0}, TypeError, r"in_channels must be an integer, got 8.0 \(float\)"),
        ({"channels": 0}, ValueError, "channels must be at least 1, got 0"),
        ({"channels": True}, TypeError, r"channels must be an integer, got True \(bool\)"),
        ({"bins": ()}, ValueError, "bins must be at least one integer"),
        ({"bins": (1, 0)}, ValueError, "bins must be integers of at least 1"),
        ({"bins": 3}, TypeError, "bins must be a sequence of integers"),
        ({"norm": "batch"}, TypeError, "norm must be a class or function that makes a module, or None, got 'batch'"),
        ({"activation": torch.nn.ReLU()}, TypeError, r"activation must be a class or function .*, got ReLU\(\)"),
        ({"align_corners": None}, TypeError, "align_corners must be a bool, got None"),
        ({"x_first": 1}, TypeError, "x_first must be a bool, got 1"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_bad_arguments(kind: str, keywords: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"{KINDS[kind].__name__}: {message}"):
        KINDS[kind](**{"in_channels": 8, "channels": 3, **keywords})


def test_fewer_channels_than_bins() -> None:
    with pytest.raises(ValueError, match="PyramidPooling: in_channels must be at least 4, one per bin, got 3"):
        PyramidPooling(3)


@pytest.mark.parametrize("kind", KINDS)
def test_input_of_other_channels(kind: str) -> None:
    with pytest.raises(ValueError, match=rf"{KINDS[kind].__name__}: x must be of shape \[N, 8, H, W\], got \[2, 5,"):
        build(kind)(make_x()[:, :5])


def test_the_head_saves_no_concatenation() -> None:
    """Plain PyTorch saves it for the bottleneck's gradient."""
    module, x = build("head"), make_x().requires_grad_()
    concatenation = torch.Size((2, 8 + 4 * 3, 7, 9))

    def saved(function: Any) -> list[torch.Size]:
        shapes: list[torch.Size] = []

        def pack(tensor: Tensor) -> Tensor:
            shapes.append(tensor.shape)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            function(x)
        return shapes

    assert concatenation in saved(lambda x: plain(module, x))
    assert concatenation not in saved(module)

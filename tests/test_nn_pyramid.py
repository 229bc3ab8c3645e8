"""nn.PyramidPooling and nn.PyramidPoolingHead against the same layers in plain PyTorch, which upsample and concatenate."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import sod_ops

# Sides that no bin but the first divides, and a bin larger than a side.
SIZE = (7, 5)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"align_corners": True, "x_first": False},
    {"bins": (1, 3, 5), "norm": None, "activation": nn.SiLU},
    {"channels": 5, "norm": nn.InstanceNorm2d, "activation": None, "bins": (2, 6)},  # one value alone has no variance
]


def make(head: bool, options: dict[str, Any], dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(1)
    if head:
        return sod_ops.nn.PyramidPoolingHead(8, **{"channels": 6, **options}, dtype=dtype)
    return sod_ops.nn.PyramidPooling(8, **options, dtype=dtype)


def plain(module: Any, x: Tensor) -> Tensor:
    """What the module stands for, from its own layers."""
    maps = []
    for size, branch in zip(module.bins, module.branches, strict=True):
        level = branch(functional.adaptive_avg_pool2d(x, size))
        maps.append(functional.interpolate(level, x.shape[2:], mode="bilinear", align_corners=module.align_corners))
    y = torch.cat([x, *maps] if module.x_first else [*maps, x], 1)
    return module.bottleneck(y) if isinstance(module, sod_ops.nn.PyramidPoolingHead) else y


def results(module: nn.Module, function: Any, x: Tensor) -> list[Tensor]:
    """The output, the gradients of x and of all parameters, and the buffers after it."""
    x = x.detach().requires_grad_()
    y = function(x)
    gradients = torch.autograd.grad(y.square().sum(), [x, *module.parameters()])
    return [y.detach(), *gradients, *(b.clone() for b in module.buffers())]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("head", [False, True], ids=["module", "head"])
def test_same_as_plain_layers(head: bool, training: bool, options: dict[str, Any], layout: str) -> None:
    module = make(head, options).to(memory_format=LAYOUTS[layout]).train(training)
    other = copy.deepcopy(module)
    x = torch.randn(3, 8, *SIZE, dtype=torch.float64).contiguous(memory_format=LAYOUTS[layout])
    found = results(module, module, x)
    expected = results(other, lambda given: plain(other, given), x)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    # The module's is that of x, the head's that of its last layer.
    layout_of = expected[0] if head else x
    assert found[0].is_contiguous(memory_format=LAYOUTS[layout]) == layout_of.is_contiguous(
        memory_format=LAYOUTS[layout]
    )


@pytest.mark.parametrize("head", [False, True], ids=["module", "head"])
def test_state_dict_is_that_of_ordinary_layers(head: bool) -> None:
    module, other = make(head, {}), make(head, {})
    keys = list(module.state_dict())
    assert keys[:2] == ["branches.0.0.weight", "branches.0.1.weight"]
    assert ("bottleneck.0.weight" in keys) == head
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()
    module.load_state_dict(other.state_dict())
    x = torch.randn(2, 8, *SIZE, dtype=torch.float64)
    assert torch.equal(module(x), other(x))


@pytest.mark.parametrize("head", [False, True], ids=["module", "head"])
def test_batch_norm_over_one_value_raises_as_in_pytorch(head: bool) -> None:
    module = make(head, {})
    x = torch.randn(1, 8, *SIZE, dtype=torch.float64)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        module(x)
    assert module.eval()(x).shape[0] == 1


@pytest.mark.parametrize("head", [False, True], ids=["module", "head"])
def test_autocast_and_compile(head: bool) -> None:
    module = make(head, {}, torch.float32).eval()
    x = torch.randn(2, 8, *SIZE)
    expected = module(x)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = module(x)
    torch.testing.assert_close(half.float(), expected, rtol=0, atol=0.05 * expected.abs().max().item())


def test_channels_are_divided_among_the_levels() -> None:
    """As in the paper: 1, 2, 3 and 6 bins, a quarter of the channels each, so that they double."""
    module = sod_ops.nn.PyramidPooling(16)
    assert [branch[0].out_channels for branch in module.branches] == [4, 4, 4, 4]
    assert module(torch.randn(2, 16, 6, 6)).shape == (2, 32, 6, 6)
    assert "bins=(1, 2, 3, 6), align_corners=False, x_first=True" in repr(module)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"in_channels": 0}, ValueError, "in_channels must be at least 1, got 0"),
        ({"in_channels": 3.0}, TypeError, "in_channels must be an integer, got 3.0"),
        ({"in_channels": 3}, ValueError, "in_channels must be at least 4, one per bin, got 3"),
        ({"channels": 0}, ValueError, "channels must be at least 1, got 0"),
        ({"bins": ()}, ValueError, "bins must be"),
        ({"bins": (1, 0)}, ValueError, "bins"),
        ({"bins": 3}, TypeError, "bins"),
        ({"norm": nn.BatchNorm2d(4)}, TypeError, "norm must be a class or function"),
        ({"activation": "relu"}, TypeError, "activation must be a class or function"),
        ({"align_corners": 1}, TypeError, "align_corners must be"),
        ({"x_first": None}, TypeError, "x_first must be"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"PyramidPooling: .*{message}"):
        sod_ops.nn.PyramidPooling(**{"in_channels": 8, **arguments})

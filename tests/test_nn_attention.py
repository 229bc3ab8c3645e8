"""nn.CBAM, nn.SCSE, nn.ChannelAttention and nn.SpatialAttention against their formulas in plain PyTorch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import Backend
from torch import Tensor, nn
from torch.nn import functional as F

import sod_ops


def cbam(m: Any, x: Tensor) -> Tensor:
    def mlp(v: Tensor) -> Tensor:
        return F.conv2d(F.relu(F.conv2d(v, m.reduce.weight, m.reduce.bias)), m.expand.weight, m.expand.bias)

    y = x * torch.sigmoid(mlp(F.adaptive_avg_pool2d(x, 1)) + mlp(F.adaptive_max_pool2d(x, 1)))
    pooled = torch.cat([y.max(1, keepdim=True).values, y.mean(1, keepdim=True)], 1)
    return y * torch.sigmoid(m.norm(F.conv2d(pooled, m.spatial.weight, padding=m.spatial.weight.shape[2] // 2)))


def scse(m: Any, x: Tensor) -> Tensor:
    return x * m.cSE(x) + x * m.sSE(x)


def channel_attention(m: Any, x: Tensor) -> Tensor:
    hidden = torch.relu(m.reduce(x.mean((2, 3), keepdim=True)))
    return x * torch.sigmoid(m.expand(hidden))


def spatial_attention(m: Any, x: Tensor) -> Tensor:
    def unit(layers: Any, i: int, v: Tensor) -> Tensor:
        convolution = layers[i]
        assert convolution.weight.shape[2:] in ((1, 9), (9, 1))
        y = F.conv2d(
            v, convolution.weight, convolution.bias, padding=tuple(s // 2 for s in convolution.weight.shape[2:])
        )
        return torch.relu(layers[i + 1](y))

    rows = unit(m.rows_first, 3, unit(m.rows_first, 0, x))
    columns = unit(m.columns_first, 3, unit(m.columns_first, 0, x))
    return x * torch.sigmoid(rows + columns)


MODULES: list[tuple[type[nn.Module], Callable[[Any, Tensor], Tensor]]] = [
    (sod_ops.nn.CBAM, cbam),
    (sod_ops.nn.SCSE, scse),
    (sod_ops.nn.ChannelAttention, channel_attention),
    (sod_ops.nn.SpatialAttention, spatial_attention),
]
every_module = pytest.mark.parametrize(("kind", "formula"), MODULES, ids=[kind.__name__ for kind, _ in MODULES])


@every_module
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_same_as_the_formula(
    backend: Backend, kind: Any, formula: Callable[..., Tensor], training: bool, memory_format: torch.memory_format
) -> None:
    """Output and every gradient."""
    module = kind(8, dtype=torch.float64, device=backend.device).train(training)
    x = torch.randn(2, 8, 6, 5, dtype=torch.float64, device=backend.device).contiguous(memory_format=memory_format)
    leaves = [x.requires_grad_(), *module.parameters()]
    y, expected = module(x), formula(module, x)
    torch.testing.assert_close(y, expected)
    assert y.is_contiguous(memory_format=memory_format)
    for a, e in zip(
        torch.autograd.grad(y.square().sum(), leaves),
        torch.autograd.grad(expected.square().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, e)


@every_module
def test_compile_and_export(kind: Any, formula: Callable[..., Tensor]) -> None:
    torch._dynamo.reset()
    module, x = kind(8).eval(), torch.randn(2, 8, 5, 4)
    torch.testing.assert_close(torch.compile(module, fullgraph=True, backend="aot_eager")(x), formula(module, x))
    torch.testing.assert_close(torch.export.export(module, (x,)).module()(x), formula(module, x))


@every_module
def test_device_and_dtype(kind: Any, formula: Callable[..., Tensor]) -> None:
    module = kind(8, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in module.parameters()} == {("meta", torch.bfloat16)}


def test_state_dicts() -> None:
    names = {kind: list(dict(kind(8).named_parameters())) for kind, _ in MODULES}
    assert names[sod_ops.nn.CBAM] == [
        *("reduce.weight", "reduce.bias", "expand.weight", "expand.bias"),
        *("spatial.weight", "norm.weight", "norm.bias"),
    ]
    assert names[sod_ops.nn.SCSE] == [f"{n}.{p}" for n in ("cSE.1", "cSE.3", "sSE.0") for p in ("weight", "bias")]
    assert names[sod_ops.nn.ChannelAttention] == [f"{n}.{p}" for n in ("reduce", "expand") for p in ("weight", "bias")]
    assert names[sod_ops.nn.SpatialAttention] == [
        f"{n}.{i}.{p}" for n in ("rows_first", "columns_first") for i in (0, 1, 3, 4) for p in ("weight", "bias")
    ]
    assert sod_ops.nn.ChannelAttention(8).reduce.out_channels == 2
    assert sod_ops.nn.CBAM(8).reduce.out_channels == 1  # 8 // 16, and at least 1


@every_module
def test_bad_arguments(kind: Any, formula: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match=f"{kind.__name__}: channels must be at least 1, got 0"):
        kind(0)
    with pytest.raises(TypeError, match=rf"{kind.__name__}: channels must be an integer, got 2.0 \(float\)"):
        kind(2.0)
    with pytest.raises(ValueError, match=f"{kind.__name__}: (reduction|kernel_size) must be"):
        kind(8, 0)
    if kind in (sod_ops.nn.CBAM, sod_ops.nn.SpatialAttention):
        with pytest.raises(ValueError, match=f"{kind.__name__}: kernel_size must be odd and above 0, got 4"):
            kind(8, kernel_size=4)

"""scse on every backend, against its reference in float64: a composite, whose parts have tests of their own."""

from typing import Any

import map_contract
import pytest
import torch
from cases import FLOATING, MapCase
from conftest import Backend
from torch import Tensor

import sod_ops

WITHOUT_KERNELS = ("cuda",)

LAYOUTS = ("contiguous", "channels_last")
SMALL = MapCase((2, 6, 5, 4))
OP = sod_ops.scse


def make(case: MapCase, dtype: torch.dtype = torch.float32, device: str = "cpu", *, bias: bool = True) -> list[Any]:
    """x and the parameters, with biases of 0 where there shall be none."""
    channels, reduced = case.shape[1], 3
    shapes: list[tuple[int, ...]] = [(reduced, channels, 1, 1), (reduced,), (channels, reduced, 1, 1), (channels,)]
    shapes += [(1, channels, 1, 1), (1,)]
    scale = 1.0 if bias else 0.0
    return [case.build(dtype, device)] + [
        ((scale if len(s) == 1 else 0.5) * torch.randn(s, dtype=torch.float64)).to(dtype).to(device) for s in shapes
    ]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", [*LAYOUTS, "channel_slice"])
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_layouts_and_dtypes(backend: Backend, dtype: torch.dtype, layout: str, bias: bool) -> None:
    inputs = make(MapCase((2, 6, 5, 4), layout), dtype, backend.device, bias=bias)
    if dtype in (torch.float32, torch.float64):
        map_contract.check_numbers(backend, OP, inputs, terms=8.0)
        return
    # In two bytes PyTorch's convolutions round what stands between the parts, here as there.
    grads = map_contract.make_grads(OP, inputs)
    exact = map_contract.run("reference", OP, [t.double() for t in inputs], grads)
    for a, e in zip(map_contract.run(backend.name, OP, inputs, grads), exact, strict=True):
        error = (a.double() - e).abs().max()
        assert error <= 16 * torch.finfo(dtype).eps * e.abs().max().clamp(min=1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradcheck(backend: Backend, layout: str) -> None:
    inputs = make(MapCase((2, 3, 3, 2), layout), torch.float64, backend.device)
    inputs[0].copy_(torch.randperm(36).view(2, 3, 3, 2) / 36)
    map_contract.check_gradients(backend, OP, inputs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_format_is_kept(kernel_backend: Backend, layout: str) -> None:
    inputs = make(MapCase((2, 6, 5, 4), layout), device=kernel_backend.device)
    y = OP(*inputs)
    assert y.is_contiguous(memory_format=torch.channels_last) == (layout == "channels_last")


def test_func_grad(backend: Backend) -> None:
    x, *parameters = make(SMALL, torch.float64, backend.device)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(OP(leaf, *parameters).square().sum(), leaf)
    found = torch.func.grad(lambda x: OP(x, *parameters).square().sum())(x)
    torch.testing.assert_close(found, expected)


def test_autocast(backend: Backend) -> None:
    inputs = make(SMALL, device=backend.device)
    with torch.autocast(backend.device, dtype=torch.bfloat16):
        y = OP(*inputs)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, OP(*inputs), rtol=0.02, atol=0.05)  # logits of 8 bits


def test_compile(backend: Backend) -> None:
    map_contract.check_compile(backend, OP, make(SMALL, device=backend.device), ["gate"])


def test_export() -> None:
    map_contract.check_export(OP, make(SMALL))


def test_empty_batch(backend: Backend) -> None:
    inputs = make(SMALL, device=backend.device)
    assert OP(inputs[0][:0], *inputs[1:]).shape == (0, 6, 5, 4)


# ---- Bad input --------------------------------------------------------------------------------------------------------

GOOD = make(SMALL)
BAD: list[tuple[int, Any, type[Exception], str]] = [
    (0, GOOD[0][0], ValueError, r"x must be of shape \[N, C, H, W\], got"),
    (0, None, TypeError, "x must be a Tensor"),
    (1, GOOD[1][0], ValueError, r"reduce_weight must be of shape \[6, 6, 1, 1\], got \[6, 1, 1\]"),
    (1, GOOD[1][:, :2], ValueError, r"reduce_weight must be of shape \[3, 6, 1, 1\], got \[3, 2, 1, 1\]"),
    (2, GOOD[2][:1], ValueError, r"reduce_bias must be of shape \[3\], got \[1\]"),
    (3, None, TypeError, "expand_weight must be a Tensor"),
    (4, GOOD[4].double(), TypeError, "expand_bias must be torch.float32 as x is, got torch.float64"),
    (5, GOOD[3], ValueError, r"spatial_weight must be of shape \[1, 6, 1, 1\]"),
    (6, 1.0, TypeError, "spatial_bias must be a Tensor or None, got float"),
]


@pytest.mark.parametrize(("index", "value", "error", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_input_is_named(backend: Backend, index: int, value: Any, error: type[Exception], message: str) -> None:
    arguments: list[Any] = list(GOOD)
    arguments[index] = value
    arguments = [a.to(backend.device) if isinstance(a, Tensor) else a for a in arguments]
    with pytest.raises(error, match=f"scse: {message}"):
        OP(*arguments)


def test_biases_may_be_missing(backend: Backend) -> None:
    x, w1, b1, w2, b2, w, b = make(SMALL, torch.float64, backend.device, bias=False)
    torch.testing.assert_close(OP(x, w1, None, w2, None, w, None), OP(x, w1, b1, w2, b2, w, b))

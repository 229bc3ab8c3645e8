"""scse on every backend, against its reference in float64 and against the contract of an op."""

from typing import Any

import map_contract
import pytest
import torch
from cases import FLOATING, MAPS, MapCase
from conftest import Backend
from tolerances import assert_accurate
from torch import Tensor

import sod_ops
from sod_ops.reference import scse as reference

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


# The public function copies the others.
@pytest.mark.parametrize(
    "case", [c for c in MAPS if c.layout not in ("crop", "transposed") and 0 not in c.shape], ids=str
)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_squeeze_of_any_shape(kernel_backend: Backend, case: MapCase, dtype: torch.dtype) -> None:
    """The operator below: what the gates are computed from, and its gradients with that of x passed on."""
    if kernel_backend.interpreted:
        samples, channels, height, width = case.shape
        case = MapCase((min(samples, 2), min(channels, 40), min(height, 8), min(width, 9)), case.layout)
    check_squeeze(kernel_backend, case, dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 40, 70, 71), (1, 5000, 3, 3), (3, 1, 1, 1)], ids=str)
def test_more_than_one_tile(kernel_backend: Backend, shape: tuple[int, int, int, int], layout: str) -> None:
    if kernel_backend.interpreted:
        shape = (shape[0], min(shape[1], 200), min(shape[2], 9), min(shape[3], 9))
    check_squeeze(kernel_backend, MapCase(shape, layout), torch.float32)


def check_squeeze(backend: Backend, case: MapCase, dtype: torch.dtype) -> None:
    namespace = torch.ops.sod_ops_triton if backend.name == "triton" else torch.ops.sod_ops
    x = case.build(dtype, backend.device)
    weight = torch.randn(1, x.shape[1], 1, 1, dtype=torch.float64).to(x)
    other = torch.randn(x.shape, dtype=torch.float64).to(x)
    if sod_ops.ops._maps.lies_in_planes(x):
        other = torch.cat([other, other], 1)[:, x.shape[1] :]
    else:
        other = other.contiguous(memory_format=torch.channels_last)
    results = namespace.scse(x, weight)
    grads = [torch.randn(y.shape, dtype=torch.float64).to(y) for y in results]
    actual = (*results, *namespace.scse_backward(*grads, x, weight, other))

    def expected(dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [t.detach().to(dtype).requires_grad_() for t in (x, weight)]
        results = reference.squeeze(*leaves)
        grad_x, grad_weight = torch.autograd.grad(
            results, leaves, [g.to(y.dtype) for g, y in zip(grads, results, strict=True)]
        )
        return *(y.detach() for y in results), grad_x + other.to(dtype), grad_weight

    names = ("means", "projection", "x", "spatial_weight")
    for name, a, plain, exact in zip(names, actual, expected(dtype), expected(torch.float64), strict=True):
        assert_accurate(a, plain, exact, name, terms=8.0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_x_alone_or_a_gate_alone_gets_a_gradient(kernel_backend: Backend, layout: str) -> None:
    inputs = make(SMALL._replace(layout=layout), torch.float64, kernel_backend.device)
    map_contract.check_gradients_only_where_wanted(kernel_backend, OP, inputs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_operators_pass_opcheck(kernel_backend: Backend, layout: str) -> None:
    namespace = torch.ops.sod_ops_triton if kernel_backend.name == "triton" else torch.ops.sod_ops
    x = SMALL._replace(layout=layout).build(torch.float64, kernel_backend.device).requires_grad_()
    weight = torch.randn(1, 6, 1, 1, dtype=torch.float64, device=kernel_backend.device, requires_grad=True)
    torch.library.opcheck(namespace.scse.default, (x, weight))
    grads = [torch.randn_like(y) for y in namespace.scse(x.detach(), weight.detach())]
    for other in (None, x.detach()):
        torch.library.opcheck(namespace.scse_backward.default, (*grads, x.detach(), weight.detach(), other))


def test_deterministic(kernel_backend: Backend) -> None:
    """Whatever the number of threads: the operator alone, as PyTorch's convolutions between the parts sum by threads."""
    inputs = make(MapCase((2, 24, 12, 12)), device=kernel_backend.device)
    map_contract.check_deterministic(kernel_backend, OP, inputs, threads=False)
    namespace = torch.ops.sod_ops_triton if kernel_backend.name == "triton" else torch.ops.sod_ops
    squeeze = [inputs[0], inputs[5]]
    map_contract.check_deterministic(kernel_backend, namespace.scse, squeeze)


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
    map_contract.check_compile(backend, OP, make(SMALL, device=backend.device), ["gate", "scse"])


def test_export() -> None:
    map_contract.check_export(OP, make(SMALL))


def test_empty_batch(backend: Backend) -> None:
    inputs = make(SMALL, device=backend.device)
    leaves = map_contract.leaves_of([inputs[0][:0], *inputs[1:]])
    y = OP(*leaves)
    assert y.shape == (0, 6, 5, 4)
    gradients = torch.autograd.grad(y.sum(), leaves)
    assert all(torch.equal(g, torch.zeros_like(t)) for g, t in zip(gradients, leaves, strict=True))


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


def test_operators_refuse_what_would_read_out_of_bounds() -> None:
    """The operators below the public function guard themselves too."""
    operators = torch.ops.sod_ops
    x, weight = torch.zeros(2, 3, 4, 5), torch.zeros(1, 3, 1, 1)
    for arguments in ((x[0], weight), (x[:, :, ::2, ::2], weight), (x.int(), weight.int()), (x[:, :0], weight[:, :0]),
                      (x, weight[:, :2]), (x, weight.double())):  # fmt: skip
        with pytest.raises(RuntimeError, match="scse"):
            operators.scse(*arguments)
    means, projection = operators.scse(x, weight)
    for arguments in ((means[:1], projection, x, weight), (means, projection.double(), x, weight),
                      (means, projection[..., :2], x, weight), (means, projection, x, weight, x[:1]),
                      (means, projection, x, weight, x.double())):  # fmt: skip
        with pytest.raises(RuntimeError, match="scse"):
            operators.scse_backward(*arguments)

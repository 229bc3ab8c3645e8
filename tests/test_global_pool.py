"""global_pool on every backend, against its reference in float64 and against the contract of an op."""

from typing import Any

import map_contract
import pytest
import torch
from cases import FLOATING, MAPS, MapCase
from conftest import Backend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import sod_ops
from sod_ops.ops.global_pool import global_pool_and_pass_on
from sod_ops.reference import global_pool as reference

# Triton serves GPUs; a CUDA C++ kernel comes where it measurably beats Triton's.
WITHOUT_KERNELS = ("cuda",)

LAYOUTS = ("contiguous", "channels_last")
SMALL = MapCase((2, 3, 4, 3))
OP = sod_ops.global_pool


def distinct(case: MapCase, device: str) -> Tensor:
    """Values in float64 of which no two are near each other, as finite differences of a maximum need them."""
    x = case.build(torch.float64, device)
    return x.copy_(torch.randperm(x.numel()).view(x.shape) / x.numel())


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("case", MAPS, ids=str)
def test_shapes_layouts_and_dtypes(backend: Backend, case: MapCase, dtype: torch.dtype) -> None:
    if backend.interpreted:
        samples, channels, height, width = case.shape
        case = MapCase((min(samples, 2), min(channels, 40), min(height, 8), min(width, 9)), case.layout)
    map_contract.check_numbers(backend, OP, [case.build(dtype, backend.device)])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(1, 3, 400, 401), (2, 70, 40, 41), (1, 40, 1, 300)], ids=str)
def test_more_than_one_block(backend: Backend, shape: tuple[int, int, int, int], layout: str) -> None:
    """Pixels beyond one part, one chunk and one tile."""
    if backend.interpreted:
        shape = (1, *(min(size, most) for size, most in zip(shape[1:], (70, 20, 130), strict=True)))
    map_contract.check_numbers(backend, OP, [MapCase(shape, layout).build(torch.float32, backend.device)])


@pytest.mark.parametrize(
    "strides", [(100, 1, 5, 1), (7, 20, 5, 1), (3, 1, 35, 7), (0, 0, 5, 1), (20, 60, 5, 1), (1, 20, 5, 1)], ids=str
)
def test_unusual_strides(backend: Backend, strides: tuple[int, int, int, int]) -> None:
    """Maps that overlap, repeat, or have samples inside channels."""
    storage = torch.randn(500, device=backend.device)
    map_contract.check_numbers(backend, OP, [storage.as_strided((3, 7, 4, 5), strides)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_first_of_equal_maxima_gets_the_gradient(backend: Backend, layout: str, dtype: torch.dtype) -> None:
    """As torch.max with a dimension has it: few values, so that maxima are shared; -inf everywhere; NaN twice."""
    x = MapCase((2, 37, 6, 5), layout).build(dtype, backend.device)
    x.copy_(x.round())
    x[0, :, 1, 1] = float("-inf")
    x[0, 4] = float("-inf")
    x[1, 3:5] = float("nan")
    x[1, 7, 2] = float("inf")
    x[1, 9, 4, 2:4] = float("nan")
    leaf = x.clone().requires_grad_()
    maximum = OP(leaf)[1]
    values, places = x.flatten(2).max(2)
    maximum = maximum.flatten(1)
    torch.testing.assert_close(maximum, values, rtol=0, atol=0, equal_nan=True)
    incoming = torch.arange(1.0, values.numel() + 1, device=x.device).view(values.shape).to(dtype)
    (gradient,) = torch.autograd.grad(maximum, leaf, incoming)
    expected = torch.zeros_like(x.flatten(2)).scatter_(2, places[..., None], incoming[..., None])
    assert torch.equal(gradient, expected.view(x.shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), "max"])
def test_extreme_values(backend: Backend, value: Any, layout: str, dtype: torch.dtype) -> None:
    """Infinities and NaN stay where they belong; sums of the largest numbers don't overflow in float16."""
    x = MapCase((2, 5, 4, 6), layout).build(dtype, backend.device)
    if value == "max":
        x.fill_(torch.finfo(dtype).max if dtype == torch.float16 else 1e30)
    else:
        x[1, 2, 3, 4] = value
    exact = map_contract.as_tuple(reference.global_pool(x.double()))
    for actual, e in zip(map_contract.as_tuple(OP(x)), exact, strict=True):
        torch.testing.assert_close(actual, e.to(dtype), equal_nan=True, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 0, 3, 3)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_empty(backend: Backend, shape: tuple[int, int, int, int], layout: str) -> None:
    x = MapCase(shape, layout).build(torch.float32, backend.device).requires_grad_()
    results = map_contract.as_tuple(OP(x))
    for actual, e in zip(results, map_contract.as_tuple(reference.global_pool(x)), strict=True):
        assert actual.shape == e.shape
    (gradient,) = torch.autograd.grad(results, x, [torch.ones_like(y) for y in results])
    assert gradient.shape == x.shape


@pytest.mark.parametrize("layout", [*LAYOUTS, "channel_slice", "crop"])
def test_gradcheck(backend: Backend, layout: str) -> None:
    map_contract.check_gradients(backend, OP, [distinct(MapCase((2, 3, 4, 3), layout), backend.device)])


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("of_other", ["contiguous", "channels_last", "slice"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_of_x_passed_on_is_added(backend: Backend, layout: str, of_other: str, dtype: torch.dtype) -> None:
    map_contract.check_gradient_of_passed_on(backend, global_pool_and_pass_on, layout, of_other, dtype)


def test_x_passed_on_needs_no_gradient_from_each(backend: Backend) -> None:
    map_contract.check_passed_on_needs_no_gradient_from_each(backend, global_pool_and_pass_on)
    with pytest.raises(ValueError, match="global_pool: x"):
        global_pool_and_pass_on(X[0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_incoming_gradients_of_any_layout(backend: Backend, layout: str) -> None:
    x = MapCase((2, 6, 4, 3), layout).build(torch.float32, backend.device)
    map_contract.check_incoming_gradients(backend, OP, [x])


@pytest.mark.parametrize("case", [c for c in MAPS if not c.large], ids=str)
def test_memory_format_is_kept(kernel_backend: Backend, case: MapCase) -> None:
    x = case.build(torch.float32, kernel_backend.device).requires_grad_()
    results = map_contract.as_tuple(OP(x))
    (gradient,) = torch.autograd.grad(results, x, [torch.ones_like(y) for y in results])
    channels_last = case.layout.startswith("channels_last") and x.shape[1] > 1 and x.shape[2] * x.shape[3] > 1
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    for tensor in (*results, gradient):
        assert tensor.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("layout", ["channel_slice", "sample_slice", "channels_last_slice", "expanded"])
def test_slices_are_read_in_place(kernel_backend: Backend, layout: str) -> None:
    """No copy of x."""
    x = MapCase((2, 24, 12, 12), layout).build(torch.float32, kernel_backend.device)
    assert 0 < map_contract.allocated_bytes(kernel_backend, OP, [x]) < x.numel() * x.element_size() / 2


@pytest.mark.parametrize("case", [MAPS[0], MAPS[7], *(c for c in MAPS if c.large)], ids=str)
def test_deterministic(kernel_backend: Backend, case: MapCase) -> None:
    if kernel_backend.interpreted:
        case = MapCase((1, 5, 3, 4), case.layout)
    map_contract.check_deterministic(kernel_backend, OP, [case.build(torch.float32, kernel_backend.device)])


def test_func_transforms(backend: Backend) -> None:
    map_contract.check_func_transforms(OP, [distinct(MapCase((3, 2, 5, 4)), backend.device)])


@pytest.mark.parametrize("layout", [*LAYOUTS, "channel_slice"])
def test_operators_pass_opcheck(kernel_backend: Backend, layout: str) -> None:
    kernels = sod_ops.ops.global_pool._select(kernel_backend.device)
    x = MapCase((2, 3, 4, 5), layout).build(torch.float32, kernel_backend.device)
    torch.library.opcheck(kernels.forward, (x.requires_grad_(),))
    *results, indices = (t.detach() for t in kernels.forward(x))
    torch.library.opcheck(kernels.backward, (*results, indices, 4, 5, layout == "channels_last"))


def test_operators_called_directly_have_gradients(kernel_backend: Backend) -> None:
    kernels = sod_ops.ops.global_pool._select(kernel_backend.device)
    x = SMALL.build(torch.float32, kernel_backend.device)
    grads = map_contract.make_grads(OP, [x])
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(kernels.forward(leaf)[:-1], leaf, grads)
    torch.testing.assert_close(gradient, map_contract.run(kernel_backend.name, OP, [x], grads)[-1], rtol=0, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_compile(backend: Backend, layout: str) -> None:
    x = MapCase((1, 3, 4, 3), layout).build(torch.float32, backend.device)
    found = map_contract.check_compile(backend, OP, [x], ["global_pool"])
    if backend.name != "reference":
        assert found[-1].is_contiguous(memory_format=torch.channels_last) == (layout == "channels_last")


def test_compile_with_inductor_and_any_size() -> None:
    sizes = [[torch.linspace(-2, 2, 2 * 3 * size * 7).view(2, 3, size, 7)] for size in (8, 13)]
    map_contract.check_inductor_and_any_size(OP, *sizes)


def test_export() -> None:
    map_contract.check_export(OP, [torch.randn(2, 3, 9, 8)])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40)),
    layout=st.sampled_from([*LAYOUTS, "channel_slice", "channels_last_slice", "sample_slice"]),
    dtype=st.sampled_from(FLOATING),
)
def test_any_shape(shape: tuple[int, int, int, int], layout: str, dtype: torch.dtype) -> None:
    # The size of such a mean. One map's may be far smaller, and chance decides what is left of the rounding of its terms.
    terms = (shape[2] * shape[3]) ** -0.5
    map_contract.check_numbers(Backend("cpu", "cpu"), OP, [MapCase(shape, layout).build(dtype)], terms)


# ---- Bad input --------------------------------------------------------------------------------------------------------

X = torch.zeros(2, 3, 4, 5)
BAD: list[tuple[Any, type[Exception], str]] = [
    (None, TypeError, "x must be a Tensor, got NoneType"),
    (X[0], ValueError, r"x must be of shape \[N, C, H, W\], got \[3, 4, 5\]"),
    (X.int(), TypeError, "x must be float32, .* got torch.int32"),
    (X.to_sparse(), TypeError, "x must be a dense tensor"),
    (X[:, :, :0], ValueError, r"x must be of shape .* with H and W at least 1, got \[2, 3, 0, 5\]"),
    (X[..., :0], ValueError, r"x must be of shape .* with H and W at least 1, got \[2, 3, 4, 0\]"),
]


@pytest.mark.parametrize(("x", "error", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_input_is_named(backend: Backend, x: Any, error: type[Exception], message: str) -> None:
    if isinstance(x, Tensor):
        x = x.to(backend.device)
    with pytest.raises(error, match=f"global_pool: {message}"):
        OP(x)


def test_operators_refuse_what_would_read_out_of_bounds() -> None:
    """The operators below the public function guard themselves too."""
    operators = torch.ops.sod_ops
    for x in (X[0], X[:, :, ::2, ::2], X.int(), X[:, :, :0]):
        with pytest.raises(RuntimeError, match="global_pool"):
            operators.global_pool(x)
    mean, maximum, indices = operators.global_pool(X)
    for arguments in (
        (mean[:1], maximum, indices, 4, 5, False),
        (mean, maximum.double(), indices, 4, 5, False),
        (mean, maximum, indices.int(), 4, 5, False),
        (mean, maximum, indices[:, :2], 4, 5, False),
        (mean, maximum, indices, 0, 5, False),
        (mean, maximum, indices, 4, 5, False, X[:1]),
        (mean, maximum, indices, 4, 5, False, X.double()),
    ):
        with pytest.raises(RuntimeError, match="global_pool"):
            operators.global_pool_backward(*arguments)

"""box_filter on every backend, against PyTorch's average pooling and against float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import EMPTY_MAPS, FLOATING, MAPS, MapCase
from conftest import Backend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tolerances import assert_accurate
from torch import Tensor

import sod_ops
from sod_ops.reference.box_filter import box_filter as reference

WITHOUT_KERNELS = ("cuda",)
INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
# Of the large maps, which plain PyTorch takes seconds for, those with few planes.
CASES = [case for case in MAPS if not case.large] + [
    MapCase((1, 1, 211, 197), large=True),
    MapCase((2, 3, 61, 67), "channels_last", large=True),
    MapCase((17, 1, 31, 31), large=True),
]
WINDOWS = (1, 3, 5, 15, 31, 63, 65, 301)


def run(backend: str, mask: Tensor, kernel_size: int, grad: Tensor) -> tuple[Tensor, Tensor | None]:
    """The averages and, of a floating mask, the gradient."""
    leaf = mask.detach().requires_grad_(mask.is_floating_point())
    with sod_ops.use_backend(backend):
        averages = sod_ops.box_filter(leaf, kernel_size)
        if not mask.is_floating_point():
            return averages, None
        return averages.detach(), torch.autograd.grad(averages, leaf, grad.to(averages.dtype))[0]


def check(backend: Backend, mask: Tensor, kernel_size: int) -> None:
    grad = torch.randn(mask.shape, dtype=torch.float64, device=mask.device)
    before = mask.detach().clone()
    if mask.is_floating_point():
        grad = grad.to(mask.dtype)
    actual = run(backend.name, mask, kernel_size, grad)
    plain = run("reference", mask, kernel_size, grad)
    exact = run("reference", mask.double(), kernel_size, grad.double())
    if not mask.is_floating_point():
        exact = exact[0], None
    for name, a, p, e in zip(("forward", "mask"), actual, plain, exact, strict=True):
        assert_accurate(a, p, e, name)
    assert torch.equal(mask.nan_to_num(), before.nan_to_num()), "the mask was changed"


def masks(case: MapCase, dtype: torch.dtype, device: str = "cpu") -> Tensor:
    """Not negative, as masks are: a sum that cancels would be as far off as its terms are large."""
    if case.layout == "expanded":
        return case.build(dtype, device)[:1].abs().expand(case.shape)
    return case.build(dtype, device).abs_()


# ---- What it computes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel_size", WINDOWS)
@pytest.mark.parametrize("shape", [(2, 1, 13, 17), (1, 1, 40, 29)], ids=str)
def test_reference_is_average_pooling(shape: tuple[int, ...], kernel_size: int) -> None:
    mask = torch.rand(shape, dtype=torch.float64)
    expected = F.avg_pool2d(mask, kernel_size, stride=1, padding=kernel_size // 2)
    torch.testing.assert_close(reference(mask, kernel_size), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_shapes_layouts_and_dtypes(backend: Backend, case: MapCase, dtype: torch.dtype) -> None:
    if case.large and backend.interpreted:
        case = case._replace(shape=(2, 2, 9, 13))
    check(backend, masks(case, dtype, backend.device), 3)


@pytest.mark.parametrize("kernel_size", WINDOWS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 1, 19), (1, 1, 33, 1), (1, 1, 35, 37), (3, 1, 5, 70)], ids=str)
def test_windows(backend: Backend, shape: tuple[int, ...], kernel_size: int) -> None:
    """Odd sizes, one pixel, windows longer than the image along one side or both."""
    check(backend, torch.rand(shape, device=backend.device), kernel_size)


@pytest.mark.parametrize("shape", [(7, 5), (4, 7, 5), (2, 3, 2, 7, 5), (1, 2, 3, 1, 7, 5)], ids=str)
def test_leading_dimensions(backend: Backend, shape: tuple[int, ...]) -> None:
    for mask in (torch.rand(shape, device=backend.device), torch.rand(shape[::-1], device=backend.device).permute(
        *reversed(range(len(shape)))
    )):  # fmt: skip
        check(backend, mask, 3)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_integers_give_float32(backend: Backend, dtype: torch.dtype) -> None:
    for layout in ("contiguous", "channel_slice", "crop"):
        mask = (MapCase((2, 3, 11, 9), layout).build(torch.float32).abs() * 40).nan_to_num().to(dtype)
        check(backend, mask.to(backend.device), 5)
    assert sod_ops.box_filter(mask.to(backend.device), 5).dtype == torch.float32


@pytest.mark.parametrize("case", EMPTY_MAPS, ids=str)
def test_empty(backend: Backend, case: MapCase) -> None:
    mask = case.build(torch.float32, backend.device).requires_grad_()
    averages = sod_ops.box_filter(mask, 31)
    assert averages.shape == mask.shape
    (found,) = torch.autograd.grad(averages.sum(), mask)
    assert found.shape == mask.shape


def test_constant_masks(backend: Backend) -> None:
    """A full mask is 1 inside, an empty one 0 everywhere; a corner's window holds a quarter and its edge."""
    full = torch.ones(1, 1, 21, 17, device=backend.device)
    averages = sod_ops.box_filter(full, 5)
    torch.testing.assert_close(averages[..., 2:-2, 2:-2], full[..., 2:-2, 2:-2])
    assert averages[0, 0, 0, 0].item() == pytest.approx(9 / 25)
    assert torch.equal(sod_ops.box_filter(full * 0, 5), full * 0)


@pytest.mark.parametrize("kernel_size", [3, 63, 301])
def test_does_not_drift(kernel_size: int) -> None:
    """2048 x 2048 in float32: an error below 1e-6 everywhere."""
    mask = torch.rand(1, 1, 2048, 2048)
    with sod_ops.use_backend("cpu"):
        actual, exact = sod_ops.box_filter(mask, kernel_size), sod_ops.box_filter(mask.double(), kernel_size)
    # The float64 sums are held to the reference where that is affordable.
    assert (actual - exact).abs().max() <= 1e-6
    rows = slice(900, 900 + 2 * kernel_size)
    expected = mask.double()[..., rows, :].unfold(2, kernel_size, 1).sum(-1)  # the windows' columns, added up
    expected = expected[..., kernel_size - 1 : -1].unfold(3, kernel_size, 1).sum(-1) / kernel_size**2
    half = kernel_size // 2
    inner = exact[..., 900 + half : 900 + half + expected.shape[2], half + kernel_size - 1 :][..., : expected.shape[3]]
    torch.testing.assert_close(inner, expected, rtol=1e-12, atol=0)


def test_infinities_and_nan_stay_in_their_windows(backend: Backend) -> None:
    mask = torch.rand(1, 1, 40, 37, device=backend.device)
    mask[0, 0, 11, 5] = float("nan")
    mask[0, 0, 30, 30] = float("inf")
    averages = sod_ops.box_filter(mask, 7)
    expected = reference(mask, 7)
    assert averages[0, 0, 8:15, 2:9].isnan().all()
    assert averages[0, 0, 27:34, 27:34].isinf().all()
    torch.testing.assert_close(averages, expected, equal_nan=True)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 50), st.integers(1, 50)),
    layout=st.sampled_from(
        ["contiguous", "channels_last", "channel_slice", "channels_last_slice", "crop", "transposed"]
    ),
    dtype=st.sampled_from([*FLOATING, *INTEGERS]),
    kernel_size=st.integers(0, 60).map(lambda half: 2 * half + 1),
)
def test_any_shape(shape: tuple[int, int, int, int], layout: str, dtype: torch.dtype, kernel_size: int) -> None:
    mask = masks(MapCase(shape, layout), torch.float32).to(dtype)
    if layout != "contiguous" and dtype in FLOATING:
        mask = masks(MapCase(shape, layout), dtype)
    check(Backend("cpu", "cpu"), mask, kernel_size)


# ---- Gradients, determinism, memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel_size", [1, 3, 9])
def test_gradcheck(backend: Backend, kernel_size: int) -> None:
    mask = torch.rand(2, 1, 4, 5, dtype=torch.float64, device=backend.device, requires_grad=True)

    def function(mask: Tensor) -> Tensor:
        return sod_ops.box_filter(mask, kernel_size)

    assert torch.autograd.gradcheck(function, mask, fast_mode=backend.interpreted)
    assert torch.autograd.gradgradcheck(function, mask, fast_mode=backend.interpreted)


def test_incoming_gradients_of_any_layout(backend: Backend) -> None:
    mask = torch.rand(2, 3, 7, 9, device=backend.device)
    dense = torch.randn(mask.shape, device=backend.device)
    expected = run(backend.name, mask, 5, dense)[1]
    for grad in (dense.contiguous(memory_format=torch.channels_last), torch.cat([dense, dense], 1)[:, :3]):
        torch.testing.assert_close(run(backend.name, mask, 5, grad)[1], expected)
    ones = torch.ones((), device=backend.device).expand(mask.shape)
    assert torch.equal(run(backend.name, mask, 5, ones)[1], run(backend.name, mask, 5, ones.clone())[1])


@pytest.mark.parametrize("case", [c for c in MAPS if not c.large], ids=str)
def test_memory_format_is_kept(kernel_backend: Backend, case: MapCase) -> None:
    mask = case.build(torch.float32, kernel_backend.device)
    assert sod_ops.box_filter(mask, 3).stride() == torch.empty_like(mask).stride()


def test_deterministic(backend: Backend) -> None:
    mask = torch.rand(2, 1, 37, 41, device=backend.device)
    torch.use_deterministic_algorithms(True)
    try:
        first = sod_ops.box_filter(mask, 15)
        for _ in range(1 if backend.interpreted else 5):
            assert torch.equal(sod_ops.box_filter(mask, 15), first)
    finally:
        torch.use_deterministic_algorithms(False)


def test_sums_do_not_depend_on_the_number_of_threads() -> None:
    threads = torch.get_num_threads()
    mask = torch.rand(1, 1, 401, 397)
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            with sod_ops.use_backend("cpu"):
                results.append(sod_ops.box_filter(mask, 31))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


# ---- PyTorch's other parts --------------------------------------------------------------------------------------------


def test_func_transforms(backend: Backend) -> None:
    masks = torch.rand(3, 1, 6, 5, dtype=torch.float64, device=backend.device)

    def total(mask: Tensor) -> Tensor:
        return sod_ops.box_filter(mask, 3).square().sum()

    leaf = masks.clone().requires_grad_()
    (expected,) = torch.autograd.grad(total(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(total)(masks), expected)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(total))(masks), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "crop"])
def test_operators_pass_opcheck(kernel_backend: Backend, layout: str, dtype: torch.dtype) -> None:
    kernels = sod_ops.ops.box_filter._select(kernel_backend.device)
    mask = MapCase((2, 3, 5, 4), layout).build(torch.float32, kernel_backend.device).to(dtype)
    torch.library.opcheck(kernels.forward, (mask.requires_grad_(dtype == torch.float32), 3))
    torch.library.opcheck(kernels.backward, (torch.rand(2, 3, 5, 4, device=kernel_backend.device), 3))


def test_operators_called_directly_have_gradients(kernel_backend: Backend) -> None:
    kernels = sod_ops.ops.box_filter._select(kernel_backend.device)
    mask = torch.rand(1, 1, 6, 5, device=kernel_backend.device)
    leaves = [mask.clone().requires_grad_() for _ in range(2)]
    for leaf, function in zip(leaves, (kernels.forward, sod_ops.box_filter), strict=True):
        function(leaf, 3).square().sum().backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)


def test_compile(backend: Backend) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(sod_ops.box_filter, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape, kernel_size in (((2, 1, 8, 8), 3), ((3, 2, 5, 7), 5)):
        leaves = [torch.rand(shape, device=backend.device) for _ in range(1)] * 2
        results = []
        for function, leaf in zip(
            (compiled, sod_ops.box_filter), (t.clone().requires_grad_() for t in leaves), strict=True
        ):
            averages = function(leaf, kernel_size)
            results.append((averages.detach(), *torch.autograd.grad(averages.square().sum(), leaf)))
        for a, e in zip(*results, strict=True):
            torch.testing.assert_close(a, e)


def test_export(backend: Backend) -> None:
    class Filter(torch.nn.Module):
        def forward(self, mask: Tensor) -> Tensor:
            return sod_ops.box_filter(mask, 3)

    mask = torch.rand(2, 1, 6, 5, device=backend.device)
    exported = torch.export.export(Filter(), (mask,))
    torch.testing.assert_close(exported.module()(mask), sod_ops.box_filter(mask, 3))


# ---- Bad input --------------------------------------------------------------------------------------------------------

BAD: list[tuple[Any, Any, type[Exception], str]] = [
    (None, 3, TypeError, "mask must be a Tensor, got NoneType"),
    (torch.zeros(4, 4, dtype=torch.complex64), 3, TypeError, "mask must be floating, bool, uint8 or a signed integer"),
    (torch.zeros(4, 4).to_sparse(), 3, TypeError, "mask must be a dense tensor"),
    (torch.zeros(4), 3, ValueError, r"mask must be of shape \[\.\.\., H, W\], got \[4\]"),
    (torch.zeros(4, 4), 4, ValueError, "kernel_size must be odd and above 0, got 4"),
    (torch.zeros(4, 4), -3, ValueError, "kernel_size must be odd and above 0, got -3"),
    (torch.zeros(4, 4), 0, ValueError, "kernel_size must be odd and above 0, got 0"),
    (torch.zeros(4, 4), 3.0, TypeError, r"kernel_size must be an integer, got 3.0 \(float\)"),
    (torch.zeros(4, 4), True, TypeError, r"kernel_size must be an integer, got True \(bool\)"),
    (torch.zeros(4, 4), (3, 3), TypeError, "kernel_size must be an integer"),
]


@pytest.mark.parametrize(("mask", "kernel_size", "error", "message"), BAD, ids=[m for *_, m in BAD])
def test_bad_input_is_named(
    backend: Backend, mask: Any, kernel_size: Any, error: type[Exception], message: str
) -> None:
    if isinstance(mask, Tensor):
        mask = mask.to(backend.device)
    with pytest.raises(error, match=f"box_filter: {message}"):
        sod_ops.box_filter(mask, kernel_size)


def test_operators_refuse_what_would_read_out_of_bounds() -> None:
    for mask, kernel_size in (
        (torch.zeros(4), 3),
        (torch.zeros(4, 4), 2),
        (torch.zeros(4, 4, dtype=torch.complex64), 3),
    ):
        for operator in (torch.ops.sod_ops.box_filter, torch.ops.sod_ops.box_filter_backward):
            with pytest.raises(RuntimeError, match="box_filter"):
                operator(mask, kernel_size)

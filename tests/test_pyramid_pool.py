"""pyramid_pool on every backend, against adaptive_avg_pool2d in float64 and against the contract of an op."""

from collections.abc import Sequence
from typing import Any

import map_contract
import pytest
import torch
import torch.nn.functional as F
from cases import FLOATING, MAPS, MapCase
from conftest import Backend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tolerances import assert_accurate
from torch import Tensor

import sod_ops
from sod_ops.ops.pyramid_pool import pool_and_pass_on
from sod_ops.reference import pyramid_pool as reference

# Triton serves GPUs; a CUDA C++ kernel comes where it measurably beats Triton's.
WITHOUT_KERNELS = ("cuda",)

BINS = (1, 2, 3, 6)
LAYOUTS = ("contiguous", "channels_last")
SMALL = MapCase((2, 3, 4, 3))


def run(backend: str, x: Tensor, grads: Sequence[Tensor], bins: Sequence[int]) -> list[Tensor]:
    """The levels and the gradient of x."""
    leaf = x.detach().requires_grad_()
    with sod_ops.use_backend(backend):
        levels = sod_ops.pyramid_pool(leaf, bins)
        (gradient,) = torch.autograd.grad(
            levels, leaf, [g.to(level.dtype) for g, level in zip(grads, levels, strict=True)]
        )
    return [*(level.detach() for level in levels), gradient]


def passed_on(x: Tensor) -> tuple[Tensor, ...]:
    again, levels = pool_and_pass_on(x, (1, 2))
    return again, *levels


def make_grads(x: Tensor, bins: Sequence[int]) -> list[Tensor]:
    return [torch.randn(*x.shape[:2], size, size, dtype=torch.float64).to(x) for size in bins]


def check(backend: Backend, x: Tensor, bins: Sequence[int] = BINS) -> None:
    """Holds the levels and the gradient to adaptive_avg_pool2d's in float64."""
    grads = make_grads(x, bins)
    before = x.clone()
    actual = run(backend.name, x, grads, bins)
    plain = run("reference", x, grads, bins)
    exact = run("reference", x.double(), grads, bins)
    for i, (a, p, e) in enumerate(zip(actual, plain, exact, strict=True)):
        assert_accurate(a, p, e, "forward" if i < len(bins) else "x")
    assert torch.equal(x, before), "x was changed"


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("case", MAPS, ids=str)
def test_shapes_layouts_and_dtypes(backend: Backend, case: MapCase, dtype: torch.dtype) -> None:
    if backend.interpreted:
        # One program for each bin and cell: few of them.
        samples, channels, height, width = case.shape
        case = MapCase((min(samples, 2), min(channels, 70), min(height, 5), min(width, 4)), case.layout)
        check(backend, case.build(dtype), (1, 2) if dtype == torch.float32 else (2,))
    else:
        check(backend, case.build(dtype, backend.device))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(7, 11), (4, 3), (13, 5), (12, 12), (1, 9)], ids=str)
@pytest.mark.parametrize("bins", [(1,), (5,), (3, 3), (6, 1, 2), (2, 4, 7, 8), (13,), (1, 2, 3, 4, 5, 9)], ids=str)
def test_bins(backend: Backend, bins: tuple[int, ...], shape: tuple[int, int], layout: str) -> None:
    """One bin, bins that overlap, as many as pixels, more than pixels, levels twice and out of order, more than four."""
    if backend.interpreted:
        shape, bins = (min(shape[0], 4), min(shape[1], 3)), tuple(min(size, 5) for size in bins)
    check(backend, MapCase((2, 3, *shape), layout).build(torch.float32, backend.device), bins)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bins_are_those_of_pytorch(backend: Backend, layout: str) -> None:
    """Powers of two add up exactly in float64: a pixel too many or too few would show."""
    x = MapCase((1, 1, 13, 17), layout).build(torch.float64, backend.device)
    x.copy_(2.0 ** torch.randint(-8, 8, x.shape))
    for size in (1, 5) if backend.interpreted else range(1, 20):
        (level,) = sod_ops.pyramid_pool(x, (size,))
        torch.testing.assert_close(level, F.adaptive_avg_pool2d(x, size), rtol=1e-15, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_longer_than_a_tile(backend: Backend, layout: str) -> None:
    """Triton walks rows of 32 pixels of 64 channels, or of 2048 of one; the CPU, of 1024 pixels of 16."""
    shape = (1, 64, 2, 70) if layout == "channels_last" else (1, 1, 3, 2100)
    check(backend, MapCase(shape, layout).build(torch.float32, backend.device), (1, 3))


@pytest.mark.parametrize(
    "strides", [(100, 1, 5, 1), (7, 20, 5, 1), (3, 1, 35, 7), (0, 0, 5, 1), (20, 60, 5, 1), (1, 20, 5, 1)], ids=str
)
def test_unusual_strides(backend: Backend, strides: tuple[int, int, int, int]) -> None:
    """Maps that overlap, repeat, or have samples inside channels."""
    storage = torch.randn(500, device=backend.device)
    check(backend, storage.as_strided((3, 7, 4, 5), strides))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), "max"])
def test_extreme_values(backend: Backend, value: Any, layout: str, dtype: torch.dtype) -> None:
    """Infinities and NaN stay in the bins that hold them; sums of the largest numbers don't overflow in float16."""
    x = MapCase((2, 5, 4, 6), layout).build(dtype, backend.device)
    bins = (1, 3)
    if value == "max":
        x[1, 2] = torch.finfo(dtype).max if dtype == torch.float16 else 1e30
    else:
        x[1, 2, 3, 4] = value
    for actual, exact in zip(sod_ops.pyramid_pool(x, bins), reference.pyramid_pool(x.double(), bins), strict=True):
        torch.testing.assert_close(actual, exact.to(dtype), equal_nan=True, rtol=2e-3, atol=2e-3)
    level = MapCase((2, 5, 3, 3), layout).build(dtype, backend.device)
    level[0, 1, 1, 1] = float("inf") if value == "max" else value
    gradient = run(backend.name, x, [level], (3,))[-1]
    expected = run("reference", x.double(), [level], (3,))[-1]
    torch.testing.assert_close(gradient, expected.to(dtype), equal_nan=True, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_empty_batch(backend: Backend, layout: str) -> None:
    x = MapCase((0, 4, 3, 5), layout).build(torch.float32, backend.device).requires_grad_()
    levels = sod_ops.pyramid_pool(x)
    assert [list(level.shape) for level in levels] == [[0, 4, size, size] for size in BINS]
    (gradient,) = torch.autograd.grad(levels, x, levels)
    assert gradient.shape == x.shape


@pytest.mark.parametrize("layout", [*LAYOUTS, "channel_slice"])
@pytest.mark.parametrize(("shape", "bins"), [((7, 5), (1, 2, 3)), ((2, 3), (1, 4)), ((1, 1), (1, 2))], ids=str)
def test_gradcheck(backend: Backend, shape: tuple[int, int], bins: tuple[int, ...], layout: str) -> None:
    if backend.interpreted:
        shape, bins = (min(shape[0], 3), min(shape[1], 2)), bins[:2]
    x = MapCase((1, 2, *shape), layout).build(torch.float64, backend.device).requires_grad_()

    def function(x: Tensor) -> tuple[Tensor, ...]:
        return sod_ops.pyramid_pool(x, bins)

    assert torch.autograd.gradcheck(function, x, fast_mode=backend.interpreted)
    assert torch.autograd.gradgradcheck(function, x, fast_mode=True)


def test_levels_that_are_not_used_need_no_gradient(backend: Backend) -> None:
    x = SMALL.build(torch.float32, backend.device)
    leaf = x.clone().requires_grad_()
    sod_ops.pyramid_pool(leaf)[2].sum().backward()
    zeros = [torch.zeros(*x.shape[:2], size, size, device=x.device) for size in BINS]
    zeros[2] += 1
    torch.testing.assert_close(leaf.grad, run(backend.name, x, zeros, BINS)[-1], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("of_other", ["contiguous", "channels_last", "slice"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_of_x_passed_on_is_added(backend: Backend, layout: str, of_other: str, dtype: torch.dtype) -> None:
    map_contract.check_gradient_of_passed_on(backend, passed_on, layout, of_other, dtype)


def test_x_passed_on_needs_no_gradient_from_each(backend: Backend) -> None:
    map_contract.check_passed_on_needs_no_gradient_from_each(backend, passed_on)
    with pytest.raises(ValueError, match="bins"):
        pool_and_pass_on(torch.randn(2, 3, 5, 7), (0,))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_incoming_gradients_of_any_layout(backend: Backend, layout: str) -> None:
    x = MapCase((2, 6, 4, 3), layout).build(torch.float32, backend.device)
    grads = make_grads(x, BINS)
    expected = run(backend.name, x, grads, BINS)[-1]
    tolerance = {} if backend.name == "reference" else {"rtol": 0, "atol": 0}
    for changed in (
        [g.contiguous(memory_format=torch.channels_last) for g in grads],
        [g.transpose(2, 3).contiguous().transpose(2, 3) for g in grads],
    ):
        torch.testing.assert_close(run(backend.name, x, changed, BINS)[-1], expected, **tolerance)
    ones = [torch.ones((), device=x.device).expand(g.shape) for g in grads]
    expected = run(backend.name, x, [g.contiguous() for g in ones], BINS)[-1]
    torch.testing.assert_close(run(backend.name, x, ones, BINS)[-1], expected, **tolerance)


def test_results_are_ordinary_tensors(kernel_backend: Backend) -> None:
    """Each has its own memory and may be changed in place, as an activation behind it does."""
    x = SMALL.build(torch.float32, kernel_backend.device).requires_grad_()
    levels = sod_ops.pyramid_pool(x)
    assert len({level.untyped_storage().data_ptr() for level in levels}) == len(BINS)
    assert not any(level._is_view() for level in levels)
    sum(F.relu(level, inplace=True).sum() for level in levels).backward()
    expected = x.detach().clone().requires_grad_()
    sum(F.relu(level).sum() for level in reference.pyramid_pool(expected)).backward()
    torch.testing.assert_close(x.grad, expected.grad)


@pytest.mark.parametrize("case", [c for c in MAPS if not c.large], ids=str)
def test_memory_format_is_kept(kernel_backend: Backend, case: MapCase) -> None:
    x = case.build(torch.float32, kernel_backend.device).requires_grad_()
    levels = sod_ops.pyramid_pool(x, (2, 3))
    (gradient,) = torch.autograd.grad(levels, x, levels)
    channels_last = case.layout.startswith("channels_last") and x.shape[1] > 1 and x.shape[2] * x.shape[3] > 1
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    for tensor in (*levels, gradient):
        assert tensor.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("layout", ["channel_slice", "sample_slice", "channels_last_slice", "expanded"])
def test_slices_are_read_in_place(kernel_backend: Backend, layout: str) -> None:
    """No copy of x."""
    size = 24 if kernel_backend.interpreted else 64
    x = MapCase((2, 6, size, size), layout).build(torch.float32, kernel_backend.device)
    bytes_of_x = x.numel() * x.element_size()
    with torch.profiler.profile(profile_memory=True) as profile:
        sod_ops.pyramid_pool(x, (1, 2))
    allocated = sum(
        max(0, e.self_device_memory_usage if kernel_backend.device == "cuda" else e.self_cpu_memory_usage)
        for e in profile.events()
    )
    assert 0 < allocated < bytes_of_x / 2


@pytest.mark.parametrize("case", [MAPS[0], MAPS[7], *(c for c in MAPS if c.large)], ids=str)
def test_deterministic(kernel_backend: Backend, case: MapCase) -> None:
    if kernel_backend.interpreted:
        case = MapCase((1, 5, 3, 4), case.layout)
    x = case.build(torch.float32, kernel_backend.device)
    grads = make_grads(x, BINS)
    torch.use_deterministic_algorithms(True)
    try:
        first = run(kernel_backend.name, x, grads, BINS)
        for _ in range(1 if kernel_backend.interpreted else 5):
            for a, b in zip(run(kernel_backend.name, x, grads, BINS), first, strict=True):
                assert torch.equal(a, b)
    finally:
        torch.use_deterministic_algorithms(False)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    threads = torch.get_num_threads()
    for case in MAPS:
        x = case.build(torch.float32)
        grads = make_grads(x, BINS)
        results = []
        try:
            for count in (1, 2, 3, 8):
                torch.set_num_threads(count)
                results.append(run("cpu", x, grads, BINS))
        finally:
            torch.set_num_threads(threads)
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                assert torch.equal(a, b), str(case)


def test_func_transforms(backend: Backend) -> None:
    x = MapCase((3, 2, 5, 4)).build(torch.float64, backend.device)

    def loss(x: Tensor) -> Tensor:
        return sum((level.square().sum() for level in sod_ops.pyramid_pool(x, (1, 3))), x.new_zeros(()))

    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(x), expected)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(lambda s: loss(s[None])))(x), expected)
    _, tangent = torch.func.jvp(loss, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, expected.sum())


@pytest.mark.parametrize("layout", [*LAYOUTS, "channel_slice"])
def test_operators_pass_opcheck(kernel_backend: Backend, layout: str) -> None:
    kernels = sod_ops.ops.pyramid_pool._select(kernel_backend.device)
    x = MapCase((2, 3, 4, 5), layout).build(torch.float32, kernel_backend.device)
    torch.library.opcheck(kernels.forward, (x.requires_grad_(), (1, 3)))
    levels = [level.detach() for level in kernels.forward(x, (1, 3))]
    for other in ((), (x.detach(),)):
        torch.library.opcheck(kernels.backward, (levels, (1, 3), 4, 5, layout == "channels_last", *other))


def test_operators_called_directly_have_gradients(kernel_backend: Backend) -> None:
    kernels = sod_ops.ops.pyramid_pool._select(kernel_backend.device)
    x = SMALL.build(torch.float32, kernel_backend.device)
    grads = make_grads(x, BINS)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(kernels.forward(leaf, BINS), leaf, grads)
    torch.testing.assert_close(gradient, run(kernel_backend.name, x, grads, BINS)[-1], rtol=0, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_compile(backend: Backend, layout: str) -> None:
    """One graph, with the fused operators of this backend in the forward and in the backward."""
    x = MapCase((1, 3, 4, 3), layout).build(torch.float32, backend.device)
    grads = make_grads(x, BINS)
    expected = run(backend.name, x, grads, BINS)
    operators: list[str] = []

    def collect(graph: torch.fx.GraphModule, _: Any) -> Any:
        operators.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    torch._dynamo.reset()
    from torch._dynamo.backends.common import aot_autograd

    compiled = torch.compile(
        sod_ops.pyramid_pool, fullgraph=True, backend=aot_autograd(fw_compiler=collect, bw_compiler=collect)
    )
    leaf = x.clone().requires_grad_()
    levels = compiled(leaf)
    (gradient,) = torch.autograd.grad(levels, leaf, grads)
    for a, e in zip((*levels, gradient), expected, strict=True):
        torch.testing.assert_close(a, e)
        assert a.is_contiguous(memory_format=torch.channels_last) or layout == "contiguous"
    namespace = {"cpu": "sod_ops.", "triton": "sod_ops_triton."}.get(backend.name)
    assert ([o for o in operators if o.startswith("sod_ops")] != []) == (namespace is not None)
    if namespace is not None:
        assert f"{namespace}pyramid_pool.default" in operators
        assert f"{namespace}pyramid_pool_backward.default" in operators


def test_compile_with_inductor_and_any_size() -> None:
    torch._dynamo.reset()

    def model(x: Tensor) -> Tensor:
        return sum(level.mul(2).sum() for level in sod_ops.pyramid_pool(torch.relu(x + 1)))

    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for size in (8, 13):
        leaves = [torch.linspace(-2, 2, 2 * 3 * size * 7).view(2, 3, size, 7).requires_grad_() for _ in range(2)]
        for function, leaf in zip((model, compiled), leaves, strict=True):
            function(leaf).backward()
        torch.testing.assert_close(leaves[0].grad, leaves[1].grad)


def test_export() -> None:
    class Pool(torch.nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return sod_ops.pyramid_pool(x, (1, 4))

    x = torch.randn(2, 3, 9, 8)
    program = torch.export.export(Pool(), (x,))
    for a, e in zip(program.module()(x), sod_ops.pyramid_pool(x, (1, 4)), strict=True):
        torch.testing.assert_close(a, e)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40)),
    bins=st.lists(st.integers(1, 45), min_size=1, max_size=5),
    layout=st.sampled_from([*LAYOUTS, "channel_slice", "channels_last_slice", "sample_slice"]),
    dtype=st.sampled_from(FLOATING),
)
def test_any_shape(shape: tuple[int, int, int, int], bins: list[int], layout: str, dtype: torch.dtype) -> None:
    check(Backend("cpu", "cpu"), MapCase(shape, layout).build(dtype), bins)


# ---- Bad input --------------------------------------------------------------------------------------------------------

X = torch.zeros(2, 3, 4, 5)
BAD: list[tuple[Any, Any, type[Exception], str]] = [
    (None, BINS, TypeError, "x must be a Tensor, got NoneType"),
    (X[0], BINS, ValueError, r"x must be of shape \[N, C, H, W\], got \[3, 4, 5\]"),
    (X.int(), BINS, TypeError, "x must be float32, .* got torch.int32"),
    (X.to_sparse(), BINS, TypeError, "x must be a dense tensor"),
    (X[:, :, :0], BINS, ValueError, r"x must be of shape .* at least 1, got \[2, 3, 0, 5\]"),
    (X[:, :0], BINS, ValueError, r"x must be of shape .* at least 1, got \[2, 0, 4, 5\]"),
    (X, (), ValueError, r"bins must be at least one integer, got \(\)"),
    (X, 6, TypeError, r"bins must be a sequence of integers, got 6 \(int\)"),
    (X, "12", TypeError, "bins must be a sequence of integers, got '12'"),
    (X, (1, 0), ValueError, r"bins must be integers of at least 1, got \(1, 0\)"),
    (X, (1, -2), ValueError, r"bins must be integers of at least 1, got \(1, -2\)"),
    (X, (1, 2.0), TypeError, r"bins must be integers, got 2.0 \(float\)"),
    (X, (1, True), TypeError, r"bins must be integers, got True \(bool\)"),
    (X, ((1, 2),), TypeError, r"bins must be integers, got \(1, 2\)"),
]


@pytest.mark.parametrize(("x", "bins", "error", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_input_is_named(backend: Backend, x: Any, bins: Any, error: type[Exception], message: str) -> None:
    if isinstance(x, Tensor):
        x = x.to(backend.device)
    with pytest.raises(error, match=f"pyramid_pool: {message}"):
        sod_ops.pyramid_pool(x, bins)


def test_operators_refuse_what_would_read_out_of_bounds() -> None:
    """The operators below the public function guard themselves too."""
    operators = torch.ops.sod_ops
    for x, bins in ((X[0], BINS), (X[:, :, ::2, ::2], BINS), (X.int(), BINS), (X, (0,)), (X, ()), (X[:, :0], BINS)):
        with pytest.raises(RuntimeError, match="pyramid_pool"):
            operators.pyramid_pool(x, bins)
    grads = operators.pyramid_pool(X, (1, 2))
    for arguments in (
        (grads, (1, 3), 4, 5, False),
        (grads[:1], (1, 2), 4, 5, False),
        (grads, (1, 2), 0, 5, False),
        (grads, (1, 2), 4, 5, True),
        ([grads[0], grads[1].double()], (1, 2), 4, 5, False),
        (grads, (1, 2), 4, 5, False, X.double()),
        (grads, (1, 2), 4, 5, False, X[:, :, 1:]),
        (grads, (1, 2), 4, 5, False, X.to(memory_format=torch.channels_last)),
    ):
        with pytest.raises(RuntimeError, match="pyramid_pool"):
            operators.pyramid_pool_backward(*arguments)

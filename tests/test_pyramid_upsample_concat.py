"""pyramid_upsample_concat on every backend, against interpolate and cat in float64 and against the contract of an op."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from cases import FLOATING, MAPS, MapCase
from conftest import Backend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tolerances import assert_accurate
from torch import Tensor

import sod_ops

# Triton serves GPUs; a CUDA C++ kernel comes where it measurably beats Triton's.
WITHOUT_KERNELS = ("cuda",)

LAYOUTS = ("contiguous", "channels_last")
# C, h, w: as a pyramid has them; larger than the map; the map's own size; a number of channels that fills no register.
BRANCHES = ((2, 1, 1), (3, 2, 2), (1, 3, 4), (17, 6, 6))


def make(
    case: MapCase, branches: Sequence[tuple[int, int, int]], dtype: torch.dtype, device: str
) -> tuple[Tensor, list[Tensor]]:
    layout = "channels_last" if case.layout.startswith("channels_last") else "contiguous"
    maps = [MapCase((case.shape[0], *shape), layout).build(dtype, device) for shape in branches]
    return case.build(dtype, device), maps


def run(backend: str, x: Tensor, branches: Sequence[Tensor], grad: Tensor, **options: bool) -> list[Tensor]:
    """The result and the gradients of x and the branches."""
    leaves = [t.detach().requires_grad_() for t in (x, *branches)]
    with sod_ops.use_backend(backend):
        y = sod_ops.pyramid_upsample_concat(leaves[0], leaves[1:], **options)
        return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(y.dtype))]


def check(backend: Backend, x: Tensor, branches: Sequence[Tensor], **options: bool) -> None:
    """Holds the result and all gradients to the reference's in float64."""
    channels = x.shape[1] + sum(b.shape[1] for b in branches)
    grad = torch.randn((x.shape[0], channels, *x.shape[2:]), dtype=torch.float64).to(x)
    before = [t.clone() for t in (x, *branches)]
    actual = run(backend.name, x, branches, grad, **options)
    plain = run("reference", x, branches, grad, **options)
    exact = run("reference", x.double(), [b.double() for b in branches], grad, **options)
    names = ["forward", "x", *(f"branches[{i}]" for i in range(len(branches)))]
    for name, a, p, e in zip(names, actual, plain, exact, strict=True):
        assert_accurate(a, p, e, name)
    for tensor, copy in zip((x, *branches), before, strict=True):
        assert torch.equal(tensor, copy), "an input was changed"


@pytest.mark.parametrize("case", MAPS, ids=str)
def test_shapes_layouts_and_dtypes(kernel_backend: Backend, case: MapCase) -> None:
    branches, dtypes = BRANCHES, FLOATING
    if kernel_backend.interpreted:  # slow: one dtype for each layout
        dtypes = FLOATING[MAPS.index(case) % 4 :][:1]
        samples, channels, height, width = case.shape
        case = MapCase((min(samples, 2), min(channels, 5), min(height, 4), min(width, 5)), case.layout)
        branches = ((3, 2, 2),)
    for dtype in dtypes:
        check(kernel_backend, *make(case, branches, dtype, kernel_backend.device))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("x_first", [True, False])
@pytest.mark.parametrize("align_corners", [True, False])
def test_sizes_and_options(kernel_backend: Backend, align_corners: bool, x_first: bool, layout: str) -> None:
    """Up, down and to the same size, either way of aligning, either order."""
    sizes = [(1, 1), (2, 3), (5, 7), (9, 11), (5, 1), (1, 13)]
    smaller = [(1, 1), (3, 2), (5, 7), (13, 10)]
    if kernel_backend.interpreted:
        sizes, smaller = [(1, 1), (3, 4)], [(2, 5)]
    for size in sizes:
        for branch in smaller:
            x, branches = make(MapCase((1, 3, *size), layout), [(2, *branch)], torch.float32, kernel_backend.device)
            check(kernel_backend, x, branches, align_corners=align_corners, x_first=x_first)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_pair_of_sizes_reads_pytorchs_neighbours(dtype: torch.dtype, align_corners: bool) -> None:
    """On the CPU: Triton's neighbours are those of pyramid_conv2d, whose test has this one for both."""
    for height, width in zip(range(1, 24), range(23, 0, -1), strict=True):
        x, branches = make(MapCase((1, 1, height, width)), [(1, n, n) for n in range(1, 24)], dtype, "cpu")
        grad = torch.randn(1, 24, height, width, dtype=dtype)
        actual = run("cpu", x, branches, grad, align_corners=align_corners)
        for a, e in zip(actual, run("reference", x, branches, grad, align_corners=align_corners), strict=True):
            torch.testing.assert_close(a, e)


def test_unusual_strides(kernel_backend: Backend) -> None:
    storage = torch.randn(500, device=kernel_backend.device)
    for strides in ((100, 1, 5, 1), (7, 20, 5, 1), (0, 0, 5, 1), (20, 60, 5, 1)):
        x = storage.as_strided((3, 7, 4, 5), strides)
        check(kernel_backend, x, [storage.as_strided((3, 2, 2, 3), (30, 1, 4, 3))])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_branches_of_the_other_layout(backend: Backend, layout: str) -> None:
    other = LAYOUTS[1 - LAYOUTS.index(layout)]
    x = MapCase((2, 3, 4, 5), layout).build(torch.float32, backend.device)
    check(backend, x, [MapCase((2, 4, 2, 3), other).build(torch.float32, backend.device)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [float("inf"), float("nan"), "max"])
def test_extreme_values(kernel_backend: Backend, value: Any, layout: str, dtype: torch.dtype) -> None:
    """What is not finite reaches the outputs that read it, and the inputs that they read; large numbers don't overflow."""
    x, (branch,) = make(MapCase((1, 2, 4, 5), layout), [(3, 2, 3)], dtype, kernel_backend.device)
    grad = torch.randn(1, 5, 4, 5, device=x.device).to(dtype)
    branch[0, 1, 1, 1] = x[0, 1, 2, 2] = torch.finfo(dtype).max / 2 if value == "max" else value
    grad[0, 3, 0, 4] = grad[0, 1, 2, 2] = torch.finfo(dtype).max / 4 if value == "max" else value
    expected = run("reference", x.double(), [branch.double()], grad)
    for a, e in zip(run(kernel_backend.name, x, [branch], grad), expected, strict=True):
        torch.testing.assert_close(a, e.to(dtype), equal_nan=True, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_empty_batch(backend: Backend, layout: str) -> None:
    x, branches = make(MapCase((0, 3, 4, 5), layout), [(2, 2, 2)], torch.float32, backend.device)
    y, *gradients = run(backend.name, x, branches, torch.zeros(0, 5, 4, 5, device=x.device))
    assert y.shape == (0, 5, 4, 5)
    assert [g.shape for g in gradients] == [x.shape, branches[0].shape]


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradcheck(backend: Backend, layout: str, align_corners: bool) -> None:
    branches = [(2, 1, 1), (1, 2, 3)] if backend.interpreted else [(2, 1, 1), (1, 2, 3), (1, 5, 4)]
    x, maps = make(MapCase((1, 2, 3, 4), layout), branches, torch.float64, backend.device)
    leaves = [t.requires_grad_() for t in (x, *maps)]

    def function(x: Tensor, *branches: Tensor) -> Tensor:
        return sod_ops.pyramid_upsample_concat(x, branches, align_corners=align_corners)

    assert torch.autograd.gradcheck(function, leaves, fast_mode=backend.interpreted)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


def test_gradients_only_where_wanted(backend: Backend) -> None:
    x, branches = make(MapCase((1, 2, 3, 4)), [(1, 1, 1), (2, 2, 2)], torch.float32, backend.device)
    grad = torch.randn(1, 5, 3, 4, device=x.device)
    full = run(backend.name, x, branches, grad)[1:]
    for i in range(3):
        leaves = [t.detach().requires_grad_(i == j) for j, t in enumerate((x, *branches))]
        sod_ops.pyramid_upsample_concat(leaves[0], leaves[1:]).backward(grad)
        for j, leaf in enumerate(leaves):
            assert (leaf.grad is not None) == (i == j)
        torch.testing.assert_close(leaves[i].grad, full[i], rtol=0, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_incoming_gradients_of_any_layout(backend: Backend, layout: str) -> None:
    x, branches = make(MapCase((2, 3, 3, 4), layout), [(2, 2, 2)], torch.float32, backend.device)
    dense = torch.randn(2, 5, 3, 4, device=x.device)
    expected = run(backend.name, x, branches, dense)
    for grad in (
        dense.contiguous(memory_format=torch.channels_last),
        dense.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        for a, e in zip(run(backend.name, x, branches, grad), expected, strict=True):
            torch.testing.assert_close(a, e, **({} if backend.name == "reference" else {"rtol": 0, "atol": 0}))


@pytest.mark.parametrize("layout", [*LAYOUTS, "channel_slice", "channels_last_slice"])
def test_memory_format_is_kept(kernel_backend: Backend, layout: str) -> None:
    x, branches = make(MapCase((2, 3, 4, 5), layout), [(2, 2, 3)], torch.float32, kernel_backend.device)
    y, _, grad_branch = run(kernel_backend.name, x, branches, torch.randn(2, 5, 4, 5, device=x.device))
    memory_format = torch.channels_last if layout.startswith("channels_last") else torch.contiguous_format
    assert y.is_contiguous(memory_format=memory_format)
    assert grad_branch.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("x_first", [True, False])
def test_gradient_of_x_is_not_copied(kernel_backend: Backend, x_first: bool) -> None:
    """It is a slice of the result's, as that of torch.cat is."""
    x, branches = make(MapCase((2, 3, 4, 5)), [(2, 2, 3)], torch.float32, kernel_backend.device)
    grad = torch.randn(2, 5, 4, 5, device=x.device)
    grad_x = run(kernel_backend.name, x, branches, grad, x_first=x_first)[1]
    assert grad_x.data_ptr() == grad[:, 0 if x_first else 2 :].data_ptr()
    assert torch.equal(grad_x, grad[:, :3] if x_first else grad[:, 2:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(backend: Backend, dtype: torch.dtype) -> None:
    """A map in float32 beside branches in two bytes, as convolutions return them there: what torch.cat makes of them."""
    x, (branch,) = make(MapCase((1, 2, 3, 4)), [(3, 2, 2)], torch.float32, backend.device)
    leaves = [x.requires_grad_(), branch.to(dtype).requires_grad_()]
    with torch.autocast(backend.device, dtype):
        y = sod_ops.pyramid_upsample_concat(leaves[0], leaves[1:])
        narrow = sod_ops.pyramid_upsample_concat(x.detach().to(dtype), leaves[1:])
    assert [y.dtype, narrow.dtype] == [torch.float32, dtype]
    expected = sod_ops.pyramid_upsample_concat(leaves[0], [leaves[1].float()])
    grad = torch.randn_like(y)
    for a, e in zip(
        (y, *torch.autograd.grad(y, leaves, grad)),
        (expected, *torch.autograd.grad(expected, leaves, grad)),
        strict=True,
    ):
        torch.testing.assert_close(a, e, rtol=0, atol=0)


@pytest.mark.parametrize("case", [MAPS[1], MAPS[7], *(c for c in MAPS if c.large)], ids=str)
def test_deterministic_whatever_the_threads(kernel_backend: Backend, case: MapCase) -> None:
    branches = BRANCHES
    if kernel_backend.interpreted:
        case, branches = MapCase((1, 3, 4, 3), case.layout), ((2, 2, 2),)
    x, maps = make(case, branches, torch.float32, kernel_backend.device)
    channels = x.shape[1] + sum(b.shape[1] for b in maps)
    grad = torch.randn(x.shape[0], channels, *x.shape[2:], device=x.device)
    threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    results = []
    try:
        for count in (1, 2) if kernel_backend.interpreted else (1, 2, 3, 8, 8):
            torch.set_num_threads(count)
            results.append(run(kernel_backend.name, x, maps, grad))
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_func_transforms(backend: Backend) -> None:
    x, (branch,) = make(MapCase((2, 2, 3, 4)), [(1, 2, 2)], torch.float64, backend.device)

    def loss(x: Tensor) -> Tensor:
        return sod_ops.pyramid_upsample_concat(x, [branch[: x.shape[0]]]).square().sum()

    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(x), expected)
    _, tangent = torch.func.jvp(loss, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, expected.sum())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_operators_pass_opcheck(kernel_backend: Backend, layout: str) -> None:
    kernels = sod_ops.ops.pyramid_upsample_concat._select(kernel_backend.device)
    x, branches = make(MapCase((1, 2, 3, 4), layout), [(3, 2, 2)], torch.float32, kernel_backend.device)
    leaves = [t.clone().requires_grad_() for t in (x, *branches)]
    torch.library.opcheck(kernels.forward, (leaves[0], leaves[1:], False, True))
    y = kernels.forward(x, branches, False, True)
    torch.library.opcheck(kernels.backward, (y, [3, 2, 2], False, True, layout == "channels_last"))


def test_operators_called_directly_have_gradients(kernel_backend: Backend) -> None:
    kernels = sod_ops.ops.pyramid_upsample_concat._select(kernel_backend.device)
    x, branches = make(MapCase((1, 2, 3, 4)), [(3, 2, 2)], torch.float32, kernel_backend.device)
    grad = torch.randn(1, 5, 3, 4, device=x.device)
    leaves = [t.clone().requires_grad_() for t in (x, *branches)]
    found = torch.autograd.grad(kernels.forward(leaves[0], leaves[1:], False, True), leaves, grad)
    for a, e in zip(found, run(kernel_backend.name, x, branches, grad)[1:], strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_compile(backend: Backend, layout: str) -> None:
    """One graph, with the fused operators of this backend in the forward and in the backward."""
    x, branches = make(MapCase((1, 2, 3, 4), layout), [(3, 2, 2), (1, 1, 1)], torch.float32, backend.device)
    grad = torch.randn(1, 6, 3, 4, device=x.device)
    expected = run(backend.name, x, branches, grad)
    operators: list[str] = []

    def collect(graph: torch.fx.GraphModule, _: Any) -> Any:
        operators.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    torch._dynamo.reset()
    from torch._dynamo.backends.common import aot_autograd

    compiled = torch.compile(
        sod_ops.pyramid_upsample_concat, fullgraph=True, backend=aot_autograd(fw_compiler=collect, bw_compiler=collect)
    )
    leaves = [t.clone().requires_grad_() for t in (x, *branches)]
    y = compiled(leaves[0], leaves[1:])
    for a, e in zip((y, *torch.autograd.grad(y, leaves, grad)), expected, strict=True):
        torch.testing.assert_close(a, e)
    namespace = {"cpu": "sod_ops.", "triton": "sod_ops_triton."}.get(backend.name)
    assert ([o for o in operators if o.startswith("sod_ops")] != []) == (namespace is not None)
    if namespace is not None:
        assert f"{namespace}pyramid_upsample_concat.default" in operators
        assert f"{namespace}pyramid_upsample_concat_backward.default" in operators


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 40), st.integers(1, 40)),
    branches=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=4),
    layout=st.sampled_from([*LAYOUTS, "channel_slice", "channels_last_slice"]),
    dtype=st.sampled_from(FLOATING),
    align_corners=st.booleans(),
    x_first=st.booleans(),
)
def test_any_shape(
    shape: tuple[int, int, int, int],
    branches: list[tuple[int, int, int]],
    layout: str,
    dtype: torch.dtype,
    align_corners: bool,
    x_first: bool,
) -> None:
    x, maps = make(MapCase(shape, layout), branches, dtype, "cpu")
    check(Backend("cpu", "cpu"), x, maps, align_corners=align_corners, x_first=x_first)


# ---- Bad input --------------------------------------------------------------------------------------------------------

X, B = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 2, 2)
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": None}, TypeError, "x must be a Tensor, got NoneType"),
    ({"x": X[0]}, ValueError, r"x must be of shape \[N, C, H, W\], got \[3, 4, 5\]"),
    ({"x": X.int()}, TypeError, "x must be float32"),
    ({"x": X[:, :, :0]}, ValueError, "x must be of shape .* at least 1"),
    ({"branches": B}, TypeError, "branches must be a sequence of tensors, got Tensor"),
    ({"branches": None}, TypeError, "branches must be a sequence of tensors, got NoneType"),
    ({"branches": []}, ValueError, r"branches must be at least one tensor, got \[\]"),
    ({"branches": [B, 1]}, TypeError, r"branches\[1\] must be a Tensor, got int"),
    ({"branches": [B[0]]}, ValueError, r"branches\[0\] must be of shape \[N, C, H, W\], got \[3, 2, 2\]"),
    ({"branches": [B, B[:1]]}, ValueError, r"branches\[1\] must be of shape \[2, C, h, w\] .* got \[1, 3, 2, 2\]"),
    ({"branches": [B[:, :, :0]]}, ValueError, r"branches\[0\] must be of shape .* at least 1"),
    ({"branches": [B.double()]}, TypeError, r"branches\[0\] must be torch.float32 as x is, got torch.float64"),
    ({"branches": [B.to("meta")]}, ValueError, r"branches\[0\] must be on the device of x"),
    ({"align_corners": None}, TypeError, "align_corners must be a bool, got None"),
    ({"x_first": "yes"}, TypeError, "x_first must be a bool, got 'yes'"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_input_is_named(backend: Backend, change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"x": X.to(backend.device), "branches": [B.to(backend.device)], **change}
    with pytest.raises(error, match=f"pyramid_upsample_concat: {message}"):
        sod_ops.pyramid_upsample_concat(**arguments)


def test_operators_refuse_what_would_read_out_of_bounds() -> None:
    """The operators below the public function guard themselves too."""
    operators = torch.ops.sod_ops
    for x, branches in ((X[0], [B]), (X[:, :, ::2, ::2], [B]), (X, []), (X, [B[:1]]), (X, [B.double()]), (X, [B[0]])):
        with pytest.raises(RuntimeError, match="pyramid_upsample_concat"):
            operators.pyramid_upsample_concat(x, branches, False, True)
    y = operators.pyramid_upsample_concat(X, [B], False, True)
    for arguments in (
        (y, [6, 2, 2], False, True, False),
        (y, [], False, True, False),
        (y, [3, 2], False, True, False),
        (y, [3, 0, 2], False, True, False),
        (y, [3, 2, 2], False, True, True),
    ):
        with pytest.raises(RuntimeError, match="pyramid_upsample_concat"):
            operators.pyramid_upsample_concat_backward(*arguments)

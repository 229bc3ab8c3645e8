"""The pairwise complete IoU on every backend: against torchvision, its reference in float64, and the contract of an op."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from box_cases import DEGENERATE, LAYOUTS, PAIRS, laid_out, pairs_of, random_boxes
from cases import FLOATING
from conftest import Backend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peers import import_peer
from tolerances import assert_accurate
from torch import Tensor

import sod_ops
from sod_ops.ops import complete_box_iou as op

NAMES = ("forward", "boxes1", "boxes2")

all_dtypes = pytest.mark.parametrize("dtype", FLOATING, ids=str)

Results = tuple[Tensor, Tensor, Tensor]


def run(function: Callable[..., Tensor], boxes1: Tensor, boxes2: Tensor, grad: Tensor, **options: Any) -> Results:
    """The matrix and the gradients of both tensors."""
    leaves = boxes1.detach().requires_grad_(), boxes2.detach().requires_grad_()
    result = function(*leaves, **options)
    found = torch.autograd.grad(result, leaves, grad.to(result.dtype))
    return result.detach(), *found


def run_on(backend: str, boxes1: Tensor, boxes2: Tensor, grad: Tensor, **options: Any) -> Results:
    with sod_ops.use_backend(backend):
        return run(sod_ops.complete_box_iou, boxes1, boxes2, grad, **options)


def peer() -> Callable[..., Tensor]:
    function: Callable[..., Tensor] = import_peer("torchvision.ops").complete_box_iou
    return function


def grad_for(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """An incoming gradient that differs from pair to pair, and is nowhere 1."""
    return torch.linspace(0.5, 0.9, len(boxes1) * len(boxes2), device=boxes1.device).view(len(boxes1), len(boxes2))


def check(backend: Backend, boxes1: Tensor, boxes2: Tensor, **options: Any) -> None:
    """Holds the matrix and both gradients to those of the reference in float64."""
    grad = grad_for(boxes1, boxes2)
    before = boxes1.clone(), boxes2.clone()
    actual = run_on(backend.name, boxes1, boxes2, grad, **options)
    plain = run_on("reference", boxes1, boxes2, grad, **options)
    exact = run_on("reference", boxes1.double(), boxes2.double(), grad, **options)
    for name, a, p, e in zip(NAMES, actual, plain, exact, strict=True):
        assert_accurate(a, p, e, name)
    assert torch.equal(boxes1, before[0]), "boxes1 was changed"
    assert torch.equal(boxes2, before[1]), "boxes2 was changed"


# ---- Numbers ----------------------------------------------------------------------------------------------------------


# One pair, a row, a column, primes, few against many and the other way round, more than one tile either way.
@all_dtypes
@pytest.mark.parametrize("counts", [(1, 1), (1, 37), (41, 1), (37, 53), (3, 2203), (197, 1), (131, 1153)], ids=str)
def test_counts_and_dtypes(backend: Backend, dtype: torch.dtype, counts: tuple[int, int]) -> None:
    if backend.interpreted and sum(counts) > 200:
        counts = (7, 131) if counts[1] > 1 else counts  # what takes more than one part, and more than one program
    check(backend, *(random_boxes(count, dtype, backend.device) for count in counts))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("layouts", [*zip(LAYOUTS, LAYOUTS, strict=True), ("slice", "contiguous"), ("rows", "slice")])
def test_layouts(backend: Backend, dtype: torch.dtype, layouts: tuple[str, str]) -> None:
    check(
        backend,
        *(
            laid_out(random_boxes(n, dtype, backend.device), layout)
            for n, layout in zip((23, 37), layouts, strict=True)
        ),
    )


@all_dtypes
@pytest.mark.parametrize("options", [{}, {"eps": 1e-3}, {"eps": 0.5}, {"eps": 1}], ids=str)
def test_torchvision_gives_the_same(backend: Backend, dtype: torch.dtype, options: dict[str, Any]) -> None:
    """Every special box with every other: identical ones, sides in common, boxes that touch."""
    boxes = [torch.cat([s, random_boxes(20, dtype)]).to(backend.device) for s in pairs_of(PAIRS, dtype)]
    grad = grad_for(*boxes)
    expected = run(peer(), *boxes, grad, **options)
    actual = run_on(backend.name, *boxes, grad, **options)
    unit = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    assert actual[0].dtype == expected[0].dtype
    torch.testing.assert_close(actual[0], expected[0], rtol=4 * unit, atol=4 * unit)
    # A gradient is a sum over all pairs of terms up to the inverse of a side, in another order.
    unit = torch.finfo(dtype).eps
    for a, e, side in zip(actual[1:], expected[1:], boxes, strict=True):
        extent = (side[:, 2:] - side[:, :2]).double().amin(1)
        assert a.dtype == e.dtype
        assert ((a - e).abs().double() <= 32 * unit * (e.abs().double() + 1 / extent[:, None])).all()


def test_values_of_fixed_boxes(backend: Backend) -> None:
    a, b, c, d = torch.tensor([[-1, -1, 1, 1], [0, 0, 1, 1], [0, 1, 1, 2], [1, 1, 2, 2]], device=backend.device).float()
    found = sod_ops.complete_box_iou(torch.stack([a, b]), torch.stack([a, b, c, d]))
    expected = torch.tensor([[1, 0.1875, -0.1923, -0.25], [0.1875, 1, -0.2, -0.25]], device=backend.device)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-5)


def test_the_diagonal_is_the_loss(backend: Backend) -> None:
    boxes = [random_boxes(17, device=backend.device) for _ in range(2)]
    matrix = sod_ops.complete_box_iou(*boxes)
    torch.testing.assert_close(1 - matrix.diagonal(), sod_ops.complete_box_iou_loss(*boxes))


def test_identical_boxes_have_1(backend: Backend) -> None:
    boxes = random_boxes(41, device=backend.device)
    ones = torch.ones(41, device=backend.device)
    torch.testing.assert_close(sod_ops.complete_box_iou(boxes, boxes).diagonal(), ones, rtol=0, atol=0)


# ---- Boxes without a size ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_degenerate_boxes(backend: Backend, dtype: torch.dtype) -> None:
    """Finite, and equal to the reference, to torchvision where it is finite: each pair on its own."""
    boxes = [b.to(backend.device) for b in pairs_of(DEGENERATE, dtype)]
    grad = torch.full((1, 1), 0.75, device=backend.device)
    for i in range(len(boxes[0])):
        pair = [b[i : i + 1] for b in boxes]
        actual, expected = run_on(backend.name, *pair, grad), run_on("reference", *pair, grad)
        theirs = run(peer(), *pair, grad)
        unit = 8 * torch.finfo(dtype).eps
        for name, a, e, t in zip(NAMES, actual, expected, theirs, strict=True):
            message = f"{list(DEGENERATE)[i]}, {name}"
            assert a.isfinite().all(), message
            torch.testing.assert_close(a, e, rtol=unit, atol=unit, msg=lambda m, message=message: f"{message}: {m}")
            if t.isfinite().all():
                torch.testing.assert_close(a, t, rtol=unit, atol=unit, msg=lambda m, message=message: f"{message}: {m}")


def test_degenerate_boxes_among_others(backend: Backend) -> None:
    """Every special box against every other, with gradients that all of them add to."""
    boxes = [
        torch.cat([a, b]).to(backend.device)
        for a, b in zip(pairs_of(DEGENERATE, torch.float32), pairs_of(PAIRS, torch.float32), strict=True)
    ]
    grad = grad_for(*boxes)
    actual, expected = run_on(backend.name, *boxes, grad), run_on("reference", *boxes, grad)
    for name, a, e in zip(NAMES, actual, expected, strict=True):
        assert a.isfinite().all(), name
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_torchvision_is_not_finite_there() -> None:
    """Why the limits are needed. If this fails, torchvision has mended it: compare with what it does now."""
    boxes = pairs_of(DEGENERATE, torch.float32)
    value, gradient, _ = run(peer(), *boxes, torch.ones(len(boxes[0]), len(boxes[1])))
    rows = dict(zip(DEGENERATE, range(len(DEGENERATE)), strict=True))
    assert value[rows["a point"]].isnan().all()
    assert gradient[rows["no height"]].isnan().any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 6e4, 1e18])
def test_extreme_coordinates(backend: Backend, value: float) -> None:
    """NaN and infinity end up where the reference has them, and only in their own box's pairs and gradient."""
    boxes = random_boxes(11, device=backend.device), random_boxes(13, device=backend.device)
    boxes[0][7, 2] = value
    grad = grad_for(*boxes)
    actual, expected = run_on(backend.name, *boxes, grad), run_on("reference", *boxes, grad)
    others = torch.arange(11, device=backend.device) != 7
    assert torch.equal(actual[0].isnan(), expected[0].isnan())
    assert actual[0][others].isfinite().all()
    assert actual[1][others].isfinite().all()
    if value < 1e18:
        torch.testing.assert_close(actual[0], expected[0], rtol=1e-5, atol=1e-6)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    first=st.lists(st.tuples(*[st.integers(-3, 4)] * 4), max_size=20),
    second=st.lists(st.tuples(*[st.integers(-3, 4)] * 4), max_size=20),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_any_boxes(first: list[tuple[int, ...]], second: list[tuple[int, ...]], dtype: torch.dtype) -> None:
    """Few coordinates, so that ties, boxes without size and inverted boxes are frequent: finite as the reference is."""
    boxes = [torch.tensor(side, dtype=dtype).reshape(-1, 4) for side in (first, second)]
    grad = torch.ones(len(first), len(second), dtype=dtype)
    for a, e in zip(run_on("cpu", *boxes, grad), run_on("reference", *boxes, grad), strict=True):
        # A pair of inverted boxes may have any union: relative to the largest number.
        largest = max(1, e.abs().max().item()) if e.numel() else 1
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5 * largest, equal_nan=True)


# ---- Gradients --------------------------------------------------------------------------------------------------------


def test_gradcheck_with_alpha_constant(backend: Backend) -> None:
    """The gradient isn't the derivative of the value: gradcheck holds it to the value with alpha as it is at this point."""
    boxes = [random_boxes(count, torch.float64, size=3.0) for count in (4, 5)]

    def angle(b: Tensor) -> Tensor:
        return torch.atan((b[:, 2] - b[:, 0]) / (b[:, 3] - b[:, 1]))

    def v(*b: Tensor) -> Tensor:
        return 4 / torch.pi**2 * (angle(b[0])[:, None] - angle(b[1])[None]).square()

    ops = import_peer("torchvision.ops")
    alpha = v(*boxes) / (1 - ops.box_iou(*boxes) + v(*boxes) + 1e-7)

    class Complete(torch.autograd.Function):
        """The value with alpha constant, and the gradient of the op."""

        @staticmethod
        def forward(ctx: Any, *b: Tensor) -> Tensor:
            ctx.save_for_backward(*b)
            return ops.distance_box_iou(*b) - alpha * v(*b)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
            there = (t.to(backend.device) for t in (*ctx.saved_tensors, grad))
            with torch.enable_grad():
                found = run_on(backend.name, *there)
            return found[1].to(grad.device), found[2].to(grad.device)

    assert torch.autograd.gradcheck(Complete.apply, [b.requires_grad_() for b in boxes])


def test_double_backward_matches_torchvision(backend: Backend) -> None:
    boxes = [random_boxes(count, torch.float64, backend.device) for count in (3, 4)]

    def second(function: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        leaves = [b.clone().requires_grad_() for b in boxes]
        first = torch.autograd.grad(function(*leaves).square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    for a, e in zip(second(sod_ops.complete_box_iou), second(peer()), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-12)


def test_gradients_only_where_wanted(backend: Backend) -> None:
    boxes = [random_boxes(count, device=backend.device) for count in (13, 37)]
    grad = grad_for(*boxes)
    full = run_on(backend.name, *boxes, grad)
    for i in range(2):
        leaves = [b.clone().requires_grad_(j == i) for j, b in enumerate(boxes)]
        sod_ops.complete_box_iou(*leaves).backward(grad)
        assert leaves[1 - i].grad is None
        torch.testing.assert_close(leaves[i].grad, full[1 + i], rtol=0, atol=0)


def test_one_tensor_for_both(backend: Backend) -> None:
    """As for the distances between the predictions of one image."""
    boxes = random_boxes(9, torch.float64, backend.device)
    grad = grad_for(boxes, boxes).double()
    leaf = boxes.clone().requires_grad_()
    sod_ops.complete_box_iou(leaf, leaf).backward(grad)
    _, first, second = run_on(backend.name, boxes, boxes, grad)
    torch.testing.assert_close(leaf.grad, first + second)


def test_incoming_gradients_of_any_layout(kernel_backend: Backend) -> None:
    """sum() sends an expanded gradient, a transposed matrix a transposed one; a slice has steps."""
    boxes = [random_boxes(count, device=kernel_backend.device) for count in (11, 17)]
    dense = torch.randn(11, 17, device=kernel_backend.device)
    for grad in (
        dense[:1, :1].expand(11, 17),
        dense[:1].expand(11, 17),
        dense[:, :1].expand(11, 17),
        dense.t().contiguous().t(),
        torch.stack([dense] * 3, 2)[:, :, 1],
        torch.cat([dense, dense], 1)[:, 3:20],
    ):
        expected = run_on(kernel_backend.name, *boxes, grad.contiguous())
        for a, e in zip(run_on(kernel_backend.name, *boxes, grad), expected, strict=True):
            assert torch.equal(a, e)


@all_dtypes
@pytest.mark.parametrize("counts", [(0, 5), (5, 0), (0, 0)], ids=str)
def test_empty(backend: Backend, dtype: torch.dtype, counts: tuple[int, int]) -> None:
    """No pairs, and a gradient of 0 for the boxes that are there."""
    boxes = [random_boxes(count, dtype, backend.device) for count in counts]
    result, *gradients = run_on(backend.name, *boxes, torch.zeros(counts, device=backend.device))
    assert result.shape == counts
    for gradient, b in zip(gradients, boxes, strict=True):
        assert torch.equal(gradient, torch.zeros_like(b))


# ---- What surrounds an op ---------------------------------------------------------------------------------------------


def test_deterministic(backend: Backend) -> None:
    counts = (7, 131) if backend.interpreted else (173, 1511)
    boxes = [random_boxes(count, device=backend.device) for count in counts]
    grad = grad_for(*boxes)
    torch.use_deterministic_algorithms(True)
    try:
        first = run_on(backend.name, *boxes, grad)
        for _ in range(2):
            for a, b in zip(run_on(backend.name, *boxes, grad), first, strict=True):
                assert torch.equal(a, b)
    finally:
        torch.use_deterministic_algorithms(False)


def test_sums_do_not_depend_on_the_number_of_threads() -> None:
    boxes = [random_boxes(count) for count in (211, 2503)]
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run_on("cpu", *boxes, grad_for(*boxes)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_peak_memory_on_the_cpu() -> None:
    """Forward and backward take at most 1.2 times the matrix of 3000 x 3000 pairs, 36 MB, as the process itself sees it."""
    code = """
import re, torch, sod_ops
def peak():  # of this process: ru_maxrss would begin with that of the one it was forked from
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
def step(count):
    boxes = [torch.rand(count, 4).sort(1).values.requires_grad_() for _ in range(2)]
    torch.autograd.grad(sod_ops.complete_box_iou(*boxes).sum(), boxes)
torch.set_num_threads(2)
step(100)
before = peak()
step(3000)
print((peak() - before) / (4 * 3000 * 3000))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 0.9 <= float(found) <= 1.2


@pytest.mark.parametrize("layout", ["slice", "rows"])
def test_slices_are_read_in_place(kernel_backend: Backend, layout: str) -> None:
    boxes = [laid_out(random_boxes(400, device=kernel_backend.device), layout) for _ in range(2)]
    boxes[1] = boxes[1][:10]
    with torch.profiler.profile(profile_memory=True) as profile:
        sod_ops.complete_box_iou(*boxes)
    allocated = sum(
        max(0, e.self_device_memory_usage if kernel_backend.device == "cuda" else e.self_cpu_memory_usage)
        for e in profile.events()
    )
    assert 400 * 10 * 4 <= allocated <= 400 * 10 * 4 + 1024


def test_func_transforms(backend: Backend) -> None:
    boxes1, boxes2 = (random_boxes(count, torch.float64, backend.device) for count in (3, 4))

    def total(boxes: Tensor) -> Tensor:
        return sod_ops.complete_box_iou(boxes, boxes2).sum()

    leaf = boxes1.clone().requires_grad_()
    (expected,) = torch.autograd.grad(total(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(total)(boxes1), expected)
    _, tangent = torch.func.jvp(total, (boxes1,), (torch.ones_like(boxes1),))
    torch.testing.assert_close(tangent, expected.sum())
    batches = torch.func.vmap(sod_ops.complete_box_iou)(torch.stack([boxes1] * 2), torch.stack([boxes2] * 2))
    torch.testing.assert_close(batches[1], sod_ops.complete_box_iou(boxes1, boxes2))


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)], ids=str)
def test_operators_pass_opcheck(kernel_backend: Backend, wanted: tuple[bool, bool]) -> None:
    kernels = op._select(kernel_backend.device)
    assert kernels is not None
    boxes = [
        random_boxes(n, device=kernel_backend.device).requires_grad_(w) for n, w in zip((3, 5), wanted, strict=True)
    ]
    torch.library.opcheck(kernels.forward, (*boxes, 1e-7))
    detached = [b.detach() for b in boxes]
    torch.library.opcheck(kernels.backward, (grad_for(*detached), *detached, 1e-7, *wanted))


def test_operators_called_directly_have_gradients(kernel_backend: Backend) -> None:
    kernels = op._select(kernel_backend.device)
    assert kernels is not None
    boxes = [random_boxes(count, device=kernel_backend.device) for count in (7, 9)]
    grad = grad_for(*boxes)
    found = run(lambda *b: kernels.forward(*b, 1e-7), *boxes, grad)
    for a, e in zip(found, run_on(kernel_backend.name, *boxes, grad), strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)


def test_compile(backend: Backend) -> None:
    """One graph, with the fused operators of this backend in the forward and in the backward."""
    boxes = [random_boxes(count, device=backend.device) for count in (7, 9)]
    grad = grad_for(*boxes)
    operators: list[str] = []

    def collect(graph: torch.fx.GraphModule, _: Any) -> Any:
        operators.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    torch._dynamo.reset()
    from torch._dynamo.backends.common import aot_autograd

    compiled = torch.compile(
        sod_ops.complete_box_iou, fullgraph=True, backend=aot_autograd(fw_compiler=collect, bw_compiler=collect)
    )
    found = run(compiled, *boxes, grad)
    for a, e in zip(found, run_on(backend.name, *boxes, grad), strict=True):
        torch.testing.assert_close(a, e)
    namespace = {"cpu": "sod_ops.", "cuda": "sod_ops.", "triton": "sod_ops_triton."}.get(backend.name)
    wanted = (
        []
        if namespace is None
        else [namespace + name for name in ("complete_box_iou.default", "complete_box_iou_backward.default")]
    )
    assert [o for o in operators if o.startswith("sod_ops")] == wanted


def test_compile_with_dynamic_shapes(backend: Backend) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(sod_ops.complete_box_iou, fullgraph=True, dynamic=True, backend="aot_eager")
    for counts in ((5, 7), (9, 3), (23, 8)):
        boxes = [random_boxes(count, device=backend.device) for count in counts]
        torch.testing.assert_close(compiled(*boxes), sod_ops.complete_box_iou(*boxes))


def test_export(backend: Backend) -> None:
    class Pairs(torch.nn.Module):
        def forward(self, boxes1: Tensor, boxes2: Tensor) -> Tensor:
            return sod_ops.complete_box_iou(boxes1, boxes2)

    boxes = tuple(random_boxes(count, device=backend.device) for count in (6, 9))
    rows, columns = (torch.export.Dim(name, min=2, max=64) for name in ("rows", "columns"))
    exported = torch.export.export(Pairs(), boxes, dynamic_shapes={"boxes1": {0: rows}, "boxes2": {0: columns}})
    larger = [torch.cat([b, b]) for b in boxes]
    torch.testing.assert_close(exported.module()(*larger), sod_ops.complete_box_iou(*larger))


# ---- Bad input --------------------------------------------------------------------------------------------------------

T = torch.zeros
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"boxes1": None}, TypeError, "boxes1 must be a Tensor, got NoneType"),
    ({"boxes1": T(5, 5)}, ValueError, r"boxes1 must be of shape \[N, 4\], got \[5, 5\]"),
    ({"boxes1": T(4)}, ValueError, r"boxes1 must be of shape \[N, 4\], got \[4\]"),
    ({"boxes1": T(2, 5, 4)}, ValueError, r"boxes1 must be of shape \[N, 4\], got \[2, 5, 4\]"),
    ({"boxes1": T(5, 4, dtype=torch.int64)}, TypeError, "boxes1 must be float32, .* got torch.int64"),
    ({"boxes1": T(5, 4).to_sparse()}, TypeError, "boxes1 must be a dense tensor"),
    ({"boxes1": T(5, 4, device="meta")}, ValueError, "boxes2 must be on the device of boxes1"),
    ({"boxes1": T(5, 4).double()}, TypeError, "boxes2 must be torch.float64 as boxes1 is, got torch.float32"),
    ({"boxes2": 3.0}, TypeError, "boxes2 must be a Tensor, got float"),
    ({"boxes2": T(4)}, ValueError, r"boxes2 must be of shape \[N, 4\], got \[4\]"),
    ({"boxes2": T(0)}, ValueError, r"boxes2 must be of shape \[N, 4\], got \[0\]"),
    ({"boxes2": T(5, 4).half()}, TypeError, "boxes2 must be torch.float32 as boxes1 is, got torch.float16"),
    ({"boxes2": T(5, 4, device="meta")}, ValueError, "boxes2 must be on the device of boxes1"),
    ({"eps": 0.0}, ValueError, "eps must be finite and above 0, got 0.0"),
    ({"eps": float("nan")}, ValueError, "eps must be finite and above 0, got nan"),
    ({"eps": "1e-7"}, TypeError, r"eps must be a number, got '1e-7' \(str\)"),
]


@pytest.mark.parametrize("mode", ["no gradient", "gradient"])
@pytest.mark.parametrize(
    ("change", "error", "message"), BAD, ids=[f"{next(iter(c))}-{i}" for i, (c, _, _) in enumerate(BAD)]
)
def test_bad_input_is_named(
    backend: Backend, change: dict[str, Any], error: type[Exception], message: str, mode: str
) -> None:
    boxes = [random_boxes(count, device=backend.device).requires_grad_(mode == "gradient") for count in (5, 6)]
    moved = {
        k: v.to(backend.device) if isinstance(v, Tensor) and v.device.type == "cpu" else v for k, v in change.items()
    }
    arguments = {"boxes1": boxes[0], "boxes2": boxes[1], "eps": 1e-7, **moved}
    with pytest.raises(error, match=f"complete_box_iou: {message}"):
        sod_ops.complete_box_iou(**arguments)


def test_operators_refuse_what_would_read_out_of_bounds() -> None:
    """The operators below the public function guard themselves too."""
    boxes = random_boxes(5)
    forward, backward = torch.ops.sod_ops.complete_box_iou, torch.ops.sod_ops.complete_box_iou_backward
    for arguments in (
        (boxes[:, :3], boxes, 1e-7),
        (boxes, boxes[0], 1e-7),
        (boxes[None], boxes[None], 1e-7),
        (boxes.t().contiguous().t(), boxes, 1e-7),
        (boxes.double(), boxes, 1e-7),
        (boxes.int(), boxes.int(), 1e-7),
        (boxes, boxes, 0.0),
        (boxes, boxes, float("nan")),
    ):
        with pytest.raises(RuntimeError, match="complete_box_iou"):
            forward(*arguments)
        with pytest.raises(RuntimeError, match="complete_box_iou"):
            backward(torch.ones(5, 5), *arguments, True, True)
    for grad in (torch.ones(5), torch.ones(5, 4), torch.ones(5, 5).double(), torch.ones(5, 10)[:, ::2]):
        with pytest.raises(RuntimeError, match="grad_output"):
            backward(grad, boxes, boxes, 1e-7, True, True)

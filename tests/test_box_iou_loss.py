"""The IoU losses on every backend: against torchvision, against their reference in float64, and the contract of an op."""

import itertools
from collections.abc import Callable
from functools import partial
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
from sod_ops.ops import box_iou_loss as op
from sod_ops.reference.box_iou_loss import LOSSES

REDUCTIONS = ("none", "mean", "sum")
NAMES = ("forward", "boxes1", "boxes2")

all_losses = pytest.mark.parametrize("loss", LOSSES)
all_reductions = pytest.mark.parametrize("reduction", REDUCTIONS)
all_dtypes = pytest.mark.parametrize("dtype", FLOATING, ids=str)

Results = tuple[Tensor, Tensor, Tensor]


def run(function: Callable[..., Tensor], boxes1: Tensor, boxes2: Tensor, grad: Tensor, **options: Any) -> Results:
    """The loss and the gradients of both tensors."""
    leaves = boxes1.detach().requires_grad_(), boxes2.detach().requires_grad_()
    result = function(*leaves, **options)
    found = torch.autograd.grad(result, leaves, grad.to(result.dtype))
    return result.detach(), *found


def run_on(backend: str, loss: str, boxes1: Tensor, boxes2: Tensor, grad: Tensor, **options: Any) -> Results:
    with sod_ops.use_backend(backend):
        return run(getattr(sod_ops, loss), boxes1, boxes2, grad, **options)


def grad_for(boxes: Tensor, reduction: str) -> Tensor:
    """An incoming gradient that differs from pair to pair, and is not 1."""
    return torch.linspace(0.5, 1.5, len(boxes)) if reduction == "none" else torch.tensor(0.75)


def check(backend: Backend, loss: str, boxes1: Tensor, boxes2: Tensor, reduction: str = "none", **options: Any) -> None:
    """Holds the loss and both gradients to those of the reference in float64."""
    grad = grad_for(boxes1, reduction).to(backend.device)
    options["reduction"] = reduction
    before = boxes1.clone(), boxes2.clone()
    actual = run_on(backend.name, loss, boxes1, boxes2, grad, **options)
    plain = run_on("reference", loss, boxes1, boxes2, grad, **options)
    exact = run_on("reference", loss, boxes1.double(), boxes2.double(), grad, **options)
    for name, a, p, e in zip(NAMES, actual, plain, exact, strict=True):
        assert_accurate(a, p, e, name)
    assert torch.equal(boxes1, before[0]), "boxes1 was changed"
    assert torch.equal(boxes2, before[1]), "boxes2 was changed"


# ---- Numbers ----------------------------------------------------------------------------------------------------------


# One box, fewer than fill a vector, primes, more than one block of a GPU's and more than one thread's.
@all_losses
@all_reductions
@all_dtypes
@pytest.mark.parametrize("count", [1, 37, 5003])
def test_counts_and_dtypes(backend: Backend, loss: str, reduction: str, dtype: torch.dtype, count: int) -> None:
    if backend.interpreted and count > 300:
        count = 2311  # what more than one program takes
    boxes = [random_boxes(count, dtype, backend.device) for _ in range(2)]
    check(backend, loss, *boxes, reduction)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("layouts", [*zip(LAYOUTS, LAYOUTS, strict=True), ("slice", "contiguous"), ("rows", "slice")])
def test_layouts(backend: Backend, dtype: torch.dtype, layouts: tuple[str, str]) -> None:
    boxes = [laid_out(random_boxes(53, dtype, backend.device), layout) for layout in layouts]
    for reduction in REDUCTIONS:
        check(backend, "complete_box_iou_loss", *boxes, reduction)


@all_losses
@all_reductions
@all_dtypes
def test_a_single_box(backend: Backend, loss: str, reduction: str, dtype: torch.dtype) -> None:
    boxes1, boxes2 = random_boxes(2, dtype, backend.device)
    grad = torch.tensor(0.75, device=backend.device)
    single = run_on(backend.name, loss, boxes1, boxes2, grad, reduction=reduction)
    row = run_on(backend.name, loss, boxes1[None], boxes2[None], grad.expand(1) if reduction == "none" else grad,
                 reduction=reduction)  # fmt: skip
    assert [t.shape for t in single] == [(), (4,), (4,)]
    for a, b in zip(single, row, strict=True):
        assert torch.equal(a, b.reshape(a.shape))


@all_losses
@all_dtypes
@pytest.mark.parametrize("options", [*({"reduction": r} for r in REDUCTIONS), {"eps": 1e-3}, {"eps": 0.5}], ids=str)
def test_torchvision_gives_the_same(backend: Backend, loss: str, dtype: torch.dtype, options: dict[str, Any]) -> None:
    """Also where coordinates are equal: identical boxes, sides in common, boxes that touch."""
    special = pairs_of(PAIRS, dtype)
    boxes = [torch.cat([s, random_boxes(100, dtype)]).to(backend.device) for s in special]
    grad = grad_for(boxes[0], options.get("reduction", "none")).to(backend.device)
    expected = run(getattr(import_peer("torchvision.ops"), loss), *boxes, grad, **options)
    actual = run_on(backend.name, loss, *boxes, grad, **options)
    # Two float32 computations in another order: some units of the loss (about 1), and of gradients that are differences of
    # terms up to the inverse of a side. In two bytes a mean's gradient is a subnormal number, off by half of the smallest.
    unit = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    torch.testing.assert_close(actual[0], expected[0], rtol=4 * unit, atol=4 * unit)
    unit = torch.finfo(dtype).eps
    for a, e, side in zip(actual[1:], expected[1:], boxes, strict=True):
        extent = (side[:, 2:] - side[:, :2]).double().amin(1)
        allowed = (
            16 * unit * (e.abs().double() + (grad.abs() / extent)[:, None]) + torch.finfo(dtype).smallest_normal * unit
        )
        assert a.dtype == e.dtype
        assert ((a - e).abs().double() <= allowed).all()


def test_values_that_torchvision_tests(backend: Backend) -> None:
    a, b, c, d = torch.tensor([[-1, -1, 1, 1], [0, 0, 1, 1], [0, 1, 1, 2], [1, 1, 2, 2]], device=backend.device).float()
    loss = sod_ops.complete_box_iou_loss
    assert loss(a, a).item() == 0
    for other, value in ((b, 0.8125), (c, 1.1923), (d, 1.2500)):
        assert loss(a, other).item() == pytest.approx(value, abs=5e-5)
    first, second = torch.stack([b, b]), torch.stack([c, d])
    assert loss(first, second, reduction="mean").item() == pytest.approx(1.225)
    assert loss(first, second, reduction="sum").item() == pytest.approx(2.45)


@all_losses
def test_identical_boxes_cost_nothing(backend: Backend, loss: str) -> None:
    """Exactly: the areas of equal boxes cancel to the last bit, and 1e-7 is lost beside them."""
    boxes = random_boxes(101, device=backend.device)
    result, *gradients = run_on(backend.name, loss, boxes, boxes.clone(), torch.ones(101, device=backend.device))
    assert torch.equal(result, torch.zeros_like(result))
    for gradient in gradients:
        assert gradient.abs().max() < 1e-6  # against sides of 2 to 100


@all_losses
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("eps", [1e-7, 1e-2])
def test_the_padded_flavour(backend: Backend, loss: str, dtype: torch.dtype, eps: float) -> None:
    """That of ultralytics, which tests/test_patch.py compares it with: also of boxes that touch, or have no size."""
    tables = [pairs_of(table, dtype) for table in (PAIRS, DEGENERATE)]
    boxes = [torch.cat([*parts, random_boxes(50, dtype)]).to(backend.device) for parts in zip(*tables, strict=True)]
    for reduction in REDUCTIONS:
        grad = grad_for(boxes[0], reduction).to(backend.device)
        actual = run(partial(op.padded_box_iou_loss, loss), *boxes, grad, reduction=reduction, eps=eps)
        expected = run(partial(LOSSES[loss], padded=True), *boxes, grad, reduction=reduction, eps=eps)
        for name, a, e in zip(NAMES, actual, expected, strict=True):
            assert a.isfinite().all(), name
            unit = 16 * torch.finfo(dtype).eps
            torch.testing.assert_close(a, e, rtol=unit, atol=unit * max(1, e.abs().max().item()))


def test_double_backward_of_the_padded_flavour(backend: Backend) -> None:
    leaves = [random_boxes(4, torch.float64, backend.device, size=3.0).requires_grad_() for _ in range(2)]
    function = partial(op.padded_box_iou_loss, "distance_box_iou_loss", eps=1e-2)
    assert torch.autograd.gradcheck(function, leaves, fast_mode=backend.interpreted)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=backend.interpreted)


# ---- Boxes without a size ---------------------------------------------------------------------------------------------


@all_losses
@all_reductions
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_degenerate_boxes(backend: Backend, loss: str, reduction: str, dtype: torch.dtype) -> None:
    """Finite, and equal to the reference, to torchvision where it is finite."""
    boxes = [b.to(backend.device) for b in pairs_of(DEGENERATE, dtype)]
    peer = getattr(import_peer("torchvision.ops"), loss)
    for i in range(len(boxes[0])):
        first, second = (b[i : i + 1] for b in boxes)
        grad = grad_for(first, reduction).to(backend.device)
        actual = run_on(backend.name, loss, first, second, grad, reduction=reduction)
        expected = run_on("reference", loss, first, second, grad, reduction=reduction)
        theirs = run(peer, first, second, grad, reduction=reduction)
        unit = 8 * torch.finfo(dtype).eps
        for name, a, e, t in zip(NAMES, actual, expected, theirs, strict=True):
            message = f"{list(DEGENERATE)[i]}, {name}"
            assert a.isfinite().all(), message
            torch.testing.assert_close(a, e, rtol=unit, atol=unit, msg=lambda m, message=message: f"{message}: {m}")
            if t.isfinite().all():
                torch.testing.assert_close(a, t, rtol=unit, atol=unit, msg=lambda m, message=message: f"{message}: {m}")


@all_dtypes
def test_torchvision_is_not_finite_there(dtype: torch.dtype) -> None:
    """Why the limits are needed. If this fails, torchvision has mended it: compare with what it does now."""
    peer = import_peer("torchvision.ops").complete_box_iou_loss
    boxes = pairs_of(DEGENERATE, dtype)
    value, gradient, _ = run(peer, *boxes, torch.ones(len(boxes[0])))
    rows = dict(zip(DEGENERATE, range(len(DEGENERATE)), strict=True))
    assert value[rows["a point"]].isnan()
    assert gradient[rows["no height"]].isnan().any()


def test_the_gradient_of_no_height_is_a_limit(backend: Backend) -> None:
    flat, other = (torch.tensor([p], dtype=torch.float64, device=backend.device) for p in DEGENERATE["no height"])
    thin = flat + torch.tensor([0, 0, 0, 1e-9], dtype=torch.float64, device=backend.device)
    grad = torch.ones(1, dtype=torch.float64, device=backend.device)
    at, near = (run_on(backend.name, "complete_box_iou_loss", b, other, grad) for b in (flat, thin))
    # With any height the boxes overlap, which has a gradient of its own: only the angle's is compared, by the distance loss.
    without = (run_on(backend.name, "distance_box_iou_loss", b, other, grad) for b in (flat, thin))
    for (a, n), (da, dn) in zip(zip(at, near, strict=True), zip(*without, strict=True), strict=True):
        torch.testing.assert_close(a - da, n - dn, rtol=1e-6, atol=1e-8)


def test_a_point_has_no_aspect_ratio(backend: Backend) -> None:
    boxes = [torch.tensor([p], dtype=torch.float32, device=backend.device) for p in DEGENERATE["a point"]]
    grad = torch.ones(1, device=backend.device)
    complete, distance = (
        run_on(backend.name, loss, *boxes, grad) for loss in ("complete_box_iou_loss", "distance_box_iou_loss")
    )
    for a, b in zip(complete, distance, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


@all_losses
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 6e4, 1e18])
def test_extreme_coordinates(backend: Backend, loss: str, value: float) -> None:
    """NaN and infinity end up where the reference has them, and only in their own pair."""
    boxes = random_boxes(40, device=backend.device), random_boxes(40, device=backend.device)
    boxes[0][7, 2] = value
    actual = run_on(backend.name, loss, *boxes, torch.ones(40, device=backend.device))
    expected = run_on("reference", loss, *boxes, torch.ones(40, device=backend.device))
    others = torch.arange(40, device=backend.device) != 7
    assert torch.equal(actual[0].isnan(), expected[0].isnan())
    assert all(t[others].isfinite().all() for t in actual)
    if value < 1e18:
        torch.testing.assert_close(actual[0], expected[0], rtol=1e-5, atol=1e-6)


@all_losses
def test_large_boxes_in_float16(backend: Backend, loss: str) -> None:
    """Areas of 300 x 300 pixels and the squares of distances are beyond float16's largest number."""
    boxes = [b.to(backend.device) for b in pairs_of(PAIRS, torch.float16)]
    large = [b[list(PAIRS).index("large")][None] / 2 for b in boxes]
    result, *gradients = run_on(backend.name, loss, *large, torch.ones(1, device=backend.device))
    assert result.dtype == torch.float32
    assert 0 < result.item() < 2
    assert all(g.dtype == torch.float16 and g.isfinite().all() for g in gradients)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    boxes=st.lists(st.tuples(*[st.integers(-3, 4)] * 8), min_size=1, max_size=40),
    loss=st.sampled_from(list(LOSSES)),
    reduction=st.sampled_from(REDUCTIONS),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_any_boxes(boxes: list[tuple[int, ...]], loss: str, reduction: str, dtype: torch.dtype) -> None:
    """Few coordinates, so that ties, boxes without size and inverted boxes are frequent: finite as the reference is."""
    first, second = torch.tensor(boxes, dtype=dtype).split(4, dim=1)
    grad = grad_for(first, reduction)
    actual = run_on("cpu", loss, first, second, grad, reduction=reduction)
    expected = run_on("reference", loss, first, second, grad, reduction=reduction)
    for a, e in zip(actual, expected, strict=True):
        # An inverted box may have a negative union, and one near -eps makes any number of a denominator: relative to that.
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5 * max(1, e.abs().max().item()), equal_nan=True)


# ---- Gradients --------------------------------------------------------------------------------------------------------


@all_reductions
@pytest.mark.parametrize("loss", ["generalized_box_iou_loss", "distance_box_iou_loss"])
def test_gradcheck(backend: Backend, loss: str, reduction: str) -> None:
    """Of random boxes, which have no coordinate in common: there the losses are smooth."""
    leaves = [random_boxes(4, torch.float64, backend.device, size=3.0).requires_grad_() for _ in range(2)]

    def function(*boxes: Tensor) -> Tensor:
        return getattr(sod_ops, loss)(*boxes, reduction=reduction)

    assert torch.autograd.gradcheck(function, leaves, fast_mode=backend.interpreted)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=backend.interpreted)


def test_complete_is_differentiated_with_alpha_constant(backend: Backend) -> None:
    """Its gradient isn't the derivative of its value: gradcheck holds it to the value with alpha as it is at this point."""
    boxes = [random_boxes(6, torch.float64, size=3.0) for _ in range(2)]

    def angle(b: Tensor) -> Tensor:
        return torch.atan((b[:, 2] - b[:, 0]) / (b[:, 3] - b[:, 1]))

    def v(*b: Tensor) -> Tensor:
        return 4 / torch.pi**2 * (angle(b[1]) - angle(b[0])).square()

    peer = import_peer("torchvision.ops")
    iou = peer.box_iou(*boxes).diagonal()
    alpha = v(*boxes) / (1 - iou + v(*boxes) + 1e-7)

    class Complete(torch.autograd.Function):
        """The value with alpha constant, and the gradient of the op."""

        @staticmethod
        def forward(ctx: Any, *b: Tensor) -> Tensor:
            ctx.save_for_backward(*b)
            return peer.distance_box_iou_loss(*b) + alpha * v(*b)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
            there = (t.to(backend.device) for t in (*ctx.saved_tensors, grad))
            with torch.enable_grad():
                found = run_on(backend.name, "complete_box_iou_loss", *there)
            return found[1].to(grad.device), found[2].to(grad.device)

    assert torch.autograd.gradcheck(Complete.apply, [b.requires_grad_() for b in boxes])


@all_losses
def test_double_backward_matches_torchvision(backend: Backend, loss: str) -> None:
    boxes = [random_boxes(5, torch.float64, backend.device) for _ in range(2)]

    def second(function: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        leaves = [b.clone().requires_grad_() for b in boxes]
        first = torch.autograd.grad(function(*leaves, reduction="mean"), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    expected = second(getattr(import_peer("torchvision.ops"), loss))
    for a, e in zip(second(getattr(sod_ops, loss)), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-12)


@all_losses
@all_reductions
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_backward_may_run_again(backend: Backend, loss: str, reduction: str, dtype: torch.dtype) -> None:
    """Gradients that the forward has computed are given away and scaled in place: the next backward needs new ones."""
    boxes1 = random_boxes(9, dtype, backend.device).requires_grad_()
    boxes2 = random_boxes(9, dtype, backend.device).requires_grad_()
    result = getattr(sod_ops, loss)(boxes1, boxes2, reduction=reduction)
    ones = torch.ones_like(result)
    once = torch.autograd.grad(result, (boxes1, boxes2), ones, retain_graph=True)
    kept = [g.clone() for g in once]
    for g in once:
        g.zero_()  # whoever gets a gradient owns it
    for factor in (1.0, -2.0, 1.0):
        for a, e in zip(
            torch.autograd.grad(result, (boxes1, boxes2), ones * factor, retain_graph=True), kept, strict=True
        ):
            torch.testing.assert_close(a, e * factor)
    for _ in range(2):
        result.backward(ones * 0.5, retain_graph=True)
    torch.testing.assert_close(boxes1.grad, kept[0])


@all_losses
@all_reductions
def test_gradients_only_where_wanted(backend: Backend, loss: str, reduction: str) -> None:
    boxes = [random_boxes(37, device=backend.device) for _ in range(2)]
    grad = grad_for(boxes[0], reduction).to(backend.device)
    full = run_on(backend.name, loss, *boxes, grad, reduction=reduction)
    for i in range(2):
        leaves = [b.clone().requires_grad_(j == i) for j, b in enumerate(boxes)]
        getattr(sod_ops, loss)(*leaves, reduction=reduction).backward(grad)
        assert leaves[1 - i].grad is None
        torch.testing.assert_close(leaves[i].grad, full[1 + i], rtol=0, atol=0)


@all_losses
def test_incoming_gradients_of_any_layout(backend: Backend, loss: str) -> None:
    """sum() sends an expanded gradient; a column of a larger one has a step."""
    boxes = [random_boxes(37, device=backend.device) for _ in range(2)]
    dense = torch.randn(37, device=backend.device)
    for grad in (torch.stack([dense] * 3, 1)[:, 1], dense[:1].expand(37)):
        expected = run_on(backend.name, loss, *boxes, grad.contiguous())
        for a, e in zip(run_on(backend.name, loss, *boxes, grad), expected, strict=True):
            assert torch.equal(a, e)


@all_losses
@all_reductions
@all_dtypes
def test_empty(backend: Backend, loss: str, reduction: str, dtype: torch.dtype) -> None:
    boxes = [torch.zeros(0, 4, dtype=dtype, device=backend.device) for _ in range(2)]
    expected = torch.zeros(0) if reduction == "none" else torch.tensor(0.0)
    result, *gradients = run_on(backend.name, loss, *boxes, expected.to(backend.device), reduction=reduction)
    torch.testing.assert_close(result.cpu(), expected, check_dtype=dtype != torch.float64)
    assert all(g.shape == (0, 4) and g.dtype == dtype for g in gradients)


# ---- What surrounds an op ---------------------------------------------------------------------------------------------


@all_losses
@all_reductions
def test_deterministic(backend: Backend, loss: str, reduction: str) -> None:
    boxes = [random_boxes(100 if backend.interpreted else 20011, device=backend.device) for _ in range(2)]
    grad = grad_for(boxes[0], reduction).to(backend.device)
    torch.use_deterministic_algorithms(True)
    try:
        first = run_on(backend.name, loss, *boxes, grad, reduction=reduction)
        for _ in range(3):
            for a, b in zip(run_on(backend.name, loss, *boxes, grad, reduction=reduction), first, strict=True):
                assert torch.equal(a, b)
    finally:
        torch.use_deterministic_algorithms(False)


def test_sums_do_not_depend_on_the_number_of_threads() -> None:
    boxes = [random_boxes(50021) for _ in range(2)]
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run_on("cpu", "complete_box_iou_loss", *boxes, torch.tensor(2.0), reduction="mean"))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@all_reductions
@pytest.mark.parametrize("layout", ["slice", "rows"])
def test_slices_are_read_in_place(kernel_backend: Backend, layout: str, reduction: str) -> None:
    """No copy of the boxes: besides the result there are only partial sums."""
    boxes = [laid_out(random_boxes(2000, device=kernel_backend.device), layout) for _ in range(2)]
    with torch.profiler.profile(profile_memory=True) as profile:
        sod_ops.complete_box_iou_loss(*boxes, reduction=reduction)
    allocated = sum(
        max(0, e.self_device_memory_usage if kernel_backend.device == "cuda" else e.self_cpu_memory_usage)
        for e in profile.events()
    )
    result = 2000 * 4 if reduction == "none" else 4
    assert result <= allocated <= result + 1024


@all_losses
def test_func_transforms(backend: Backend, loss: str) -> None:
    boxes1, boxes2 = (random_boxes(3, torch.float64, backend.device) for _ in range(2))

    def total(boxes: Tensor) -> Tensor:
        return getattr(sod_ops, loss)(boxes, boxes2, reduction="sum")

    leaf = boxes1.clone().requires_grad_()
    (expected,) = torch.autograd.grad(total(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(total)(boxes1), expected)
    each = torch.func.vmap(torch.func.grad(getattr(sod_ops, loss)))(boxes1, boxes2)
    torch.testing.assert_close(each, expected)
    _, tangent = torch.func.jvp(total, (boxes1,), (torch.ones_like(boxes1),))
    torch.testing.assert_close(tangent, expected.sum())


OPTIONS = [(i, r, 1e-7, first, second) for i, r in itertools.product(range(3), range(3))
           for first, second in ((True, True), (True, False))]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_operators_pass_opcheck(kernel_backend: Backend, options: tuple[Any, ...]) -> None:
    kernels = op._select(kernel_backend.device)
    boxes = [random_boxes(5, device=kernel_backend.device).requires_grad_(wanted) for wanted in options[3:]]
    torch.library.opcheck(kernels.forward, (*boxes, *options))
    loss, *_ = kernels.forward(*(b.detach() for b in boxes), *options)
    torch.library.opcheck(kernels.backward, (torch.ones_like(loss), *(b.detach() for b in boxes), *options))


@all_losses
@all_reductions
def test_operators_called_directly_have_gradients(kernel_backend: Backend, loss: str, reduction: str) -> None:
    kernels = op._select(kernel_backend.device)
    boxes = [random_boxes(7, device=kernel_backend.device) for _ in range(2)]
    grad = grad_for(boxes[0], reduction).to(kernel_backend.device)
    options = (list(LOSSES).index(loss), REDUCTIONS.index(reduction), 1e-7, True, True)
    found = run(lambda *b: kernels.forward(*b, *options)[0], *boxes, grad)
    for a, e in zip(found, run_on(kernel_backend.name, loss, *boxes, grad, reduction=reduction), strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)


@all_losses
@all_reductions
def test_compile(backend: Backend, loss: str, reduction: str) -> None:
    """One graph, with the fused operators of this backend in the forward and, where it recomputes, in the backward."""
    boxes = [random_boxes(7, device=backend.device) for _ in range(2)]
    grad = grad_for(boxes[0], reduction).to(backend.device)
    operators: list[str] = []

    def collect(graph: torch.fx.GraphModule, _: Any) -> Any:
        operators.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    torch._dynamo.reset()
    from torch._dynamo.backends.common import aot_autograd

    compiled = torch.compile(
        getattr(sod_ops, loss), fullgraph=True, backend=aot_autograd(fw_compiler=collect, bw_compiler=collect)
    )
    found = run(compiled, *boxes, grad, reduction=reduction)
    for a, e in zip(found, run_on(backend.name, loss, *boxes, grad, reduction=reduction), strict=True):
        torch.testing.assert_close(a, e)
    namespace = {"cpu": "sod_ops.", "cuda": "sod_ops.", "triton": "sod_ops_triton."}.get(backend.name)
    wanted = [] if namespace is None else [f"{namespace}box_iou_loss.default"]
    if namespace is not None and reduction == "none":
        wanted.append(f"{namespace}box_iou_loss_backward.default")
    assert [o for o in operators if o.startswith("sod_ops")] == wanted


def test_compile_with_inductor_inside_a_model() -> None:
    predicted, target = random_boxes(50), random_boxes(50)
    torch._dynamo.reset()

    def model(x: Tensor) -> Tensor:
        return sod_ops.complete_box_iou_loss(torch.relu(x + 1), target, reduction="mean").mul(2)

    leaves = [predicted.clone().requires_grad_() for _ in range(2)]
    for function, leaf in zip((model, torch.compile(model, fullgraph=True)), leaves, strict=True):
        function(leaf).backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)


def test_compile_with_dynamic_shapes(backend: Backend) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(sod_ops.complete_box_iou_loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for count, reduction in itertools.product((5, 9, 23), ("none", "mean")):
        boxes = [random_boxes(count, device=backend.device) for _ in range(2)]
        torch.testing.assert_close(
            compiled(*boxes, reduction=reduction), sod_ops.complete_box_iou_loss(*boxes, reduction=reduction)
        )


@all_reductions
def test_export(backend: Backend, reduction: str) -> None:
    module = sod_ops.nn.CompleteBoxIoULoss(reduction)
    boxes = tuple(random_boxes(6, device=backend.device) for _ in range(2))
    count = torch.export.Dim("count", min=2, max=64)
    exported = torch.export.export(module, boxes, dynamic_shapes={"boxes1": {0: count}, "boxes2": {0: count}})
    larger = [torch.cat([b, b, b]) for b in boxes]
    torch.testing.assert_close(exported.module()(*larger), module(*larger))


# ---- Bad input --------------------------------------------------------------------------------------------------------

T = torch.zeros
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"boxes1": None}, TypeError, "boxes1 must be a Tensor, got NoneType"),
    ({"boxes1": [[0, 0, 1, 1]]}, TypeError, "boxes1 must be a Tensor, got list"),
    ({"boxes1": T(5, 5)}, ValueError, r"boxes1 must be of shape \[N, 4\] or \[4\], got \[5, 5\]"),
    ({"boxes1": T(5)}, ValueError, r"boxes1 must be of shape \[N, 4\] or \[4\], got \[5\]"),
    ({"boxes1": T(())}, ValueError, r"boxes1 must be of shape \[N, 4\] or \[4\], got \[\]"),
    ({"boxes1": T(1, 5, 4)}, ValueError, r"boxes1 must be of shape \[N, 4\] or \[4\], got \[1, 5, 4\]"),
    ({"boxes1": T(5, 4, dtype=torch.int64)}, TypeError, "boxes1 must be float32, .* got torch.int64"),
    ({"boxes1": T(5, 4, dtype=torch.complex64)}, TypeError, "boxes1 must be float32"),
    ({"boxes1": T(5, 4).to_sparse()}, TypeError, "boxes1 must be a dense tensor"),
    ({"boxes1": T(5, 4, device="meta")}, ValueError, "boxes2 must be on the device of boxes1"),
    (
        {"boxes1": T(5, 4, dtype=torch.float64)},
        TypeError,
        "boxes2 must be torch.float64 as boxes1 is, got torch.float32",
    ),
    ({"boxes1": T(1, 4)}, ValueError, r"boxes2 must be of the shape of boxes1 \(\[1, 4\]\), got \[5, 4\]"),
    ({"boxes1": T(4)}, ValueError, r"boxes2 must be of the shape of boxes1 \(\[4\]\), got \[5, 4\]"),
    ({"boxes2": 3.0}, TypeError, "boxes2 must be a Tensor, got float"),
    ({"boxes2": T(4)}, ValueError, r"boxes2 must be of the shape of boxes1 \(\[5, 4\]\), got \[4\]"),
    ({"boxes2": T(6, 4)}, ValueError, r"boxes2 must be of the shape of boxes1 \(\[5, 4\]\), got \[6, 4\]"),
    ({"boxes2": T(5, 3)}, ValueError, r"boxes2 must be of shape \[N, 4\] or \[4\], got \[5, 3\]"),
    (
        {"boxes2": T(5, 4, dtype=torch.float16)},
        TypeError,
        "boxes2 must be torch.float32 as boxes1 is, got torch.float16",
    ),
    ({"boxes2": T(5, 4, dtype=torch.int32)}, TypeError, "boxes2 must be float32, .* got torch.int32"),
    ({"boxes2": T(5, 4, device="meta")}, ValueError, "boxes2 must be on the device of boxes1"),
    ({"reduction": "max"}, ValueError, "reduction must be one of 'none', 'mean', 'sum', got 'max'"),
    ({"reduction": None}, TypeError, "reduction must be a string"),
    ({"reduction": ["mean"]}, TypeError, "reduction must be a string"),
    ({"eps": 0.0}, ValueError, "eps must be finite and above 0, got 0.0"),
    ({"eps": -1e-7}, ValueError, "eps must be finite and above 0, got -1e-07"),
    ({"eps": float("nan")}, ValueError, "eps must be finite and above 0, got nan"),
    ({"eps": float("inf")}, ValueError, "eps must be finite and above 0, got inf"),
    ({"eps": "1e-7"}, TypeError, r"eps must be a number, got '1e-7' \(str\)"),
    ({"eps": T(1)}, TypeError, "eps must be a number"),
    ({"eps": True}, TypeError, r"eps must be a number, got True \(bool\)"),
]


@pytest.mark.parametrize("mode", ["no gradient", "gradient"])
@pytest.mark.parametrize(
    ("change", "error", "message"), BAD, ids=[f"{next(iter(c))}-{i}" for i, (c, _, _) in enumerate(BAD)]
)
def test_bad_input_is_named(
    backend: Backend, change: dict[str, Any], error: type[Exception], message: str, mode: str
) -> None:
    loss = list(LOSSES)[len(message) % 3]
    boxes = [random_boxes(5, device=backend.device).requires_grad_(mode == "gradient") for _ in range(2)]
    moved = {
        k: v.to(backend.device) if isinstance(v, Tensor) and v.device.type == "cpu" else v for k, v in change.items()
    }
    arguments = {"boxes1": boxes[0], "boxes2": boxes[1], "reduction": "mean", "eps": 1e-7, **moved}
    function = getattr(sod_ops, loss)
    with pytest.raises(error, match=f"{loss}: {message}"):
        function(**arguments)


def test_operators_refuse_what_would_read_out_of_bounds() -> None:
    """The operators below the public functions guard themselves too."""
    boxes = random_boxes(5)
    options = (2, 1, 1e-7, True, True)
    forward, backward = torch.ops.sod_ops.box_iou_loss, torch.ops.sod_ops.box_iou_loss_backward
    for arguments in (
        (boxes[:, :3], boxes, *options),
        (boxes, boxes[:4], *options),
        (boxes[0], boxes[:1], *options),
        (boxes[None], boxes[None], *options),
        (boxes.t().contiguous().t(), boxes, *options),
        (boxes.double(), boxes, *options),
        (boxes.int(), boxes.int(), *options),
        (boxes, boxes, 6, 1, 1e-7, True, True),
        (boxes, boxes, -1, 1, 1e-7, True, True),
        (boxes, boxes, 2, 3, 1e-7, True, True),
        (boxes, boxes, 2, 1, 0.0, True, True),
        (boxes, boxes, 2, 1, float("nan"), True, True),
    ):
        with pytest.raises(RuntimeError, match="box_iou_loss"):
            forward(*arguments)
        with pytest.raises(RuntimeError, match="box_iou_loss"):
            backward(torch.ones(()), *arguments)
    for reduction, grad in ((1, torch.ones(5)), (0, torch.ones(())), (0, torch.ones(4)), (0, torch.ones(5).double()),
                            (0, torch.ones(10)[::2])):  # fmt: skip
        with pytest.raises(RuntimeError, match="grad_output"):
            backward(grad, boxes, boxes, 2, reduction, 1e-7, True, True)

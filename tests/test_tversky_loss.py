"""iou_loss, dice_loss and tversky_loss on every backend, against their formulas and against the reference in float64."""

from typing import Any

import pytest
import torch
from cases import FLOATING
from conftest import Backend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_sigmoid_focal_loss_contract import allocated
from test_structure_loss import LARGE, LAYOUTS, REDUCTIONS, SHAPES, Inputs, make
from tolerances import assert_accurate
from torch import Tensor

import sod_ops

FUNCTIONS = {"iou_loss": sod_ops.iou_loss, "dice_loss": sod_ops.dice_loss, "tversky_loss": sod_ops.tversky_loss}


def run(backend: str, given: Inputs, grad: Tensor, op: str = "tversky_loss", **kwargs: Any) -> list[Tensor]:
    """The loss and the gradient of every head."""
    leaves = [head.detach().requires_grad_() for head in given.heads]
    with sod_ops.use_backend(backend):
        loss = FUNCTIONS[op](leaves if len(leaves) > 1 else leaves[0], given.mask, **kwargs)
        return [loss.detach(), *torch.autograd.grad(loss, leaves, grad.to(loss.dtype))]


def check(backend: Backend, given: Inputs, op: str = "tversky_loss", **kwargs: Any) -> None:
    """Holds the loss and the gradients to those of the reference in float64."""
    shape = given.mask.shape[:1] if kwargs.get("reduction") == "none" else ()
    grad = torch.randn(shape, dtype=torch.float64, device=backend.device)
    if shape == () and backend.interpreted:
        # The interpreter truncates what it stores in bfloat16, and would do so twice where the stored gradient is scaled.
        grad = grad.fill_(-2.0)
    grad = grad.to(torch.promote_types(given.heads[0].dtype, given.mask.dtype))
    before = [tensor.detach().clone() for tensor in (*given.heads, given.mask)]
    exact_inputs = Inputs([head.double() for head in given.heads], given.mask.double())
    actual = run(backend.name, given, grad, op, **kwargs)
    plain = run("reference", given, grad, op, **kwargs)
    exact = run("reference", exact_inputs, grad.double(), op, **kwargs)
    for index, (a, p, e) in enumerate(zip(actual, plain, exact, strict=True)):
        assert_accurate(a, p, e, "forward" if index == 0 else f"head {index - 1}")
    for tensor, copy in zip((*given.heads, given.mask), before, strict=True):
        assert torch.equal(tensor.nan_to_num(), copy.nan_to_num()), "an input was changed"


# ---- What they compute ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smooth", [0.0, 1.0, 2.5])
def test_are_their_formulas(backend: Backend, smooth: float) -> None:
    (logits,), y = make((3, 1, 9, 11), torch.float64, backend.device)
    p = torch.sigmoid(logits)
    both, either = (p * y).sum((1, 2, 3)), (p + y - p * y).sum((1, 2, 3))
    options: dict[str, Any] = {"smooth": smooth, "reduction": "none"}
    expected = 1 - (both + smooth) / (either + smooth)
    torch.testing.assert_close(sod_ops.iou_loss(logits, y, **options), expected, rtol=1e-12, atol=0)
    expected = 1 - (2 * both + smooth) / ((p + y).sum((1, 2, 3)) + smooth)
    torch.testing.assert_close(sod_ops.dice_loss(logits, y, **options), expected, rtol=1e-12, atol=0)
    false, missed = (p * (1 - y)).sum((1, 2, 3)), ((1 - p) * y).sum((1, 2, 3))
    expected = 1 - (both + smooth) / (both + 0.2 * false + 0.9 * missed + smooth)
    torch.testing.assert_close(sod_ops.tversky_loss(logits, y, 0.2, 0.9, **options), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("op", FUNCTIONS)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, *LARGE], ids=str)
def test_shapes_and_dtypes(
    backend: Backend, shape: tuple[int, ...], dtype: torch.dtype, op: str, reduction: str
) -> None:
    if shape in LARGE and backend.interpreted:
        shape = (2, 1, 19, 21)
    check(backend, make(shape, dtype, backend.device), op, reduction=reduction)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layouts(backend: Backend, dtype: torch.dtype, layout: str) -> None:
    given = make((2, 1, 9, 7), dtype, backend.device, heads=2, layout=layout)
    for reduction in ("none", "mean"):
        check(backend, given, reduction=reduction)


@pytest.mark.parametrize("mask_dtype", [*FLOATING, torch.bool, torch.uint8, torch.int64], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_dtypes_of_masks(backend: Backend, dtype: torch.dtype, mask_dtype: torch.dtype) -> None:
    given = make((2, 1, 9, 7), dtype, backend.device, mask_dtype=mask_dtype)
    check(backend, given)
    assert sod_ops.iou_loss(given.heads[0], given.mask).dtype == torch.promote_types(dtype, mask_dtype)


@pytest.mark.parametrize("op", FUNCTIONS)
@pytest.mark.parametrize("value", [0.0, 1.0, 0.3])
def test_constant_masks(backend: Backend, value: float, op: str) -> None:
    """Empty, full and soft."""
    given = make((2, 1, 12, 9), device=backend.device)
    check(backend, Inputs(given.heads, torch.full_like(given.mask, value)), op)


@pytest.mark.parametrize("op", FUNCTIONS)
def test_saturated_logits(backend: Backend, op: str) -> None:
    """A perfect prediction has no loss, its opposite a loss of nearly 1; gradients are finite."""
    (_,), mask = make((2, 1, 12, 9), device=backend.device)
    for sign, expected in ((1.0, 0.0), (-1.0, 1.0)):
        logits = sign * (2 * mask - 1) * 3e4
        loss, gradient = run(backend.name, Inputs([logits], mask), torch.ones((), device=backend.device), op)
        assert loss.item() == pytest.approx(expected, abs=0.1)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("shape", [(0, 1, 4, 4), (2, 1, 0, 4), (2, 1, 4, 0)], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_empty(backend: Backend, shape: tuple[int, ...], reduction: str, smooth: float) -> None:
    """No samples: a mean of NaN, a sum of 0. No pixels: a loss of 0, or 0 / 0 without smoothing."""
    results = []
    for name in (backend.name, "reference"):
        given = Inputs([torch.zeros(shape, device=backend.device)], torch.zeros(shape, device=backend.device))
        grad = torch.ones(shape[:1] if reduction == "none" else (), device=backend.device)
        results.append(run(name, given, grad, reduction=reduction, smooth=smooth))
    for a, e in zip(*results, strict=True):
        torch.testing.assert_close(a, e, equal_nan=True)


# ---- Heads ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_heads_equal_the_sum_of_single_calls(backend: Backend, reduction: str) -> None:
    given = make((3, 1, 17, 13), device=backend.device, heads=2)
    check(backend, given, weights=[1.0, 0.5], reduction=reduction)
    one = torch.ones((3,) if reduction == "none" else (), device=backend.device)
    loss, *gradients = run(backend.name, given, one, reduction=reduction)
    single = [run(backend.name, Inputs([h], given.mask), one, reduction=reduction) for h in given.heads]
    torch.testing.assert_close(loss, single[0][0] + single[1][0], rtol=2e-7, atol=0)
    for gradient, (_, expected) in zip(gradients, single, strict=True):
        assert torch.equal(gradient, expected)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 5), st.just(1), st.integers(1, 40), st.integers(1, 40)),
    layout=st.sampled_from(["contiguous", *LAYOUTS]),
    dtype=st.sampled_from(FLOATING),
    mask_dtype=st.sampled_from([*FLOATING, torch.bool, torch.uint8]),
    heads=st.integers(1, 3),
    numbers=st.tuples(*[st.sampled_from([0.1, 0.3, 1.0, 2.0])] * 2, st.sampled_from([0.5, 1.0, 10.0])),
    reduction=st.sampled_from(REDUCTIONS),
)
def test_any_shape(
    shape: tuple[int, int, int, int],
    layout: str,
    dtype: torch.dtype,
    mask_dtype: torch.dtype,
    heads: int,
    numbers: tuple[float, float, float],
    reduction: str,
) -> None:
    given = make(shape, dtype, heads=heads, layout=layout, mask_dtype=mask_dtype)
    alpha, beta, smooth = numbers
    check(Backend("cpu", "cpu"), given, alpha=alpha, beta=beta, smooth=smooth, reduction=reduction)


# ---- Gradients, determinism, memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("op", FUNCTIONS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(backend: Backend, reduction: str, op: str) -> None:
    (first, second), mask = make((2, 1, 3, 4), torch.float64, backend.device, heads=2)
    soft = mask.clamp(0.2, 0.8).requires_grad_()

    def function(first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
        return FUNCTIONS[op]([first, second], mask, weights=(1.0, 0.5), reduction=reduction)

    for arguments in ((first.requires_grad_(), second.requires_grad_(), mask), (first, second.detach(), soft)):
        assert torch.autograd.gradcheck(function, arguments, fast_mode=backend.interpreted)
        assert torch.autograd.gradgradcheck(function, arguments, fast_mode=True)


def test_a_mean_costs_a_map_for_each_head(kernel_backend: Backend) -> None:
    given = make((4, 1, 48, 40), device=kernel_backend.device, heads=3, layout="channel_slice")
    leaves = [head.requires_grad_() for head in given.heads]
    size = given.mask.numel() * 4

    def step() -> Tensor:
        loss = sod_ops.iou_loss(leaves, given.mask)
        loss.backward()
        return loss

    assert 3 * size <= allocated(kernel_backend, step) < 3.5 * size


def test_deterministic(backend: Backend) -> None:
    given = make((3, 1, 37, 29) if backend.interpreted else (3, 1, 130, 97), device=backend.device, heads=2)
    torch.use_deterministic_algorithms(True)
    try:
        grad = torch.tensor(0.7, device=backend.device)
        first = run(backend.name, given, grad)
        for _ in range(1 if backend.interpreted else 5):
            for a, b in zip(run(backend.name, given, grad), first, strict=True):
                assert torch.equal(a, b)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("samples", [1, 5])
def test_does_not_depend_on_the_number_of_threads(samples: int) -> None:
    threads = torch.get_num_threads()
    given = make((samples, 1, 211, 97), heads=2)
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run("cpu", given, torch.tensor(1.0)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


# ---- PyTorch's other parts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", range(3))
def test_operators_pass_opcheck(kernel_backend: Backend, reduction: int) -> None:
    kernels = sod_ops.ops.tversky_loss._loss.select(kernel_backend.device)
    given = make((2, 1, 5, 6), device=kernel_backend.device, heads=2, mask_dtype=torch.bool)
    options = (0.3, 0.7, 1.0, [1.0, 0.5], reduction)
    for with_gradient in (False, True):
        leaves = [head.detach().requires_grad_() for head in given.heads]
        torch.library.opcheck(kernels.forward, (leaves, given.mask, *options, with_gradient))
    loss, _ = kernels.forward(given.heads, given.mask, *options, False)
    torch.library.opcheck(kernels.backward, (torch.rand_like(loss), given.heads, given.mask, *options))


@pytest.mark.parametrize("op", FUNCTIONS)
def test_compile(backend: Backend, op: str) -> None:
    torch._dynamo.reset()
    given = make((2, 1, 7, 9), device=backend.device, heads=2)
    compiled = torch.compile(FUNCTIONS[op], fullgraph=True, backend="aot_eager")
    for reduction in ("none", "mean"):
        grad = torch.full((2,) if reduction == "none" else (), -2.0, device=backend.device)
        expected = run(backend.name, given, grad, op, reduction=reduction)
        leaves = [head.detach().requires_grad_() for head in given.heads]
        loss = compiled(leaves, given.mask, reduction=reduction)
        for a, e in zip((loss, *torch.autograd.grad(loss, leaves, grad)), expected, strict=True):
            torch.testing.assert_close(a, e)


# ---- The modules ------------------------------------------------------------------------------------------------------


def test_modules() -> None:
    given = make(heads=2)
    options: dict[str, Any] = {"smooth": 0.5, "weights": [1, 0.5], "reduction": "sum"}
    for name, module in (
        ("iou_loss", sod_ops.nn.IoULoss(**options)),
        ("dice_loss", sod_ops.nn.DiceLoss(**options)),
        ("tversky_loss", sod_ops.nn.TverskyLoss(0.2, 0.9, **options)),
    ):
        extra = {"alpha": 0.2, "beta": 0.9} if name == "tversky_loss" else {}
        assert torch.equal(module(*given), FUNCTIONS[name](*given, **extra, **options))
        assert list(module.state_dict()) == []
    assert repr(module) == "TverskyLoss(alpha=0.2, beta=0.9, smooth=0.5, weights=(1, 0.5), reduction='sum')"
    with pytest.raises(ValueError, match="DiceLoss: smooth must be finite and 0 or more, got -1"):
        sod_ops.nn.DiceLoss(smooth=-1)
    with pytest.raises(TypeError, match="TverskyLoss: alpha must be a number, got 'a'"):
        sod_ops.nn.TverskyLoss(alpha="a")


# ---- Bad input --------------------------------------------------------------------------------------------------------

T = torch.zeros
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"logits": None}, TypeError, "logits must be a Tensor or a list or tuple of them, got NoneType"),
    ({"logits": []}, ValueError, "logits must be a head or more, got none"),
    ({"logits": [T(2, 1, 4, 4), T(2, 1, 2, 2)]}, ValueError, r"logits\[1\] must be of the size of mask, 4x4.*got 2x2"),
    ({"logits": T(2, 2, 4, 4)}, ValueError, r"mask must be of .* got \[2, 1, 4, 4\]; .*out\[:, :1\]"),
    ({"mask": T(2, 4, 4)}, ValueError, r"mask must be of .*\[2, 4, 4\]; .*mask.unsqueeze\(1\)"),
    ({"mask": T(2, 1, 4, 4, dtype=torch.complex64)}, TypeError, "mask must be floating, bool, uint8"),
    ({"smooth": -1.0}, ValueError, "smooth must be finite and 0 or more, got -1.0"),
    ({"smooth": float("nan")}, ValueError, "smooth must be finite and 0 or more, got nan"),
    ({"smooth": "1"}, TypeError, "smooth must be a number, got '1'"),
    ({"weights": [1.0, 2.0]}, ValueError, "weights must be a number for each of 1 heads, got 2"),
    ({"reduction": "avg"}, ValueError, "reduction must be one of 'none', 'mean', 'sum', got 'avg'"),
]


@pytest.mark.parametrize("op", FUNCTIONS)
@pytest.mark.parametrize(
    ("change", "error", "message"), BAD, ids=[f"{next(iter(c))}-{i}" for i, (c, _, _) in enumerate(BAD)]
)
def test_bad_input_is_named(
    backend: Backend, change: dict[str, Any], error: type[Exception], message: str, op: str
) -> None:
    good = {"logits": T(2, 1, 4, 4), "mask": T(2, 1, 4, 4)}

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(item) for item in value]
        return value.to(backend.device) if isinstance(value, Tensor) else value

    with pytest.raises(error, match=f"{op}: {message}"):
        FUNCTIONS[op](**{name: moved(value) for name, value in {**good, **change}.items()})


@pytest.mark.parametrize(("argument", "value"), [("alpha", -0.5), ("beta", float("inf"))])
def test_bad_weights_of_errors_are_named(backend: Backend, argument: str, value: float) -> None:
    x = T(2, 1, 4, 4, device=backend.device)
    with pytest.raises(ValueError, match=f"tversky_loss: {argument} must be finite and 0 or more, got {value}"):
        sod_ops.tversky_loss(x, x, **{argument: value})


def test_operators_refuse_what_would_read_out_of_bounds() -> None:
    """The operators below the public functions guard themselves too."""
    x, y = T(2, 1, 4, 4), T(2, 1, 4, 4)
    operator, backward = torch.ops.sod_ops.tversky_loss, torch.ops.sod_ops.tversky_loss_backward
    for heads, mask, alpha, weights, reduction in (
        ([], y, 0.5, [], 1),
        ([x], y, 0.5, [], 1),
        ([x], y[:1], 0.5, [1.0], 1),
        ([x[:, 0]], y[:, 0], 0.5, [1.0], 1),
        ([x], y, -1.0, [1.0], 1),
        ([x], y, 0.5, [1.0], 3),
    ):
        with pytest.raises(RuntimeError, match="tversky_loss"):
            operator(heads, mask, alpha, 0.5, 1.0, weights, reduction, False)
    with pytest.raises(RuntimeError, match="grad_output"):
        backward(T(1), [x], y, 0.5, 0.5, 1.0, [1.0], 0)

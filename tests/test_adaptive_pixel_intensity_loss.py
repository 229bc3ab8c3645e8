"""adaptive_pixel_intensity_loss on every backend, against the published code's formula and its reference in float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import FLOATING
from conftest import Backend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_sigmoid_focal_loss_contract import allocated
from test_structure_loss import LARGE, LAYOUTS, REDUCTIONS, SHAPES, Inputs
from test_structure_loss import make as make_logits
from tolerances import assert_accurate
from torch import Tensor

import sod_ops

OP = "adaptive_pixel_intensity_loss"


def make(*args: Any, **kwargs: Any) -> Inputs:
    """Probabilities, a few of them exactly 0 or 1, and a mask of blobs.

    Never in float16 alone, where plain PyTorch divides by an underflowed 1e-12.
    """
    heads, mask = make_logits(*args, **kwargs)
    if torch.promote_types(heads[0].dtype, mask.dtype) == torch.float16:
        mask = mask.float()
    for head in heads:
        if 0 not in head.stride():
            head.copy_(head.double().mul(3).sigmoid().mul(1.02).sub(0.01).clamp(0, 1))
        else:
            head.data = head[:1].double().sigmoid().to(head.dtype).expand(head.shape)
    return Inputs(heads, mask)


def run(backend: str, given: Inputs, grad: Tensor, **kwargs: Any) -> list[Tensor]:
    """The loss and the gradient of every head."""
    leaves = [head.detach().requires_grad_() for head in given.heads]
    with sod_ops.use_backend(backend):
        heads = leaves if len(leaves) > 1 else leaves[0]
        loss = sod_ops.adaptive_pixel_intensity_loss(heads, given.mask, **kwargs)
        return [loss.detach(), *torch.autograd.grad(loss, leaves, grad.to(loss.dtype))]


def check(backend: Backend, given: Inputs, **kwargs: Any) -> None:
    """Holds the loss and the gradients to those of the reference in float64."""
    shape = given.mask.shape[:1] if kwargs.get("reduction") == "none" else ()
    grad = torch.randn(shape, dtype=torch.float64, device=backend.device)
    if shape == () and backend.interpreted:
        # The interpreter truncates what it stores in bfloat16, and would do so twice where the stored gradient is scaled.
        grad = grad.fill_(-2.0)
    grad = grad.to(torch.promote_types(given.heads[0].dtype, given.mask.dtype))
    before = [tensor.detach().clone() for tensor in (*given.heads, given.mask)]
    exact_inputs = Inputs([head.double() for head in given.heads], given.mask.double())
    actual = run(backend.name, given, grad, **kwargs)
    plain = run("reference", given, grad, **kwargs)
    exact = run("reference", exact_inputs, grad.double(), **kwargs)
    for index, (a, p, e) in enumerate(zip(actual, plain, exact, strict=True)):
        assert_accurate(a, p, e, "forward" if index == 0 else f"head {index - 1}")
    for tensor, copy in zip((*given.heads, given.mask), before, strict=True):
        assert torch.equal(tensor.nan_to_num(), copy.nan_to_num()), "an input was changed"


# ---- What it computes -------------------------------------------------------------------------------------------------


def published(probabilities: Tensor, mask: Tensor, legacy: bool | None) -> Tensor:
    """The formula of the published code, statement by statement; ``legacy`` is what its ``reduce`` arguments are."""
    w1, w2, w3 = (torch.abs(F.avg_pool2d(mask, window, stride=1, padding=window // 2) - mask) for window in (3, 15, 31))
    omega = 1 + 0.5 * (w1 + w2 + w3) * mask
    bce = F.binary_cross_entropy(probabilities, mask, reduce=legacy)
    abce = (omega * bce).sum(dim=(2, 3)) / (omega + 0.5).sum(dim=(2, 3))
    intersection = ((probabilities * mask) * omega).sum(dim=(2, 3))
    union = ((probabilities + mask) * omega).sum(dim=(2, 3))
    aiou = 1 - (intersection + 1) / (union - intersection + 1)
    mae = F.l1_loss(probabilities, mask, reduce=legacy)
    amae = (omega * mae).sum(dim=(2, 3)) / (omega - 1).sum(dim=(2, 3))
    return (0.7 * abce + 0.7 * aiou + 0.7 * amae).mean()


@pytest.mark.filterwarnings("ignore:size_average and reduce args will be deprecated")
@pytest.mark.parametrize("as_published", [False, True])
@pytest.mark.parametrize("shape", [(2, 1, 33, 35), (3, 1, 40, 31)], ids=str)
def test_is_the_published_function(backend: Backend, shape: tuple[int, ...], as_published: bool) -> None:
    """``reduce=None`` leaves the default, a mean; ``reduce=False`` is what its authors meant."""
    (p,), mask = make(shape, torch.float64, backend.device)
    p = p.clamp(1e-3, 1 - 1e-3)
    leaves = [p.clone().requires_grad_() for _ in range(2)]
    losses = (
        sod_ops.adaptive_pixel_intensity_loss(leaves[0], mask, as_published=as_published),
        published(leaves[1], mask, None if as_published else False),
    )
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
    found = [torch.autograd.grad(loss, leaf)[0] for loss, leaf in zip(losses, leaves, strict=True)]
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-16)


@pytest.mark.parametrize("as_published", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, *LARGE], ids=str)
def test_shapes_and_dtypes(
    backend: Backend, shape: tuple[int, ...], dtype: torch.dtype, reduction: str, as_published: bool
) -> None:
    if shape in LARGE and backend.interpreted:
        shape = (2, 1, 19, 21)
    check(backend, make(shape, dtype, backend.device), reduction=reduction, as_published=as_published)


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
    loss = sod_ops.adaptive_pixel_intensity_loss(*given.heads, given.mask)
    assert loss.dtype == torch.promote_types(dtype, mask_dtype)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("as_published", [False, True])
def test_constant_masks(backend: Backend, value: float, as_published: bool) -> None:
    """Empty, full and soft: finite, also beside a mask that is not; of an empty one the error is a plain mean."""
    given = make((3, 1, 12, 9), device=backend.device)
    given.mask[1:] = value
    check(backend, given, as_published=as_published)
    loss, gradient = run(backend.name, given, torch.ones((), device=backend.device), as_published=as_published)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    empty, p = torch.zeros(1, 1, 6, 5, device=backend.device), torch.full((1, 1, 6, 5), 0.25, device=backend.device)
    expected = 0.7 * (-torch.tensor(0.75).log().item() / 1.5 + 1 - 1 / (0.25 * 30 + 1) + 0.25)
    found = sod_ops.adaptive_pixel_intensity_loss(p, empty, as_published=as_published)
    assert found.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("as_published", [False, True])
def test_certain_probabilities(backend: Backend, as_published: bool) -> None:
    """Right or wrong, 0 and 1 cost what PyTorch's binary_cross_entropy makes of them: 0 or 100."""
    _, mask = make((2, 1, 12, 9), device=backend.device)
    for p in (mask, 1 - mask, mask * 0, mask * 0 + 1):
        check(backend, Inputs([p], mask), as_published=as_published)


@pytest.mark.parametrize("shape", [(0, 1, 4, 4), (2, 1, 0, 4), (2, 1, 4, 0)], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_empty(backend: Backend, shape: tuple[int, ...], reduction: str) -> None:
    results = []
    for name in (backend.name, "reference"):
        given = Inputs([torch.zeros(shape, device=backend.device)], torch.zeros(shape, device=backend.device))
        grad = torch.ones(shape[:1] if reduction == "none" else (), device=backend.device)
        results.append(run(name, given, grad, reduction=reduction))
    for a, e in zip(*results, strict=True):
        torch.testing.assert_close(a, e, equal_nan=True)


@pytest.mark.parametrize("as_published", [False, True])
def test_heads_equal_the_sum_of_single_calls(backend: Backend, as_published: bool) -> None:
    given = make((3, 1, 17, 13), device=backend.device, heads=2)
    check(backend, given, weights=[1.0, 0.5], as_published=as_published)
    one = torch.ones((), device=backend.device)
    loss, *gradients = run(backend.name, given, one, as_published=as_published)
    single = [run(backend.name, Inputs([h], given.mask), one, as_published=as_published) for h in given.heads]
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
    reduction=st.sampled_from(REDUCTIONS),
    as_published=st.booleans(),
)
def test_any_shape(
    shape: tuple[int, int, int, int],
    layout: str,
    dtype: torch.dtype,
    mask_dtype: torch.dtype,
    heads: int,
    reduction: str,
    as_published: bool,
) -> None:
    given = make(shape, dtype, heads=heads, layout=layout, mask_dtype=mask_dtype)
    check(Backend("cpu", "cpu"), given, reduction=reduction, as_published=as_published)


# ---- Gradients, determinism, memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("as_published", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(backend: Backend, reduction: str, as_published: bool) -> None:
    _, mask = make((2, 1, 3, 4), torch.float64, backend.device)
    # Off the corners of the absolute values.
    first, second = (torch.rand_like(mask) * 0.3 + 0.35 for _ in range(2))
    soft = mask.clamp(0.2, 0.8).add(torch.rand_like(mask) * 0.1).requires_grad_()

    def function(first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
        return sod_ops.adaptive_pixel_intensity_loss(
            [first, second], mask, as_published=as_published, weights=(1.0, 0.5), reduction=reduction
        )

    for arguments in ((first.requires_grad_(), second.requires_grad_(), mask), (first, second.detach(), soft)):
        assert torch.autograd.gradcheck(function, arguments, fast_mode=backend.interpreted)
        assert torch.autograd.gradgradcheck(function, arguments, fast_mode=True)


@pytest.mark.parametrize("as_published", [False, True])
def test_memory(kernel_backend: Backend, as_published: bool) -> None:
    """Beyond inputs and gradients, at most two maps of the mask's size, whatever the number of heads."""
    given = make((4, 1, 48, 40), device=kernel_backend.device, heads=3, layout="channel_slice")
    leaves = [head.requires_grad_() for head in given.heads]
    size = given.mask.numel() * 4

    def step() -> Tensor:
        loss = sod_ops.adaptive_pixel_intensity_loss(leaves, given.mask, as_published=as_published)
        loss.backward()
        return loss

    assert 3 * size <= allocated(kernel_backend, step) < (3 + 2.5) * size


@pytest.mark.parametrize("as_published", [False, True])
def test_deterministic(backend: Backend, as_published: bool) -> None:
    given = make((3, 1, 37, 29) if backend.interpreted else (3, 1, 130, 97), device=backend.device, heads=2)
    torch.use_deterministic_algorithms(True)
    try:
        grad = torch.tensor(0.7, device=backend.device)
        first = run(backend.name, given, grad, as_published=as_published)
        for _ in range(1 if backend.interpreted else 5):
            for a, b in zip(run(backend.name, given, grad, as_published=as_published), first, strict=True):
                assert torch.equal(a, b)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("as_published", [False, True])
@pytest.mark.parametrize("samples", [1, 5])
def test_does_not_depend_on_the_number_of_threads(samples: int, as_published: bool) -> None:
    threads = torch.get_num_threads()
    given = make((samples, 1, 211, 97), heads=2)
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run("cpu", given, torch.tensor(1.0), as_published=as_published))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


# ---- PyTorch's other parts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", range(3))
def test_operators_pass_opcheck(kernel_backend: Backend, reduction: int) -> None:
    kernels = sod_ops.ops.adaptive_pixel_intensity_loss._loss.select(kernel_backend.device)
    given = make((2, 1, 5, 6), device=kernel_backend.device, heads=2, mask_dtype=torch.bool)
    options = (False, [1.0, 0.5], reduction)
    for with_gradient in (False, True):
        leaves = [head.detach().requires_grad_() for head in given.heads]
        torch.library.opcheck(kernels.forward, (leaves, given.mask, *options, with_gradient))
    loss, _ = kernels.forward(given.heads, given.mask, *options, False)
    torch.library.opcheck(kernels.backward, (torch.rand_like(loss), given.heads, given.mask, *options))


@pytest.mark.parametrize("as_published", [False, True])
def test_compile(backend: Backend, as_published: bool) -> None:
    torch._dynamo.reset()
    given = make((2, 1, 7, 9), device=backend.device, heads=2)
    compiled = torch.compile(sod_ops.adaptive_pixel_intensity_loss, fullgraph=True, backend="aot_eager")
    for reduction in ("none", "mean"):
        grad = torch.full((2,) if reduction == "none" else (), -2.0, device=backend.device)
        expected = run(backend.name, given, grad, reduction=reduction, as_published=as_published)
        leaves = [head.detach().requires_grad_() for head in given.heads]
        loss = compiled(leaves, given.mask, reduction=reduction, as_published=as_published)
        for a, e in zip((loss, *torch.autograd.grad(loss, leaves, grad)), expected, strict=True):
            torch.testing.assert_close(a, e)


def test_module() -> None:
    given = make(heads=2)
    options: dict[str, Any] = {"as_published": True, "weights": [1, 0.5], "reduction": "sum"}
    module = sod_ops.nn.AdaptivePixelIntensityLoss(**options)
    assert torch.equal(module(*given), sod_ops.adaptive_pixel_intensity_loss(*given, **options))
    assert repr(module) == "AdaptivePixelIntensityLoss(as_published=True, weights=(1, 0.5), reduction='sum')"
    assert list(module.state_dict()) == []
    with pytest.raises(TypeError, match="AdaptivePixelIntensityLoss: as_published must be a bool, got 1"):
        sod_ops.nn.AdaptivePixelIntensityLoss(as_published=1)


# ---- Bad input --------------------------------------------------------------------------------------------------------

T = torch.zeros
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"probabilities": None}, TypeError, "probabilities must be a Tensor or a list or tuple of them, got NoneType"),
    ({"probabilities": []}, ValueError, "probabilities must be a head or more, got none"),
    (
        {"probabilities": [T(2, 1, 4, 4), T(2, 1, 2, 2)]},
        ValueError,
        r"probabilities\[1\] must be of the size of mask, 4x4.*got 2x2",
    ),
    ({"probabilities": T(2, 2, 4, 4)}, ValueError, r"mask must be of .* got \[2, 1, 4, 4\]; .*out\[:, :1\]"),
    ({"mask": T(2, 4, 4)}, ValueError, r"mask must be of .*\[2, 4, 4\]; .*mask.unsqueeze\(1\)"),
    ({"mask": T(2, 1, 4, 4, dtype=torch.complex64)}, TypeError, "mask must be floating, bool, uint8"),
    ({"as_published": 1}, TypeError, r"as_published must be a bool, got 1 \(int\)"),
    ({"weights": [1.0, 2.0]}, ValueError, "weights must be a number for each of 1 heads, got 2"),
    ({"reduction": "avg"}, ValueError, "reduction must be one of 'none', 'mean', 'sum', got 'avg'"),
]


@pytest.mark.parametrize(
    ("change", "error", "message"), BAD, ids=[f"{next(iter(c))}-{i}" for i, (c, _, _) in enumerate(BAD)]
)
def test_bad_input_is_named(backend: Backend, change: dict[str, Any], error: type[Exception], message: str) -> None:
    good = {"probabilities": T(2, 1, 4, 4), "mask": T(2, 1, 4, 4)}

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(item) for item in value]
        return value.to(backend.device) if isinstance(value, Tensor) else value

    with pytest.raises(error, match=f"{OP}: {message}"):
        sod_ops.adaptive_pixel_intensity_loss(**{n: moved(v) for n, v in {**good, **change}.items()})


@pytest.mark.parametrize("value", [-0.25, 1.5])
def test_probabilities_outside_their_range_are_an_error_on_the_cpu(value: float) -> None:
    p = T(2, 1, 37, 19)
    p[1, 0, 36, 18] = value
    for name in ("cpu", "reference"):
        with (
            sod_ops.use_backend(name),
            pytest.raises(ValueError, match=rf"{OP}: probabilities must be in \[0, 1\], got .*{value:g}"),
        ):
            sod_ops.adaptive_pixel_intensity_loss([p * 0, p], p * 0)


def test_operators_refuse_what_would_read_out_of_bounds() -> None:
    """The operators below the public function guard themselves too."""
    x, y = T(2, 1, 4, 4), T(2, 1, 4, 4)
    operator = torch.ops.sod_ops.adaptive_pixel_intensity_loss
    for heads, mask, weights, reduction in (
        ([], y, [], 1),
        ([x], y, [], 1),
        ([x], y[:1], [1.0], 1),
        ([x[:, 0]], y[:, 0], [1.0], 1),
        ([x], y, [1.0], 3),
    ):
        with pytest.raises(RuntimeError, match=OP):
            operator(heads, mask, False, weights, reduction, False)
    with pytest.raises(RuntimeError, match="grad_output"):
        torch.ops.sod_ops.adaptive_pixel_intensity_loss_backward(T(1), [x], y, False, [1.0], 0)

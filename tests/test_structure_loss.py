"""structure_loss on every backend, against the published code's formula and against its reference in float64."""

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from cases import FLOATING, MapCase
from conftest import Backend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_sigmoid_focal_loss_contract import allocated
from tolerances import assert_accurate
from torch import Tensor

import sod_ops

REDUCTIONS = ("none", "mean", "sum")
SHAPES = ((2, 1, 16, 16), (3, 1, 7, 11), (1, 1, 1, 1), (5, 1, 1, 17), (1, 1, 23, 1))
LARGE = ((3, 1, 61, 67), (1, 1, 130, 97), (17, 1, 31, 31))
LAYOUTS = ("channel_slice", "channels_last_slice", "sample_slice", "crop", "transposed", "expanded")


class Inputs(NamedTuple):
    heads: list[Tensor]
    mask: Tensor


def make(
    shape: tuple[int, ...] = SHAPES[0],
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    *,
    heads: int = 1,
    layout: str = "contiguous",
    mask_dtype: torch.dtype | None = None,
) -> Inputs:
    """Logits spread widely enough to saturate some, and a mask of blobs."""
    case = MapCase(shape, layout)
    logits = [case.build(dtype, device) for _ in range(heads)]
    coarse = torch.rand(shape[0], 1, -(-shape[2] // 4), -(-shape[3] // 4))
    mask = F.interpolate(coarse, shape[2:], mode="nearest") > 0.5
    laid_out = case.build(torch.float64, device).mul(0)
    return Inputs(logits, (laid_out + mask.to(device)).to(mask_dtype or dtype))


def run(backend: str, given: Inputs, grad: Tensor, *options: Any, **kwargs: Any) -> list[Tensor]:
    """The loss and the gradient of every head."""
    leaves = [head.detach().requires_grad_() for head in given.heads]
    with sod_ops.use_backend(backend):
        loss = sod_ops.structure_loss(leaves if len(leaves) > 1 else leaves[0], given.mask, *options, **kwargs)
        return [loss.detach(), *torch.autograd.grad(loss, leaves, grad.to(loss.dtype))]


def check(backend: Backend, given: Inputs, *options: Any, **kwargs: Any) -> None:
    """Holds the loss and the gradients to those of the reference in float64."""
    shape = given.mask.shape[:1] if kwargs.get("reduction") == "none" else ()
    grad = torch.randn(shape, dtype=torch.float64, device=backend.device)
    if shape == () and backend.interpreted:
        # The interpreter truncates what it stores in bfloat16, and would do so twice where the stored gradient is scaled.
        grad = grad.fill_(-2.0)
    grad = grad.to(torch.promote_types(given.heads[0].dtype, given.mask.dtype))
    before = [tensor.detach().clone() for tensor in (*given.heads, given.mask)]
    exact_inputs = Inputs([head.double() for head in given.heads], given.mask.double())
    actual = run(backend.name, given, grad, *options, **kwargs)
    plain = run("reference", given, grad, *options, **kwargs)
    exact = run("reference", exact_inputs, grad.double(), *options, **kwargs)
    for index, (a, p, e) in enumerate(zip(actual, plain, exact, strict=True)):
        assert_accurate(a, p, e, "forward" if index == 0 else f"head {index - 1}")
    for tensor, copy in zip((*given.heads, given.mask), before, strict=True):
        assert torch.equal(tensor.nan_to_num(), copy.nan_to_num()), "an input was changed"


# ---- What it computes -------------------------------------------------------------------------------------------------


def published(logits: Tensor, mask: Tensor, legacy: str | bool, window: int = 31) -> Tensor:
    """The formula of the published code, statement by statement; ``legacy`` is what its ``reduce`` argument is."""
    weights = 1 + 5 * torch.abs(F.avg_pool2d(mask, window, stride=1, padding=window // 2) - mask)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, mask, reduce=legacy)
    weighted = (weights * cross_entropy).sum(dim=(2, 3)) / weights.sum(dim=(2, 3))
    probabilities = torch.sigmoid(logits)
    intersection = ((probabilities * mask) * weights).sum(dim=(2, 3))
    union = ((probabilities + mask) * weights).sum(dim=(2, 3))
    overlap = 1 - (intersection + 1) / (union - intersection + 1)
    return (weighted + overlap).mean()


@pytest.mark.filterwarnings("ignore:size_average and reduce args will be deprecated")
@pytest.mark.parametrize("as_published", [False, True])
@pytest.mark.parametrize("shape", [(2, 1, 33, 35), (3, 1, 40, 31)], ids=str)
def test_is_the_published_function(backend: Backend, shape: tuple[int, ...], as_published: bool) -> None:
    """``reduce='none'`` is true, and makes the cross entropy a mean; ``reduce=False`` is what its authors meant."""
    (logits,), mask = make(shape, torch.float64, backend.device)
    leaves = [logits.clone().requires_grad_() for _ in range(2)]
    losses = (
        sod_ops.structure_loss(leaves[0], mask, as_published=as_published),
        published(leaves[1], mask, "none" if as_published else False),
    )
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
    found = [torch.autograd.grad(loss, leaf)[0] for loss, leaf in zip(losses, leaves, strict=True)]
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-16)


def test_the_two_forms_differ(backend: Backend) -> None:
    (logits,), mask = make(device=backend.device)
    forms = [sod_ops.structure_loss(logits, mask, as_published=form) for form in (False, True)]
    assert abs(forms[0] - forms[1]) > 1e-3


@pytest.mark.parametrize("as_published", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, *LARGE], ids=str)
def test_shapes_and_dtypes(
    backend: Backend, shape: tuple[int, ...], dtype: torch.dtype, reduction: str, as_published: bool
) -> None:
    if shape in LARGE and backend.interpreted:
        shape = (2, 1, 19, 21)
    check(backend, make(shape, dtype, backend.device), 5, reduction=reduction, as_published=as_published)


@pytest.mark.parametrize("as_published", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layouts(backend: Backend, dtype: torch.dtype, layout: str, as_published: bool) -> None:
    given = make((2, 1, 9, 7), dtype, backend.device, heads=2, layout=layout)
    for reduction in ("none", "mean"):
        check(backend, given, 3, reduction=reduction, as_published=as_published)


@pytest.mark.parametrize("kernel_size", [1, 3, 31, 101])
def test_windows(backend: Backend, kernel_size: int) -> None:
    """Larger than the image too."""
    for shape in ((2, 1, 13, 37), (1, 1, 40, 5)):
        check(backend, make(shape, device=backend.device), kernel_size)


@pytest.mark.parametrize("mask_dtype", [*FLOATING, torch.bool, torch.uint8, torch.int64], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_dtypes_of_masks(backend: Backend, dtype: torch.dtype, mask_dtype: torch.dtype) -> None:
    given = make((2, 1, 9, 7), dtype, backend.device, mask_dtype=mask_dtype)
    check(backend, given, 3)
    assert sod_ops.structure_loss(*given.heads, given.mask).dtype == torch.promote_types(dtype, mask_dtype)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("as_published", [False, True])
def test_constant_masks(backend: Backend, value: float, as_published: bool) -> None:
    """Empty, full and soft."""
    given = make((2, 1, 12, 9), device=backend.device)
    check(backend, Inputs(given.heads, torch.full_like(given.mask, value)), 5, as_published=as_published)


@pytest.mark.parametrize("as_published", [False, True])
def test_masks_outside_0_and_1_are_taken_as_they_are(backend: Backend, as_published: bool) -> None:
    given = make((2, 1, 12, 9), device=backend.device)
    check(backend, Inputs(given.heads, given.mask * 1.5 - 0.25), 5, as_published=as_published)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_saturated_logits(backend: Backend, dtype: torch.dtype) -> None:
    sizes = torch.tensor([0.0, 15.0, 30.0, 88.0, 104.0, 740.0, 3e4], dtype=torch.float64)
    logits = torch.cat([sizes, -sizes]).to(dtype).to(backend.device)[None, None, :, None].expand(2, 1, 14, 3).clone()
    for value in (0.0, 1.0):
        # Beside a float32 mask plain PyTorch's sums are float32 too; in float16 they overflow.
        given = Inputs([logits], torch.full_like(logits, value, dtype=torch.promote_types(dtype, torch.float32)))
        check(backend, given, 3)
        assert all(tensor.isfinite().all() for tensor in run(backend.name, given, torch.ones(()), 3))


@pytest.mark.parametrize("shape", [(0, 1, 4, 4), (2, 1, 0, 4), (2, 1, 4, 0)], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_empty(backend: Backend, shape: tuple[int, ...], reduction: str) -> None:
    """No samples: a mean of NaN, a sum of 0. No pixels: 0 / 0."""
    results = []
    for name in (backend.name, "reference"):
        given = Inputs([torch.zeros(shape, device=backend.device)], torch.zeros(shape, device=backend.device))
        grad = torch.ones(shape[:1] if reduction == "none" else (), device=backend.device)
        results.append(run(name, given, grad, reduction=reduction))
    for a, e in zip(*results, strict=True):
        torch.testing.assert_close(a, e, equal_nan=True)


# ---- Heads ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_published", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_heads(backend: Backend, dtype: torch.dtype, reduction: str, as_published: bool) -> None:
    weights = [1.0, 0.5, 0.25]
    given = make((2, 1, 11, 13), dtype, backend.device, heads=3)
    check(backend, given, 5, reduction=reduction, as_published=as_published, weights=weights)


@pytest.mark.parametrize("as_published", [False, True])
def test_heads_equal_the_sum_of_single_calls(backend: Backend, as_published: bool) -> None:
    given = make((3, 1, 17, 13), device=backend.device, heads=2)
    one = torch.ones((), device=backend.device)
    loss, *gradients = run(backend.name, given, one, as_published=as_published)
    single = [run(backend.name, Inputs([h], given.mask), one, as_published=as_published) for h in given.heads]
    torch.testing.assert_close(loss, single[0][0] + single[1][0], rtol=2e-7, atol=0)
    for gradient, (_, expected) in zip(gradients, single, strict=True):
        assert torch.equal(gradient, expected)


def test_a_tuple_and_a_head_without_gradient(backend: Backend) -> None:
    given = make(device=backend.device, heads=2)
    leaf = given.heads[0].requires_grad_()
    loss = sod_ops.structure_loss((leaf, given.heads[1]), given.mask)
    (found,) = torch.autograd.grad(loss, leaf)
    assert torch.equal(found, run(backend.name, given, torch.ones((), device=backend.device))[1])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 5), st.just(1), st.integers(1, 40), st.integers(1, 40)),
    layout=st.sampled_from(["contiguous", *LAYOUTS]),
    dtype=st.sampled_from(FLOATING),
    mask_dtype=st.sampled_from([*FLOATING, torch.bool, torch.uint8]),
    heads=st.integers(1, 3),
    kernel_size=st.integers(0, 40).map(lambda half: 2 * half + 1),
    reduction=st.sampled_from(REDUCTIONS),
    as_published=st.booleans(),
)
def test_any_shape(
    shape: tuple[int, int, int, int],
    layout: str,
    dtype: torch.dtype,
    mask_dtype: torch.dtype,
    heads: int,
    kernel_size: int,
    reduction: str,
    as_published: bool,
) -> None:
    given = make(shape, dtype, heads=heads, layout=layout, mask_dtype=mask_dtype)
    check(Backend("cpu", "cpu"), given, kernel_size, reduction=reduction, as_published=as_published)


# ---- Gradients, determinism, memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("as_published", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(backend: Backend, reduction: str, as_published: bool) -> None:
    (first, second), mask = make((2, 1, 3, 4), torch.float64, backend.device, heads=2)
    # Off the corners of the absolute value, where the mask equals its average.
    soft = mask.clamp(0.2, 0.8).add(torch.rand_like(mask) * 0.1).requires_grad_()

    def function(first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
        options = {"as_published": as_published, "weights": (1.0, 0.5), "reduction": reduction}
        return sod_ops.structure_loss([first, second], mask, 3, **options)

    for arguments in ((first.requires_grad_(), second.requires_grad_(), mask), (first, second.detach(), soft)):
        assert torch.autograd.gradcheck(function, arguments, fast_mode=backend.interpreted)
        assert torch.autograd.gradgradcheck(function, arguments, fast_mode=True)


def test_backward_twice(backend: Backend) -> None:
    """retain_graph: each time with the gradient that comes in, whatever became of what the first time returned."""
    given = make(device=backend.device, heads=2)
    leaves = [head.requires_grad_() for head in given.heads]
    for reduction in REDUCTIONS:
        loss = sod_ops.structure_loss(leaves, given.mask, reduction=reduction)
        first = torch.autograd.grad(loss, leaves, torch.full_like(loss, 4.0), retain_graph=True)
        copies = [gradient.clone() for gradient in first]
        for gradient in first:
            gradient.zero_()
        for factor in (1.0, -2.0):
            again = torch.autograd.grad(loss, leaves, torch.full_like(loss, factor), retain_graph=True)
            for a, e in zip(again, copies, strict=True):
                torch.testing.assert_close(a, e * (factor / 4), rtol=1e-6, atol=1e-9)


def test_float16_with_a_loss_scale(backend: Backend) -> None:
    """A mean's gradient that float16 cannot hold before the loss scale lifts it."""
    shape = (2, 1, 20, 20) if backend.interpreted else (4, 1, 96, 96)
    given = make(shape, torch.float16, backend.device)
    scale = torch.tensor(2.0**15, device=backend.device)
    actual = run(backend.name, Inputs(given.heads, given.mask.float()), scale)[1]
    exact = run("reference", Inputs([given.heads[0].double()], given.mask.double()), scale)[1]
    torch.testing.assert_close(actual.double(), exact, rtol=2e-3, atol=1e-4 * exact.abs().max().item())


@pytest.mark.parametrize("layout", ["contiguous", "channel_slice", "channels_last_slice"])
def test_memory(kernel_backend: Backend, layout: str) -> None:
    """Beyond inputs and gradients, at most two maps of the mask's size, whatever the number of heads; slices stay."""
    given = make((4, 1, 48, 40), device=kernel_backend.device, heads=3, layout=layout)
    leaves = [head.requires_grad_() for head in given.heads]
    size = given.mask.numel() * 4

    def step() -> Tensor:
        loss = sod_ops.structure_loss(leaves, given.mask)
        loss.backward()
        return loss

    assert 3 * size <= allocated(kernel_backend, step) < (3 + 2.5) * size


def test_memory_format_of_gradients(kernel_backend: Backend) -> None:
    for layout in ("contiguous", *LAYOUTS):
        given = make((2, 1, 6, 5), device=kernel_backend.device, layout=layout)
        _, gradient = run(kernel_backend.name, given, torch.ones((), device=kernel_backend.device))
        assert gradient.stride() == torch.empty_like(given.heads[0]).stride()


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


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_does_not_depend_on_the_number_of_threads(samples: int) -> None:
    """Threads that share a sample and threads that have samples of their own."""
    threads = torch.get_num_threads()
    given = make((samples, 1, 211, 97), heads=2)
    results = []
    try:
        for count in (1, 2, 3, 4):
            torch.set_num_threads(count)
            results.append(run("cpu", given, torch.tensor(1.0)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


# ---- PyTorch's other parts --------------------------------------------------------------------------------------------


def test_func_transforms(backend: Backend) -> None:
    (logits,), mask = make((3, 1, 4, 5), torch.float64, backend.device)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return sod_ops.structure_loss(x, y, 3, reduction="sum")

    leaf = logits.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf, mask), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(logits, mask), expected)
    each = torch.func.vmap(torch.func.grad(loss))(logits.unsqueeze(1), mask.unsqueeze(1))
    torch.testing.assert_close(each.squeeze(1), expected)


@pytest.mark.parametrize("reduction", range(3))
def test_operators_pass_opcheck(kernel_backend: Backend, reduction: int) -> None:
    kernels = sod_ops.ops.structure_loss._loss.select(kernel_backend.device)
    given = make((2, 1, 5, 6), device=kernel_backend.device, heads=2, mask_dtype=torch.bool)
    for with_gradient in (False, True):
        leaves = [head.detach().requires_grad_() for head in given.heads]
        arguments = (leaves, given.mask, 3, False, [1.0, 0.5], reduction, with_gradient)
        torch.library.opcheck(kernels.forward, arguments)
    loss, _ = kernels.forward(given.heads, given.mask, 3, False, [1.0, 0.5], reduction, False)
    arguments = (torch.rand_like(loss), given.heads, given.mask, 3, False, [1.0, 0.5], reduction)
    torch.library.opcheck(kernels.backward, arguments)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_compile(backend: Backend, reduction: str) -> None:
    """One graph with the fused operators; twice run, as what is stored must not be used up."""
    torch._dynamo.reset()
    given = make((2, 1, 7, 9), device=backend.device, heads=2)
    grad = torch.full((2,) if reduction == "none" else (), -2.0, device=backend.device)
    expected = run(backend.name, given, grad, 3, reduction=reduction)
    compiled = torch.compile(sod_ops.structure_loss, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        leaves = [head.detach().requires_grad_() for head in given.heads]
        loss = compiled(leaves, given.mask, 3, reduction=reduction)
        for a, e in zip((loss, *torch.autograd.grad(loss, leaves, grad)), expected, strict=True):
            torch.testing.assert_close(a, e)


def test_compile_with_inductor_inside_a_model() -> None:
    torch._dynamo.reset()
    (logits,), mask = make()

    def model(x: Tensor) -> Tensor:
        return sod_ops.structure_loss([x.relu() - 1, x], mask).mul(2)

    leaves = [logits.clone().requires_grad_() for _ in range(2)]
    for function, leaf in zip((model, torch.compile(model, fullgraph=True)), leaves, strict=True):
        function(leaf).backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)


def test_export(backend: Backend) -> None:
    given = make(device=backend.device, heads=2)
    module = sod_ops.nn.StructureLoss(5)
    exported = torch.export.export(module, (given.heads, given.mask))
    torch.testing.assert_close(exported.module()(given.heads, given.mask), module(given.heads, given.mask))


# ---- The module -------------------------------------------------------------------------------------------------------


def test_module() -> None:
    given = make(heads=2)
    module = sod_ops.nn.StructureLoss(5, as_published=True, weights=[1, 0.5], reduction="sum")
    expected = sod_ops.structure_loss(given.heads, given.mask, 5, as_published=True, weights=[1, 0.5], reduction="sum")
    assert torch.equal(module(*given), expected)
    assert repr(module) == "StructureLoss(kernel_size=5, as_published=True, weights=(1, 0.5), reduction='sum')"
    assert list(module.state_dict()) == []
    with pytest.raises(ValueError, match="StructureLoss: kernel_size must be odd"):
        sod_ops.nn.StructureLoss(4)
    with pytest.raises(TypeError, match="StructureLoss: reduction must be a string"):
        sod_ops.nn.StructureLoss(reduction=None)


# ---- Bad input --------------------------------------------------------------------------------------------------------

T = torch.zeros
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"logits": None}, TypeError, "logits must be a Tensor or a list or tuple of them, got NoneType"),
    ({"logits": []}, ValueError, "logits must be a head or more, got none"),
    ({"logits": [T(2, 1, 4, 4), None]}, TypeError, r"logits\[1\] must be a Tensor, got NoneType"),
    ({"logits": T(2, 1, 4, 4, dtype=torch.int64)}, TypeError, "logits must be float32, .* got torch.int64"),
    (
        {"logits": [T(2, 1, 4, 4), T(2, 1, 4, 4).double()]},
        TypeError,
        r"logits\[1\] must be torch.float32 as logits\[0\] is",
    ),
    ({"logits": [T(2, 1, 4, 4), T(2, 1, 2, 2)]}, ValueError, r"logits\[1\] must be of the size of mask, 4x4.*got 2x2"),
    ({"logits": T(2, 4, 4)}, ValueError, r"mask must be of the shape of logits, \[2, 4, 4\], .*out\[:, :1\]"),
    ({"logits": T(2, 2, 4, 4)}, ValueError, r"mask must be of .* got \[2, 1, 4, 4\]; .*out\[:, :1\]"),
    ({"mask": T(2, 4, 4)}, ValueError, r"mask must be of .*\[2, 4, 4\]; .*mask.unsqueeze\(1\)"),
    ({"logits": T(2, 3, 4, 4), "mask": T(2, 3, 4, 4)}, ValueError, r"mask must be of shape \[B, 1, H, W\]"),
    ({"logits": T(4, 4), "mask": T(4, 4)}, ValueError, r"mask must be of shape \[B, 1, H, W\], got \[4, 4\]"),
    ({"mask": 1.0}, TypeError, "mask must be a Tensor, got float"),
    ({"mask": T(2, 1, 4, 4, dtype=torch.complex64)}, TypeError, "mask must be floating, bool, uint8"),
    ({"mask": T(2, 1, 4, 4, device="meta")}, ValueError, "logits must be on the device of mask"),
    ({"kernel_size": 30}, ValueError, "kernel_size must be odd and above 0, got 30"),
    ({"kernel_size": 3.0}, TypeError, r"kernel_size must be an integer, got 3.0 \(float\)"),
    ({"as_published": "yes"}, TypeError, r"as_published must be a bool, got 'yes' \(str\)"),
    ({"weights": [1.0, 2.0]}, ValueError, "weights must be a number for each of 1 heads, got 2"),
    ({"weights": 1.0}, TypeError, "weights must be a sequence of numbers, one for each head, got 1.0"),
    ({"weights": ["a"]}, TypeError, "weights must be a number, got 'a'"),
    ({"reduction": "avg"}, ValueError, "reduction must be one of 'none', 'mean', 'sum', got 'avg'"),
    ({"reduction": None}, TypeError, "reduction must be a string"),
]


@pytest.mark.parametrize(
    ("change", "error", "message"), BAD, ids=[f"{next(iter(c))}-{i}" for i, (c, _, _) in enumerate(BAD)]
)
def test_bad_input_is_named(backend: Backend, change: dict[str, Any], error: type[Exception], message: str) -> None:
    good = {"logits": T(2, 1, 4, 4), "mask": T(2, 1, 4, 4)}

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(item) for item in value]
        return value.to(backend.device) if isinstance(value, Tensor) and value.device.type == "cpu" else value

    with pytest.raises(error, match=f"structure_loss: {message}"):
        sod_ops.structure_loss(**{name: moved(value) for name, value in {**good, **change}.items()})


def test_operators_refuse_what_would_read_out_of_bounds() -> None:
    """The operators below the public function guard themselves too."""
    x, y = T(2, 1, 4, 4), T(2, 1, 4, 4)
    operator, backward = torch.ops.sod_ops.structure_loss, torch.ops.sod_ops.structure_loss_backward
    for heads, mask, kernel_size, weights, reduction in (
        ([], y, 3, [], 1),
        ([x], y, 3, [], 1),
        ([x], y[:1], 3, [1.0], 1),
        ([x, x[:, :, :2]], y, 3, [1.0, 1.0], 1),
        ([x[:, 0]], y[:, 0], 3, [1.0], 1),
        ([x.int()], y, 3, [1.0], 1),
        ([x, x.double()], y, 3, [1.0, 1.0], 1),
        ([x], y.to(torch.complex64), 3, [1.0], 1),
        ([x], y, 4, [1.0], 1),
        ([x], y, 3, [1.0], 3),
    ):
        with pytest.raises(RuntimeError, match="structure_loss"):
            operator(heads, mask, kernel_size, False, weights, reduction, False)
    for grad, reduction in ((T(1), 0), (T(2).double(), 0), (T(2), 1)):
        with pytest.raises(RuntimeError, match="grad_output"):
            backward(grad, [x], y, 3, False, [1.0], reduction)

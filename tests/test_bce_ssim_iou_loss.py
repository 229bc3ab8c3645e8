"""bce_ssim_iou_loss on every backend, against the published code's formula and against its reference in float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import FLOATING
from conftest import Backend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_sigmoid_focal_loss_contract import allocated
from test_ssim import cancelling
from test_ssim import published as published_ssim
from test_structure_loss import LAYOUTS, REDUCTIONS, SHAPES, Inputs
from test_structure_loss import make as make_logits
from tolerances import assert_accurate
from torch import Tensor

import sod_ops

OP = "bce_ssim_iou_loss"
BIREFNET = {"bce_weight": 30.0, "ssim_weight": 10.0, "iou_weight": 0.5}


def make(*args: Any, **kwargs: Any) -> Inputs:
    """Probabilities, a few of them exactly 0 or 1, and a mask of blobs."""
    heads, mask = make_logits(*args, **kwargs)
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
        loss = sod_ops.bce_ssim_iou_loss(leaves if len(leaves) > 1 else leaves[0], given.mask, **kwargs)
        return [loss.detach(), *torch.autograd.grad(loss, leaves, grad.to(loss.dtype))]


def check(backend: Backend, given: Inputs, **kwargs: Any) -> None:
    """Holds the loss and the gradients to those of the reference in float64."""
    reduction = kwargs.get("reduction", "mean")
    shape = given.mask.shape[:1] if reduction == "none" else ()
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
    # What cancels in the similarity; see test_ssim.py.
    window, weights = (kwargs.get("window_size", 11), 1.5), kwargs.get("weights") or [1.0] * len(given.heads)
    of_heads = [cancelling(head, exact_inputs.mask, *window) for head in exact_inputs.heads]
    of_heads = [
        [kwargs.get("ssim_weight", 1.0) * w * term for term in of] for w, of in zip(weights, of_heads, strict=True)
    ]
    of_value = sum(value for value, _ in of_heads) * (given.mask.shape[0] if reduction == "sum" else 1)
    scale = grad.abs().max().item() / given.mask[0].numel() / (given.mask.shape[0] if reduction == "mean" else 1)
    for index, (a, p, e) in enumerate(zip(actual, plain, exact, strict=True)):
        terms = scale * of_heads[index - 1][1] if index else of_value
        assert_accurate(a, p, e, f"head {index - 1}" if index else "forward", terms)
    for tensor, copy in zip((*given.heads, given.mask), before, strict=True):
        assert torch.equal(tensor.nan_to_num(), copy.nan_to_num()), "an input was changed"


# ---- What it computes -------------------------------------------------------------------------------------------------


def published(
    p: Tensor, y: Tensor, bce_weight: float = 1.0, ssim_weight: float = 1.0, iou_weight: float = 1.0
) -> Tensor:
    """BASNet's formula, statement by statement, with BiRefNet's weights of the terms."""
    bce = F.binary_cross_entropy(p, y)
    similarity = published_ssim(p, y)
    iou = torch.zeros((), dtype=p.dtype, device=p.device)
    for i in range(p.shape[0]):
        intersection = torch.sum(y[i] * p[i])
        union = torch.sum(y[i]) + torch.sum(p[i]) - intersection
        iou = iou + (1 - intersection / union)
    return bce_weight * bce + ssim_weight * (1 - similarity) + iou_weight * iou / p.shape[0]


@pytest.mark.parametrize("terms", [{}, BIREFNET], ids=["BASNet", "BiRefNet"])
def test_is_the_published_function(backend: Backend, terms: dict[str, float]) -> None:
    (p,), mask = make((3, 1, 14, 9), torch.float64, backend.device)
    leaves = [p.clone().clamp(0.01, 0.99).requires_grad_() for _ in range(2)]
    losses = sod_ops.bce_ssim_iou_loss(leaves[0], mask, **terms), published(leaves[1], mask, **terms)
    torch.testing.assert_close(*losses, rtol=1e-11, atol=0)
    found = [torch.autograd.grad(loss, leaf)[0] for loss, leaf in zip(losses, leaves, strict=True)]
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-14)


def test_is_the_sum_of_its_terms(backend: Backend) -> None:
    (p,), mask = make((2, 1, 8, 7), torch.float64, backend.device)
    both, either = (p * mask).sum((1, 2, 3)), (p + mask - p * mask).sum((1, 2, 3))
    terms = {
        "bce_weight": F.binary_cross_entropy(p, mask),
        "ssim_weight": 1 - published_ssim(p, mask, 5, 2.0),
        "iou_weight": (1 - (both + 0.5) / (either + 0.5)).mean(),
    }
    for name, expected in terms.items():
        alone = {**dict.fromkeys(terms, 0), name: 2}
        loss = sod_ops.bce_ssim_iou_loss(p, mask, **alone, smooth=0.5, window_size=5, sigma=2)
        torch.testing.assert_close(loss, 2 * expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("dtype", "reduction"),
    [
        (torch.float32, "none"),
        (torch.float32, "mean"),
        (torch.float64, "sum"),
        (torch.bfloat16, "mean"),
        (torch.float16, "mean"),
        (torch.float16, "none"),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [*SHAPES, (3, 1, 61, 67)], ids=str)
def test_shapes_and_dtypes(kernel_backend: Backend, shape: tuple[int, ...], dtype: torch.dtype, reduction: str) -> None:
    if kernel_backend.interpreted:
        shape = (min(shape[0], 2), 1, *(min(size, 8) for size in shape[2:]))
    given = make(shape, dtype, kernel_backend.device)
    check(kernel_backend, given, window_size=3, reduction=reduction)
    if not kernel_backend.interpreted:
        check(kernel_backend, given, reduction=reduction, **BIREFNET)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(kernel_backend: Backend, layout: str) -> None:
    for dtype, reduction in ((torch.float32, "none"), (torch.bfloat16, "mean")):
        given = make((2, 1, 5, 6), dtype, kernel_backend.device, heads=2, layout=layout)
        check(kernel_backend, given, window_size=3, reduction=reduction)


@pytest.mark.parametrize("window_size", [1, 11, 101])
def test_windows(kernel_backend: Backend, window_size: int) -> None:
    """Larger than the image too."""
    check(kernel_backend, make((1, 1, 13, 8), device=kernel_backend.device), window_size=window_size)


@pytest.mark.parametrize("mask_dtype", [*FLOATING, torch.bool, torch.uint8, torch.int64], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dtypes_of_masks(kernel_backend: Backend, dtype: torch.dtype, mask_dtype: torch.dtype) -> None:
    given = make((1, 1, 5, 4), dtype, kernel_backend.device, mask_dtype=mask_dtype)
    check(kernel_backend, given, window_size=3)
    assert sod_ops.bce_ssim_iou_loss(*given.heads, given.mask).dtype == torch.promote_types(dtype, mask_dtype)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3])
def test_constant_masks(kernel_backend: Backend, value: float) -> None:
    """Empty, full and soft: finite, also beside a mask that is not."""
    given = make((2, 1, 8, 9), device=kernel_backend.device)
    given.mask[1:] = value
    for smooth in (0.0, 1.0):
        check(kernel_backend, given, window_size=5, smooth=smooth)
    assert all(
        t.isfinite().all() for t in run(kernel_backend.name, given, torch.ones((), device=kernel_backend.device))
    )


def test_nothing_in_either_map(backend: Backend) -> None:
    """0 / 0 as published: the IoU is 1, the loss 0, and every gradient finite."""
    empty = torch.zeros(2, 1, 6, 5, dtype=torch.float64, device=backend.device)
    for reduction, shape in (("mean", ()), ("none", (2,))):
        grad = torch.ones(shape, device=backend.device)
        loss, gradient = run(backend.name, Inputs([empty], empty), grad, reduction=reduction)
        assert loss.abs().max() < 1e-12
        assert gradient.isfinite().all()


def test_certain_probabilities(kernel_backend: Backend) -> None:
    """Right or wrong, 0 and 1 cost what PyTorch's binary_cross_entropy makes of them: 0 or 100."""
    _, mask = make((2, 1, 6, 5), device=kernel_backend.device)
    for p in (mask, 1 - mask, mask * 0, mask * 0 + 1):
        check(kernel_backend, Inputs([p], mask), window_size=3)


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


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_heads(kernel_backend: Backend, reduction: str) -> None:
    given = make((2, 1, 7, 6), device=kernel_backend.device, heads=3)
    check(kernel_backend, given, window_size=5, reduction=reduction, weights=[1.0, 0.5, 0.25], **BIREFNET)


def test_heads_equal_the_sum_of_single_calls(backend: Backend) -> None:
    given = make((2, 1, 9, 8), device=backend.device, heads=2)
    one = torch.ones((), device=backend.device)
    loss, *gradients = run(backend.name, given, one)
    single = [run(backend.name, Inputs([head], given.mask), one) for head in given.heads]
    torch.testing.assert_close(loss, single[0][0] + single[1][0], rtol=2e-7, atol=0)
    for gradient, (_, expected) in zip(gradients, single, strict=True):
        assert torch.equal(gradient, expected)


def test_a_tuple_and_a_head_without_gradient(backend: Backend) -> None:
    given = make((1, 1, 6, 7), device=backend.device, heads=2)
    leaf = given.heads[0].requires_grad_()
    (found,) = torch.autograd.grad(sod_ops.bce_ssim_iou_loss((leaf, given.heads[1]), given.mask), leaf)
    assert torch.equal(found, run(backend.name, given, torch.ones((), device=backend.device))[1])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 5), st.just(1), st.integers(1, 40), st.integers(1, 40)),
    layout=st.sampled_from(["contiguous", *LAYOUTS]),
    dtype=st.sampled_from(FLOATING),
    mask_dtype=st.sampled_from([*FLOATING, torch.bool, torch.uint8]),
    heads=st.integers(1, 3),
    half=st.integers(0, 20),
    smooth=st.sampled_from([0.0, 1.0]),
    reduction=st.sampled_from(REDUCTIONS),
)
def test_any_shape(
    shape: tuple[int, int, int, int],
    layout: str,
    dtype: torch.dtype,
    mask_dtype: torch.dtype,
    heads: int,
    half: int,
    smooth: float,
    reduction: str,
) -> None:
    given = make(shape, dtype, heads=heads, layout=layout, mask_dtype=mask_dtype)
    check(Backend("cpu", "cpu"), given, window_size=2 * half + 1, smooth=smooth, reduction=reduction)


@pytest.mark.parametrize("target", [0.0, 1.0, 0.25])
def test_logarithms_of_any_probability(target: float) -> None:
    """The cross entropy is good to some units in the last place of its own, however near a probability is to 0 or 1."""
    unit = torch.finfo(torch.float32).eps
    tiny = torch.logspace(-45, 0, 4001, dtype=torch.float64).float()
    p = torch.cat([tiny, 1 - tiny, torch.linspace(0, 1, 4001), torch.tensor([2**-149, 0.0, 1.0, 0.5, 1 - unit / 2])])
    # Eight pixels each, for the kernels' vectors.
    p = p.view(-1, 1, 1, 1).expand(-1, 1, 1, 8).contiguous()
    mask = torch.full_like(p, target)
    options = {"ssim_weight": 0.0, "iou_weight": 0.0, "reduction": "none"}
    with sod_ops.use_backend("cpu"):
        found = sod_ops.bce_ssim_iou_loss(p, mask, **options)
        exact = sod_ops.bce_ssim_iou_loss(p.double(), mask.double(), **options)
    torch.testing.assert_close(found.double(), exact, rtol=3 * unit, atol=1e-44)


# ---- Gradients, determinism, memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(backend: Backend, reduction: str) -> None:
    (first, second), mask = make((1 if backend.interpreted else 2, 1, 3, 4), torch.float64, backend.device, heads=2)
    first, second = (p.clamp(0.1, 0.9).requires_grad_() for p in (first, second))
    soft = mask.clamp(0.2, 0.8).add(torch.rand_like(mask) * 0.1).requires_grad_()

    def function(first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
        options = {"window_size": 3, "smooth": 0.5, "weights": (1.0, 0.5), "reduction": reduction, **BIREFNET}
        return sod_ops.bce_ssim_iou_loss([first, second], mask, **options)

    # Where the mask wants a gradient the reference gives all.
    for arguments in ((first, second, mask), (first, second.detach(), soft)):
        assert torch.autograd.gradcheck(function, arguments, fast_mode=backend.interpreted)
        if not backend.interpreted or arguments[2] is mask:
            assert torch.autograd.gradgradcheck(function, arguments, fast_mode=True)


def test_backward_twice(kernel_backend: Backend) -> None:
    """retain_graph: each time with the gradient that comes in, whatever became of what the first time returned."""
    given = make((1, 1, 6, 7), device=kernel_backend.device, heads=2)
    leaves = [head.requires_grad_() for head in given.heads]
    loss = sod_ops.bce_ssim_iou_loss(leaves, given.mask, window_size=3)
    first = torch.autograd.grad(loss, leaves, torch.full_like(loss, 4.0), retain_graph=True)
    copies = [gradient.clone() for gradient in first]
    for gradient in first:
        gradient.zero_()
    for factor in (1.0, -2.0):
        again = torch.autograd.grad(loss, leaves, torch.full_like(loss, factor), retain_graph=True)
        for a, e in zip(again, copies, strict=True):
            torch.testing.assert_close(a, e * (factor / 4), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("heads", [1, 3])
def test_memory(kernel_backend: Backend, heads: int) -> None:
    """Beyond inputs and gradients, some sums, and in Triton at most a workspace of seven maps of the mask's size, whatever
    the number of heads; slices stay."""
    given = make((4, 1, 16, 32), device=kernel_backend.device, heads=heads, layout="channel_slice")
    leaves = [head.requires_grad_() for head in given.heads]
    size = given.mask.numel() * 4

    def step() -> Tensor:
        loss = sod_ops.bce_ssim_iou_loss(leaves, given.mask)
        loss.backward()
        return loss

    most = 7.5 if kernel_backend.name == "triton" else 1
    assert heads * size <= allocated(kernel_backend, step) < (heads + most) * size


def test_memory_format_of_gradients(kernel_backend: Backend) -> None:
    for layout in ("contiguous", *LAYOUTS):
        given = make((1, 1, 3, 2), device=kernel_backend.device, layout=layout)
        _, gradient = run(kernel_backend.name, given, torch.ones((), device=kernel_backend.device), window_size=1)
        assert gradient.stride() == torch.empty_like(given.heads[0]).stride()


def test_deterministic(kernel_backend: Backend) -> None:
    shape = (2, 1, 11, 9) if kernel_backend.interpreted else (3, 1, 130, 97)
    given = make(shape, device=kernel_backend.device, heads=2)
    torch.use_deterministic_algorithms(True)
    try:
        grad = torch.tensor(0.7, device=kernel_backend.device)
        first = run(kernel_backend.name, given, grad)
        for _ in range(1 if kernel_backend.interpreted else 5):
            for a, b in zip(run(kernel_backend.name, given, grad), first, strict=True):
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


@pytest.mark.gpu
def test_groups_of_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton: the same from a workspace that holds fewer samples than there are."""
    backend = Backend("triton", "cuda" if torch.cuda.is_available() else "cpu")
    given = make((3, 1, 5, 4), device=backend.device, heads=2)
    from sod_ops.triton import _similarity

    for reduction, shape in (("none", (3,)), ("mean", ())):
        grad = torch.rand(shape, device=backend.device)
        expected = run(backend.name, given, grad, window_size=3, reduction=reduction)
        with monkeypatch.context() as patch:
            patch.setattr(_similarity, "_WORKSPACE", 2 * 7 * 5 * 4)
            found = run(backend.name, given, grad, window_size=3, reduction=reduction)
        for a, e in zip(found, expected, strict=True):
            assert torch.equal(a, e)


# ---- PyTorch's other parts --------------------------------------------------------------------------------------------


def test_func_transforms(backend: Backend) -> None:
    (p,), mask = make((3, 1, 4, 5), torch.float64, backend.device)
    p = p.clamp(0.1, 0.9)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return sod_ops.bce_ssim_iou_loss(x, y, window_size=3, reduction="sum")

    leaf = p.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf, mask), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(p, mask), expected)
    each = torch.func.vmap(torch.func.grad(loss))(p.unsqueeze(1), mask.unsqueeze(1))
    torch.testing.assert_close(each.squeeze(1), expected)


@pytest.mark.parametrize("reduction", range(2))
def test_operators_pass_opcheck(kernel_backend: Backend, reduction: int) -> None:
    kernels = sod_ops.ops.bce_ssim_iou_loss._loss.select(kernel_backend.device)
    given = make((1, 1, 3, 4), device=kernel_backend.device, heads=2, mask_dtype=torch.bool)
    options = (1.0, 1.0, 1.0, 0.0, 3, 1.5, [1.0, 0.5], reduction)
    leaves = [head.detach().clamp(0.1, 0.9).requires_grad_() for head in given.heads]
    torch.library.opcheck(kernels.forward, (leaves, given.mask, *options, True))
    loss, _ = kernels.forward(given.heads, given.mask, *options, False)
    torch.library.opcheck(kernels.backward, (torch.rand_like(loss), given.heads, given.mask, *options))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_compile(kernel_backend: Backend, reduction: str) -> None:
    """One graph with the fused operators; twice run, as what is stored must not be used up."""
    torch._dynamo.reset()
    given = make((2, 1, 5, 6), device=kernel_backend.device, heads=2)
    grad = torch.full((2,) if reduction == "none" else (), -2.0, device=kernel_backend.device)
    expected = run(kernel_backend.name, given, grad, window_size=3, reduction=reduction)
    compiled = torch.compile(sod_ops.bce_ssim_iou_loss, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        leaves = [head.detach().requires_grad_() for head in given.heads]
        loss = compiled(leaves, given.mask, window_size=3, reduction=reduction)
        for a, e in zip((loss, *torch.autograd.grad(loss, leaves, grad)), expected, strict=True):
            torch.testing.assert_close(a, e)


def test_export(kernel_backend: Backend) -> None:
    given = make((1, 1, 5, 6), device=kernel_backend.device, heads=2)
    module = sod_ops.nn.BCESSIMIoULoss(window_size=3)
    exported = torch.export.export(module, (given.heads, given.mask))
    torch.testing.assert_close(exported.module()(given.heads, given.mask), module(given.heads, given.mask))


# ---- The module and bad input -----------------------------------------------------------------------------------------


def test_module() -> None:
    given = make((2, 1, 6, 7), heads=2)
    options = {"smooth": 1.0, "window_size": 5, "sigma": 2.0, "weights": [1, 0.5], "reduction": "sum"}
    module = sod_ops.nn.BCESSIMIoULoss(30, 10, 0.5, **options)
    expected = sod_ops.bce_ssim_iou_loss(
        given.heads, given.mask, bce_weight=30, ssim_weight=10, iou_weight=0.5, **options
    )
    assert torch.equal(module(*given), expected)
    assert repr(module) == (
        "BCESSIMIoULoss(bce_weight=30, ssim_weight=10, iou_weight=0.5, smooth=1.0, window_size=5, sigma=2.0, "
        "weights=(1, 0.5), reduction='sum')"
    )
    assert list(module.state_dict()) == []
    with pytest.raises(ValueError, match="BCESSIMIoULoss: window_size must be odd"):
        sod_ops.nn.BCESSIMIoULoss(window_size=4)
    with pytest.raises(ValueError, match="BCESSIMIoULoss: bce_weight must be finite and 0 or more, got -1"):
        sod_ops.nn.BCESSIMIoULoss(-1)


T = torch.zeros
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"probabilities": None}, TypeError, "probabilities must be a Tensor or a list or tuple of them, got NoneType"),
    ({"probabilities": []}, ValueError, "probabilities must be a head or more, got none"),
    (
        {"probabilities": T(2, 1, 4, 4, dtype=torch.int64)},
        TypeError,
        "probabilities must be float32, .* got torch.int64",
    ),
    (
        {"probabilities": [T(2, 1, 4, 4), T(2, 1, 2, 2)]},
        ValueError,
        r"probabilities\[1\] must be of the size of mask, 4x4",
    ),
    ({"probabilities": T(2, 2, 4, 4)}, ValueError, r"mask must be of .* got \[2, 1, 4, 4\]; .*out\[:, :1\]"),
    ({"mask": T(2, 4, 4)}, ValueError, r"mask must be of .*\[2, 4, 4\]; .*mask.unsqueeze\(1\)"),
    ({"mask": 1.0}, TypeError, "mask must be a Tensor, got float"),
    ({"bce_weight": -1.0}, ValueError, "bce_weight must be finite and 0 or more, got -1.0"),
    ({"ssim_weight": "1"}, TypeError, "ssim_weight must be a number, got '1'"),
    ({"iou_weight": float("nan")}, ValueError, "iou_weight must be finite and 0 or more, got nan"),
    ({"smooth": -0.5}, ValueError, "smooth must be finite and 0 or more, got -0.5"),
    ({"window_size": 10}, ValueError, "window_size must be odd and above 0, got 10"),
    ({"window_size": True}, TypeError, r"window_size must be an integer, got True \(bool\)"),
    ({"sigma": 0}, ValueError, "sigma must be finite and above 0, got 0"),
    ({"weights": [1.0, 2.0]}, ValueError, "weights must be a number for each of 1 heads, got 2"),
    ({"reduction": "avg"}, ValueError, "reduction must be one of 'none', 'mean', 'sum', got 'avg'"),
]


@pytest.mark.parametrize(
    ("change", "error", "message"), BAD, ids=[f"{next(iter(c))}-{i}" for i, (c, _, _) in enumerate(BAD)]
)
def test_bad_input_is_named(backend: Backend, change: dict[str, Any], error: type[Exception], message: str) -> None:
    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(item) for item in value]
        return value.to(backend.device) if isinstance(value, Tensor) else value

    arguments = {"probabilities": T(2, 1, 4, 4), "mask": T(2, 1, 4, 4), **change}
    with pytest.raises(error, match=f"{OP}: {message}"):
        sod_ops.bce_ssim_iou_loss(**{name: moved(value) for name, value in arguments.items()})


@pytest.mark.parametrize("value", [-0.25, 1.5])
def test_probabilities_outside_their_range_are_an_error_on_the_cpu(value: float) -> None:
    p = T(2, 1, 37, 19)
    p[1, 0, 36, 18] = value
    for name in ("cpu", "reference"):
        with (
            sod_ops.use_backend(name),
            pytest.raises(ValueError, match=rf"{OP}: probabilities must be in \[0, 1\], got .*{value:g}"),
        ):
            sod_ops.bce_ssim_iou_loss([p * 0, p], p * 0)


def test_operators_refuse_what_would_read_out_of_bounds() -> None:
    """The operators below the public function guard themselves too."""
    x = T(2, 1, 4, 4)
    operator, backward = torch.ops.sod_ops.bce_ssim_iou_loss, torch.ops.sod_ops.bce_ssim_iou_loss_backward
    numbers = (1.0, 1.0, 1.0, 0.0)
    for heads, mask, terms, window_size, sigma, weights, reduction in (
        ([], x, numbers, 3, 1.5, [], 1),
        ([x], x[:1], numbers, 3, 1.5, [1.0], 1),
        ([x[:, 0]], x[:, 0], numbers, 3, 1.5, [1.0], 1),
        ([x.int()], x, numbers, 3, 1.5, [1.0], 1),
        ([x], x, (1.0, -1.0, 1.0, 0.0), 3, 1.5, [1.0], 1),
        ([x], x, numbers, 4, 1.5, [1.0], 1),
        ([x], x, numbers, 3, 0.0, [1.0], 1),
        ([x], x, numbers, 3, 1.5, [1.0], 3),
    ):
        with pytest.raises(RuntimeError, match=OP):
            operator(heads, mask, *terms, window_size, sigma, weights, reduction, False)
    for grad, reduction in ((T(1), 0), (T(2).double(), 0), (T(2), 1)):
        with pytest.raises(RuntimeError, match="grad_output"):
            backward(grad, [x], x, *numbers, 3, 1.5, [1.0], reduction)

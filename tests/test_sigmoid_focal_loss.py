"""sigmoid_focal_loss on every backend, against torchvision and against its reference in float64."""

import itertools
from typing import Any, NamedTuple

import pytest
import torch
from cases import FLOATING, MAPS, MapCase
from conftest import Backend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peers import import_peer
from tolerances import assert_accurate
from torch import Tensor

import sod_ops
from sod_ops.reference.sigmoid_focal_loss import REDUCTIONS
from sod_ops.reference.sigmoid_focal_loss import sigmoid_focal_loss as reference

INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
GAMMAS = (0.0, 0.5, 1.0, 1.7, 2.0, 3.0)


class Inputs(NamedTuple):
    inputs: Tensor
    targets: Tensor


def make(
    case: MapCase = MAPS[0],
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    *,
    target_dtype: torch.dtype | None = None,
    target_layout: str = "contiguous",
) -> Inputs:
    """Logits spread widely enough to saturate some, and hard targets; of floating targets a part is soft."""
    inputs = case.build(dtype, device).mul_(4) if case.layout != "expanded" else case.build(dtype, device) * 4
    targets = (torch.rand(case.shape) > 0.6).to(torch.float64)
    target_dtype = target_dtype or dtype
    if target_dtype.is_floating_point:
        targets = torch.where(torch.rand(case.shape) < 0.2, torch.rand(case.shape, dtype=torch.float64), targets)
    laid_out = MapCase(case.shape, target_layout).build(torch.float64, device).mul(0)
    return Inputs(inputs, (laid_out + targets.to(device)).to(target_dtype))


def run(backend: str, given: Inputs, grad: Tensor, *options: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """The loss and the gradient of inputs."""
    leaf = given.inputs.detach().requires_grad_()
    with sod_ops.use_backend(backend):
        loss = sod_ops.sigmoid_focal_loss(leaf, given.targets, *options, **kwargs)
        (found,) = torch.autograd.grad(loss, leaf, grad.to(loss.dtype))
    return loss.detach(), found


def check(backend: Backend, given: Inputs, *options: Any, **kwargs: Any) -> None:
    """Holds the loss and the gradient to those of the reference in float64."""
    reduces = kwargs.get("reduction", "none") != "none"
    grad = torch.randn(() if reduces else given.inputs.shape, dtype=torch.float64, device=backend.device)
    if reduces and backend.interpreted:
        # The interpreter truncates what it stores in bfloat16, and would do so twice where the stored gradient is scaled.
        grad = grad.fill_(-2.0)
    grad = grad.to(torch.promote_types(given.inputs.dtype, given.targets.dtype))
    before = [t.detach().clone() for t in given]
    actual = run(backend.name, given, grad, *options, **kwargs)
    plain = run("reference", given, grad, *options, **kwargs)
    exact = run("reference", Inputs(*(t.double() for t in given)), grad.double(), *options, **kwargs)
    for name, a, p, e in zip(("forward", "inputs"), actual, plain, exact, strict=True):
        assert_accurate(a, p, e, name)
    for tensor, copy in zip(given, before, strict=True):
        assert torch.equal(tensor.nan_to_num(), copy.nan_to_num()), "an input was changed"


def small(case: MapCase, backend: Backend) -> MapCase:
    return MapCase((*case.shape[:1], 3, 9, 7), case.layout) if case.large and backend.interpreted else case


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("case", MAPS, ids=str)
def test_shapes_layouts_and_dtypes(backend: Backend, case: MapCase, dtype: torch.dtype, reduction: str) -> None:
    case = small(case, backend)
    for target_layout in {"contiguous", case.layout}:
        check(backend, make(case, dtype, backend.device, target_layout=target_layout), reduction=reduction)


@pytest.mark.parametrize("shape", [(), (1,), (17,), (5, 1), (3, 4, 5, 2, 3)], ids=str)
def test_any_number_of_dimensions(backend: Backend, shape: tuple[int, ...]) -> None:
    given = Inputs(torch.randn(shape, device=backend.device), torch.rand(shape, device=backend.device))
    for reduction in REDUCTIONS:
        check(backend, given, reduction=reduction)


@pytest.mark.parametrize("target_dtype", [*FLOATING, *INTEGERS], ids=str)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_dtypes_of_targets(backend: Backend, dtype: torch.dtype, target_dtype: torch.dtype) -> None:
    """Floating targets promote the loss, as in torchvision; integer ones, which torchvision refuses, do not."""
    for layout in ("contiguous", "channel_slice"):
        given = make(MapCase((2, 5, 6, 7), layout), dtype, backend.device, target_dtype=target_dtype)
        for reduction in ("none", "mean"):
            check(backend, given, reduction=reduction)
    assert sod_ops.sigmoid_focal_loss(*given).dtype == torch.promote_types(dtype, target_dtype)


@pytest.mark.parametrize(("alpha", "reduction"), list(itertools.product((0.25, 0.0, 1.0, 0.9, -1.0), REDUCTIONS)))
@pytest.mark.parametrize("gamma", GAMMAS)
def test_equals_torchvision(backend: Backend, alpha: float, gamma: float, reduction: str) -> None:
    theirs = import_peer("torchvision.ops").sigmoid_focal_loss
    for shape, dtype in (((3, 7), torch.float32), ((2, 3, 5, 4), torch.float64)):
        given = make(MapCase((1, 1, 1, torch.Size(shape).numel())), dtype, backend.device)
        inputs, targets = (t.reshape(shape) for t in given)
        results = []
        for function, factor in ((sod_ops.sigmoid_focal_loss, dtype), (theirs, dtype), (theirs, torch.float64)):
            leaf = inputs.detach().to(factor).requires_grad_()
            loss = function(leaf, targets.to(factor), alpha, gamma, reduction)
            results.append((loss.detach(), *torch.autograd.grad(loss.sum(), leaf)))
        for name, a, p, e in zip(("forward", "inputs"), *results, strict=True):
            assert_accurate(a, p, e, name)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.5, 1.0, 1.5, 2.0, 7.5])
def test_saturated_logits(kernel_backend: Backend, gamma: float, dtype: torch.dtype) -> None:
    """Finite and right at any finite logit; for gamma < 1 the derivative is 0 where 1 - p_t vanishes, its limit."""
    sizes = [0.0, 1e-6, 15.0, 17.0, 30.0, 50.0, 87.0, 88.0, 100.0, 104.0, 300.0, 740.0, 750.0, 3e4]
    logits = torch.tensor([*sizes, *(-s for s in sizes)], dtype=torch.float64).to(dtype)
    for target in (0.0, 1.0, 0.3):
        given = Inputs(logits, torch.full_like(logits, target))
        given = Inputs(*(t.to(kernel_backend.device) for t in given))
        loss, gradient = run(kernel_backend.name, given, torch.ones_like(given.inputs), gamma=gamma)
        exact = run("reference", Inputs(*(t.double() for t in given)), torch.ones_like(given.inputs), gamma=gamma)
        # Each element by itself: the loss of a saturated one is far below the largest. 1e-37: under it float32 is subnormal.
        rounding = max(torch.finfo(dtype).eps, 1e-14) * (8 + 90 * gamma)  # a power's error grows with its logarithm
        for a, e in zip((loss, gradient), exact, strict=True):
            assert a.isfinite().all()
            tiny = torch.finfo(dtype).smallest_normal if dtype != torch.float64 else 1e-300
            torch.testing.assert_close(a.double(), e, rtol=rounding, atol=tiny)
        saturated = 0 if target == 0.0 else 1
        if dtype == torch.float32 and target != 0.3:
            assert gradient[len(sizes) - 1 if saturated else -1] == 0


@pytest.mark.parametrize("gamma", GAMMAS)
def test_reference_at_saturated_logits(gamma: float) -> None:
    """What kernels are held to is itself finite, once and twice differentiated."""
    for dtype, target in itertools.product((torch.float32, torch.float64), (0.0, 1.0, 0.3)):
        logits = torch.tensor([0.0, 20.0, -20.0, 110.0, -110.0, 3e4, -3e4], dtype=dtype, requires_grad=True)
        targets = torch.full_like(logits, target).detach().requires_grad_()
        loss = reference(logits, targets, gamma=gamma)
        first = torch.autograd.grad(loss.sum(), (logits, targets), create_graph=True)
        second = torch.autograd.grad(first[0].sum(), logits)
        for tensor in (loss, *first, *second):
            assert tensor.isfinite().all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_infinities_and_nan(kernel_backend: Backend, dtype: torch.dtype, gamma: float) -> None:
    """They end up where the reference has them, and in no other element."""
    inf, nan = float("inf"), float("nan")
    logits = torch.tensor([inf, -inf, nan, 1.0, -2.0, 3.0], dtype=dtype, device=kernel_backend.device)
    for target in (0.0, 1.0, 0.3):
        given = Inputs(logits, torch.full_like(logits, target))
        loss, gradient = run(kernel_backend.name, given, torch.ones_like(logits), gamma=gamma)
        exact = run("reference", Inputs(*(t.double() for t in given)), torch.ones_like(logits), gamma=gamma)
        torch.testing.assert_close(loss.double(), exact[0], rtol=2e-3, atol=1e-6, equal_nan=True)
        there = ~exact[0].isnan()  # a loss that is NaN has no meaningful gradient
        torch.testing.assert_close(gradient.double()[there], exact[1][there], rtol=2e-3, atol=1e-6, equal_nan=True)
        nan_logits = torch.tensor([nan], device=kernel_backend.device, dtype=dtype)
        assert (
            run(kernel_backend.name, Inputs(nan_logits, nan_logits * 0 + target), nan_logits, gamma=gamma)[1]
            .isnan()
            .all()
        )
    soft = Inputs(torch.zeros_like(logits), logits)
    assert sod_ops.sigmoid_focal_loss(*soft, gamma=gamma)[2].isnan()


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0, 4), (2, 3, 0, 5)], ids=str)
def test_empty(backend: Backend, shape: tuple[int, ...]) -> None:
    """As torchvision: the mean of nothing is NaN, the sum 0, and both have a gradient."""
    theirs = import_peer("torchvision.ops").sigmoid_focal_loss
    for reduction in REDUCTIONS:
        results = []
        for function in (sod_ops.sigmoid_focal_loss, theirs):
            leaf = torch.zeros(shape, device=backend.device, requires_grad=True)
            loss = function(leaf, torch.zeros(shape, device=backend.device), reduction=reduction)
            loss.sum().backward()
            results.append((loss, leaf.grad))
        for a, e in zip(*results, strict=True):
            torch.testing.assert_close(a, e, equal_nan=True)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(backend: Backend, gamma: float, reduction: str) -> None:
    inputs, targets = make(MapCase((2, 2, 3, 2), "channel_slice"), torch.float64, backend.device)
    leaf = inputs.detach().requires_grad_()
    soft = targets.clamp(0.1, 0.9).requires_grad_()

    def function(inputs: Tensor, targets: Tensor) -> Tensor:
        return sod_ops.sigmoid_focal_loss(inputs, targets, 0.3, gamma, reduction)

    for arguments in ((leaf, targets), (leaf, soft), (leaf.detach(), soft)):
        assert torch.autograd.gradcheck(function, arguments, fast_mode=backend.interpreted)
        assert torch.autograd.gradgradcheck(function, arguments, fast_mode=True)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradient_of_targets_comes_from_the_reference(backend: Backend, reduction: str) -> None:
    inputs, targets = make(device=backend.device)
    results = []
    for function in (sod_ops.sigmoid_focal_loss, reference):
        leaves = inputs.clone().requires_grad_(), targets.clone().requires_grad_()
        loss = function(*leaves, 0.25, 1.5, reduction)
        results.append((loss, *torch.autograd.grad(loss.sum(), leaves)))
    for a, e in zip(*results, strict=True):
        torch.testing.assert_close(a, e)


def test_incoming_gradients_of_any_layout(backend: Backend) -> None:
    """sum() sends an expanded gradient, a permuted loss one of another memory format."""
    for layout in ("contiguous", "channels_last", "channel_slice"):
        given = make(MapCase((2, 6, 3, 4), layout), device=backend.device)
        dense = torch.randn(given.inputs.shape, device=backend.device)
        expected = run(backend.name, given, dense)
        for grad in (
            dense.contiguous(memory_format=torch.channels_last),
            dense.transpose(2, 3).contiguous().transpose(2, 3),
            torch.cat([dense, dense], 1)[:, :6],
        ):
            assert torch.equal(run(backend.name, given, grad)[1], expected[1])
        ones = torch.ones((), device=backend.device).expand(given.inputs.shape)
        a, e = (run(backend.name, given, grad)[1] for grad in (ones, torch.ones_like(dense)))
        assert torch.equal(a, e)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 40), st.integers(1, 40)),
    layout=st.sampled_from(["contiguous", "channels_last", "channel_slice", "channels_last_slice", "crop", "expanded"]),
    target_layout=st.sampled_from(["contiguous", "channels_last", "channels_last_slice", "expanded"]),
    dtype=st.sampled_from(FLOATING),
    target_dtype=st.sampled_from([*FLOATING, *INTEGERS]),
    gamma=st.sampled_from(GAMMAS),
    alpha=st.sampled_from([0.25, 0.6, -1.0]),
    reduction=st.sampled_from(REDUCTIONS),
)
def test_any_shape(
    shape: tuple[int, int, int, int],
    layout: str,
    target_layout: str,
    dtype: torch.dtype,
    target_dtype: torch.dtype,
    gamma: float,
    alpha: float,
    reduction: str,
) -> None:
    given = make(MapCase(shape, layout), dtype, target_dtype=target_dtype, target_layout=target_layout)
    check(Backend("cpu", "cpu"), given, alpha, gamma, reduction=reduction)


def test_training_follows_torchvision() -> None:
    """A small segmenter, 50 steps: the losses of both runs agree within rounding."""
    theirs = import_peer("torchvision.ops").sigmoid_focal_loss
    images = torch.rand(4, 3, 24, 24)
    masks = (images[:, :1] > 0.5).float()

    def losses(function: Any) -> Tensor:
        torch.manual_seed(1)
        model = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 3, padding=1)
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        found = []
        for _ in range(50):
            optimizer.zero_grad()
            loss = function(model(images)[:, :1], masks, reduction="mean")
            loss.backward()
            optimizer.step()
            found.append(loss.detach())
        return torch.stack(found)

    ours, expected = losses(sod_ops.sigmoid_focal_loss), losses(theirs)
    assert expected[-1] < 0.5 * expected[0]  # it learns, so that a wrong gradient would show
    # Logits scaled by 1 + 1e-7 part torchvision's run from itself by 2.3e-7.
    torch.testing.assert_close(ours, expected, rtol=2e-6, atol=0)

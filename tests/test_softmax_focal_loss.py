"""softmax_focal_loss on every backend, against its reference in float64 and against cross_entropy."""

from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from cases import FLOATING, MapCase
from conftest import Backend
from test_sigmoid_focal_loss_contract import allocated, graphs_of
from tolerances import assert_accurate
from torch import Tensor

import sod_ops
from sod_ops.reference.sigmoid_focal_loss import REDUCTIONS

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
GAMMAS = (0.0, 0.5, 1.0, 2.0, 3.5)
IGNORED = 101  # fits every integer dtype, and is no class of a small case

SHAPES = [(1, 1), (5, 2), (33, 15), (17, 16), (7, 80), (3, 1000), (2, 4, 9), (3, 21, 5, 7), (2, 3, 2, 3, 4), (300, 31)]
# Not in Triton's interpreter: several blocks and tasks, classes beyond a block.
LARGE = [(2000, 80), (3, 9000), (2, 21, 65, 67)]
LAYOUTS = ["channels_last", "channel_slice", "channels_last_slice", "sample_slice", "expanded", "crop", "transposed"]


class Inputs(NamedTuple):
    inputs: Tensor
    targets: Tensor


def targets_for(shape: tuple[int, ...], device: str, dtype: torch.dtype = torch.int64) -> Tensor:
    """Classes, of which a fifth is ignored, but for the first."""
    positions = (*shape[:1], *shape[2:])
    classes = torch.randint(min(shape[1], 100), positions)
    classes[torch.rand(positions) < 0.2] = IGNORED
    classes.view(-1)[0] = shape[1] - 1 if shape[1] <= 100 else 0
    return classes.to(dtype).to(device)


def make(
    shape: tuple[int, ...] = (3, 7, 5, 4), dtype: torch.dtype = torch.float32, device: str = "cpu", **kwargs: Any
) -> Inputs:
    return Inputs(
        (torch.randn(shape, dtype=torch.float64) * 4).to(dtype).to(device), targets_for(shape, device, **kwargs)
    )


def run(backend: str, given: Inputs, grad: Tensor, *options: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """The loss and the gradient of inputs."""
    leaf = given.inputs.detach().requires_grad_()
    with sod_ops.use_backend(backend):
        loss = sod_ops.softmax_focal_loss(leaf, given.targets, *options, ignore_index=IGNORED, **kwargs)
        (found,) = torch.autograd.grad(loss, leaf, grad.to(loss.dtype))
    return loss.detach(), found


def check(backend: Backend, given: Inputs, *options: Any, **kwargs: Any) -> None:
    """Holds the loss and the gradient to those of the reference in float64."""
    reduces = kwargs.get("reduction", "mean") != "none"
    grad = torch.randn(() if reduces else given.targets.shape, dtype=torch.float64, device=backend.device)
    if reduces and backend.interpreted:
        # The interpreter truncates what it stores in bfloat16, and would do so twice where the stored gradient is scaled.
        grad = grad.fill_(-2.0)
    grad = grad.to(given.inputs.dtype)
    before = [t.detach().clone() for t in given]
    actual = run(backend.name, given, grad, *options, **kwargs)
    plain = run("reference", given, grad, *options, **kwargs)
    exact = run("reference", Inputs(given.inputs.double(), given.targets), grad.double(), *options, **kwargs)
    for name, a, p, e in zip(("forward", "inputs"), actual, plain, exact, strict=True):
        assert_accurate(a, p, e, name)
    for tensor, copy in zip(given, before, strict=True):
        assert torch.equal(tensor.nan_to_num(), copy.nan_to_num()), "an input was changed"


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_and_dtypes(backend: Backend, shape: tuple[int, ...], dtype: torch.dtype, reduction: str) -> None:
    check(backend, make(shape, dtype, backend.device), reduction=reduction)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_large(backend: Backend, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    shape = (2, 2100) if backend.interpreted else shape  # more classes than a tile
    for reduction in REDUCTIONS:
        check(backend, make(shape, dtype, backend.device), reduction=reduction)


@pytest.mark.parametrize("classes", [2, 5, 21, 40])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend: Backend, layout: str, classes: int) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        case = MapCase((3, classes, 5, 6), layout)
        given = Inputs(case.build(dtype, backend.device), targets_for(case.shape, backend.device))
        for reduction in ("none", "mean"):
            check(backend, given, reduction=reduction)
        transposed = given.targets.transpose(1, 2).contiguous().transpose(1, 2)
        check(backend, Inputs(given.inputs, transposed), reduction="none")


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("weights", [None, 0.3, "tensor"], ids=str)
def test_options(backend: Backend, weights: Any, dtype: torch.dtype, gamma: float) -> None:
    for shape in ((9, 20), (2, 6, 3, 4)):
        alpha = torch.rand(shape[1] * 2, device=backend.device)[::2] if weights == "tensor" else weights
        for reduction in REDUCTIONS:
            check(backend, make(shape, dtype, backend.device), alpha, gamma, reduction=reduction)


@pytest.mark.parametrize("target_dtype", INTEGERS, ids=str)
def test_dtypes_of_targets(backend: Backend, target_dtype: torch.dtype) -> None:
    for shape in ((9, 20), (2, 6, 3, 4)):
        check(backend, make(shape, device=backend.device, dtype=torch.float32), reduction="mean")
        inputs, _ = make(shape, device=backend.device)
        check(backend, Inputs(inputs, targets_for(shape, backend.device, target_dtype)), reduction="none")


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(40, 30), (2, 5, 6, 7)], ids=str)
def test_gamma_0_is_cross_entropy(backend: Backend, shape: tuple[int, ...], reduction: str) -> None:
    given = make(shape, device=backend.device)
    grad = torch.ones(() if reduction != "none" else given.targets.shape, device=backend.device)
    leaf = given.inputs.clone().requires_grad_()
    loss = F.cross_entropy(leaf, given.targets, ignore_index=IGNORED, reduction=reduction)
    expected = loss.detach(), torch.autograd.grad(loss, leaf, grad)[0]
    for a, e in zip(run(backend.name, given, grad, None, 0.0, reduction=reduction), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.5, 1.0, 2.0, 7.5])
def test_saturated_logits(kernel_backend: Backend, gamma: float, dtype: torch.dtype) -> None:
    """Finite and right at any finite logit: two classes are the sigmoid form, whose reference keeps small losses' digits."""
    sizes = [0.0, 1e-6, 15.0, 17.0, 30.0, 50.0, 87.0, 88.0, 100.0, 104.0, 300.0, 740.0, 750.0, 3e4]
    z = torch.tensor([*sizes, *(-s for s in sizes)], dtype=torch.float64).to(dtype).to(kernel_backend.device)
    given = Inputs(torch.stack([z, torch.zeros_like(z)], 1), torch.zeros(len(z), dtype=torch.int64, device=z.device))
    loss, gradient = run(kernel_backend.name, given, torch.ones_like(z), None, gamma, reduction="none")
    leaf = z.double().requires_grad_()
    with sod_ops.use_backend("reference"):
        exact = sod_ops.sigmoid_focal_loss(leaf, torch.ones_like(leaf), -1, gamma)
    (slope,) = torch.autograd.grad(exact.sum(), leaf)
    rounding = max(torch.finfo(dtype).eps, 1e-14) * (8 + 90 * gamma)  # a power's error grows with its logarithm
    tiny = torch.finfo(dtype).smallest_normal if dtype != torch.float64 else 1e-300
    for a, e in ((loss, exact), (gradient[:, 0], slope), (gradient[:, 1], -slope)):
        assert a.isfinite().all()
        torch.testing.assert_close(a.double(), e.detach(), rtol=rounding, atol=tiny)


@pytest.mark.parametrize("shape", [(6, 4), (6, 40), (1, 5, 2, 3)], ids=str)
def test_ignored_positions_hide_their_logits(backend: Backend, shape: tuple[int, ...]) -> None:
    """NaN and infinity there reach nothing; elsewhere they stay where they are."""
    inputs, targets = make(shape, device=backend.device)
    targets.view(-1)[:] = 1
    targets.view(-1)[::2] = IGNORED
    by_position = inputs.movedim(1, -1).reshape(-1, shape[1])
    clean = inputs.clone()
    strange = by_position.clone()
    strange[0], strange[2] = float("nan"), float("inf")
    strange = strange.view(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
    for reduction in REDUCTIONS:
        grad = torch.ones(() if reduction != "none" else targets.shape, device=backend.device)
        for a, e in zip(
            run(backend.name, Inputs(strange, targets), grad, reduction=reduction),
            run(backend.name, Inputs(clean, targets), grad, reduction=reduction),
            strict=True,
        ):
            torch.testing.assert_close(a, e)
    by_position[1, 0] = float("nan")
    spoiled = by_position.view(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
    loss, gradient = run(backend.name, Inputs(spoiled, targets), torch.ones_like(targets), reduction="none")
    assert loss.isnan().sum() == 1
    assert gradient.isnan().sum() == shape[1]


def test_an_ignored_index_may_be_a_class(backend: Backend) -> None:
    inputs, targets = make((6, 4), device=backend.device)
    targets[:] = torch.tensor([0, 1, 2, 3, 0, 1])
    loss = sod_ops.softmax_focal_loss(inputs, targets, ignore_index=0, reduction="none")
    assert (loss == 0).tolist() == [True, False, False, False, True, False]
    torch.testing.assert_close(
        sod_ops.softmax_focal_loss(inputs, targets, ignore_index=0), loss.sum() / 4, rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("shape", [(0, 3), (2, 3, 0), (0, 4, 2, 2)], ids=str)
def test_empty(backend: Backend, shape: tuple[int, ...]) -> None:
    """As cross_entropy: the mean of nothing is NaN, the sum 0, and both have a gradient."""
    for reduction in REDUCTIONS:
        leaf = torch.zeros(shape, device=backend.device, requires_grad=True)
        targets = torch.zeros((*shape[:1], *shape[2:]), dtype=torch.int64, device=backend.device)
        loss = sod_ops.softmax_focal_loss(leaf, targets, reduction=reduction)
        torch.testing.assert_close(loss, F.cross_entropy(leaf, targets, reduction=reduction), equal_nan=True)
        loss.sum().backward()
        assert leaf.grad.shape == leaf.shape


def test_all_ignored(backend: Backend) -> None:
    """The mean is NaN as in cross_entropy, and the gradient 0."""
    inputs, targets = make((6, 20), device=backend.device)
    loss, gradient = run(backend.name, Inputs(inputs, targets * 0 + IGNORED), torch.ones(()), reduction="mean")
    assert loss.isnan()
    assert (gradient == 0).all()


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(backend: Backend, gamma: float, reduction: str) -> None:
    inputs, targets = make((2, 3, 2, 2), torch.float64, backend.device)
    leaf = (inputs / 4).requires_grad_()
    alpha = torch.rand(3, dtype=torch.float64, device=backend.device).requires_grad_()

    def function(inputs: Tensor, alpha: Tensor) -> Tensor:
        return sod_ops.softmax_focal_loss(inputs, targets, alpha, gamma, IGNORED, reduction)

    for arguments in ((leaf, alpha.detach()), (leaf, alpha), (leaf.detach(), alpha)):
        assert torch.autograd.gradcheck(function, arguments, fast_mode=backend.interpreted)
        assert torch.autograd.gradgradcheck(function, arguments, fast_mode=True)


def test_incoming_gradients_of_any_layout(backend: Backend) -> None:
    for shape in ((3, 6, 3, 4), (3, 40, 3, 4)):
        inputs, targets = make(shape, device=backend.device)
        for x in (inputs, inputs.contiguous(memory_format=torch.channels_last)):
            dense = torch.randn(targets.shape, device=backend.device)
            expected = run(backend.name, Inputs(x, targets), dense, reduction="none")[1]
            grad = dense.transpose(1, 2).contiguous().transpose(1, 2)
            assert torch.equal(run(backend.name, Inputs(x, targets), grad, reduction="none")[1], expected)
            ones = torch.ones((), device=backend.device).expand(targets.shape)
            a, e = (
                run(backend.name, Inputs(x, targets), g, reduction="none")[1] for g in (ones, torch.ones_like(dense))
            )
            assert torch.equal(a, e)


# ---- Stored gradients, memory, determinism ----------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_backward_twice(backend: Backend, reduction: str) -> None:
    """retain_graph: each time with the gradient that comes in, whatever became of what the first time returned."""
    inputs, targets = make(device=backend.device)
    leaf = inputs.detach().requires_grad_()
    loss = sod_ops.softmax_focal_loss(leaf, targets, ignore_index=IGNORED, reduction=reduction)
    grads = [torch.full_like(loss, factor) for factor in (4.0, 1.0, -2.0)]
    (first,) = torch.autograd.grad(loss, leaf, grads[0], retain_graph=True)
    copy = first.clone()
    first.zero_()
    for grad, factor in zip(grads[1:], (1.0, -2.0), strict=True):
        (again,) = torch.autograd.grad(loss, leaf, grad, retain_graph=True)
        torch.testing.assert_close(again, copy * (factor / 4), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "channel_slice", "channels_last_slice"])
def test_a_mean_costs_one_map(kernel_backend: Backend, layout: str) -> None:
    """Forward and backward allocate the gradient and nothing else of its size: nothing is copied, slices neither."""
    inputs = MapCase((2, 20, 24, 26), layout).build(torch.float32, kernel_backend.device)
    targets = targets_for(inputs.shape, kernel_backend.device)
    leaf = inputs.detach().requires_grad_()

    def step() -> Tensor:
        loss = sod_ops.softmax_focal_loss(leaf, targets, ignore_index=IGNORED)
        return torch.autograd.grad(loss, leaf)[0]

    size = inputs.numel() * inputs.element_size()
    assert size <= allocated(kernel_backend, step) < 1.3 * size
    gradient = step()
    assert gradient.stride() == torch.empty_like(inputs).stride()
    assert (
        allocated(kernel_backend, lambda: sod_ops.softmax_focal_loss(inputs, targets, ignore_index=IGNORED)) < size / 4
    )


def test_deterministic(backend: Backend) -> None:
    given = make((2, 21, 9, 11) if backend.interpreted else (4, 21, 61, 67), device=backend.device)
    grad = torch.tensor(0.7, device=backend.device)
    first = run(backend.name, given, grad, reduction="mean")
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for a, b in zip(run(backend.name, given, grad, reduction="mean"), first, strict=True):
                assert torch.equal(a, b) or backend.name == "reference"  # whose sums follow the number of threads
    finally:
        torch.set_num_threads(threads)


# ---- PyTorch's other parts --------------------------------------------------------------------------------------------


def test_func_transforms(backend: Backend) -> None:
    inputs, targets = make((3, 4, 2, 5), torch.float64, backend.device)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return sod_ops.softmax_focal_loss(x, y, ignore_index=IGNORED, reduction="sum")

    leaf = inputs.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf, targets), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(inputs, targets), expected)
    each = torch.func.vmap(torch.func.grad(lambda x, y: loss(x[None], y[None])))(inputs, targets)
    torch.testing.assert_close(each, expected)


@pytest.mark.parametrize("reduction", range(3))
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "channel_slice"])
def test_operators_pass_opcheck(kernel_backend: Backend, layout: str, reduction: int) -> None:
    kernels = sod_ops.ops.softmax_focal_loss._select(kernel_backend.device)
    inputs = MapCase((2, 6, 3, 4), layout).build(torch.float32, kernel_backend.device)
    targets = targets_for(inputs.shape, kernel_backend.device)
    options = (torch.rand(6, device=kernel_backend.device), 1.0, 1.5, IGNORED, reduction)
    for with_gradient in (False, True):
        leaf = inputs.detach().requires_grad_()
        torch.library.opcheck(kernels.forward, (leaf, targets, *options, with_gradient))
    loss, _ = kernels.forward(inputs, targets, *options, False)
    torch.library.opcheck(kernels.backward, (torch.randn_like(loss), inputs, targets, *options))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_compile(backend: Backend, reduction: str, layout: str) -> None:
    """One graph, with the fused operators of this backend; twice run, as what is stored must not be used up."""
    inputs = MapCase((2, 6, 5, 4), layout).build(torch.float32, backend.device)
    given = Inputs(inputs, targets_for(inputs.shape, backend.device))
    grad = torch.tensor(-2.0, device=backend.device)
    grad = grad.expand(given.targets.shape) if reduction == "none" else grad
    expected = run(backend.name, given, grad, None, 1.5, reduction=reduction)
    compiled, operators = graphs_of(sod_ops.softmax_focal_loss)
    for _ in range(2):
        leaf = given.inputs.detach().requires_grad_()
        loss = compiled(leaf, given.targets, None, 1.5, IGNORED, reduction)
        torch.testing.assert_close(loss, expected[0])
        torch.testing.assert_close(torch.autograd.grad(loss, leaf, grad)[0], expected[1])
    names = {o.split(".")[1] for o in operators if o.startswith("sod_ops")}
    wanted = {"softmax_focal_loss"} | ({"softmax_focal_loss_backward"} if reduction == "none" else set())
    assert names == (set() if backend.name == "reference" else wanted)


def test_compile_with_dynamic_shapes(backend: Backend) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(sod_ops.softmax_focal_loss, fullgraph=True, dynamic=True, backend="aot_eager")
    function = partial(sod_ops.softmax_focal_loss, ignore_index=IGNORED)
    for size in ((2, 3, 8, 8), (3, 5, 5, 7), (4, 2, 9, 3)):
        inputs, targets = make(size, device=backend.device)
        torch.testing.assert_close(compiled(inputs, targets, ignore_index=IGNORED), function(inputs, targets))


def test_module_and_export(backend: Backend) -> None:
    inputs, targets = make(device=backend.device)
    module = sod_ops.nn.SoftmaxFocalLoss(torch.rand(7, device=backend.device), 1.5, IGNORED)
    expected = sod_ops.softmax_focal_loss(inputs, targets, module.alpha, 1.5, IGNORED)
    assert torch.equal(module(inputs, targets), expected)
    assert list(module.state_dict()) == ["alpha"]
    assert repr(module) == "SoftmaxFocalLoss(alpha=[7], gamma=1.5, ignore_index=101, reduction='mean')"
    exported = torch.export.export(module, (inputs, targets))
    torch.testing.assert_close(exported.module()(inputs, targets), expected)
    plain = sod_ops.nn.SoftmaxFocalLoss(0.5, ignore_index=IGNORED, reduction="sum")
    torch.testing.assert_close(
        plain(inputs, targets), sod_ops.softmax_focal_loss(inputs, targets, 0.5, 2.0, IGNORED, "sum")
    )
    with pytest.raises(ValueError, match="SoftmaxFocalLoss: gamma must be"):
        sod_ops.nn.SoftmaxFocalLoss(gamma=-1)


# ---- Bad input --------------------------------------------------------------------------------------------------------

T = torch.zeros
L = torch.zeros(2, 4, 4, dtype=torch.int64)
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"inputs": None}, TypeError, "inputs must be a Tensor, got NoneType"),
    ({"inputs": T(2, 3, 4, 4, dtype=torch.int64)}, TypeError, "inputs must be float32, .* got torch.int64"),
    ({"inputs": T(2)}, ValueError, r"inputs must be \[N, K, ...\] with at least one class, got \[2\]"),
    ({"inputs": T(2, 0, 4, 4)}, ValueError, r"inputs must be \[N, K, ...\] with at least one class"),
    ({"targets": L[:1]}, ValueError, r"targets must be of .* \[2, 4, 4\], got \[1, 4, 4\]; a loss never broadcasts$"),
    ({"targets": L[:, None]}, ValueError, r"got \[2, 1, 4, 4\]; .*targets\[:, 0\]"),
    ({"targets": L.float()}, TypeError, "targets must be uint8 or a signed integer, got torch.float32"),
    ({"targets": L.bool()}, TypeError, "targets must be uint8 or a signed integer, got torch.bool"),
    ({"targets": 1}, TypeError, "targets must be a Tensor, got int"),
    ({"targets": L.to("meta")}, ValueError, "targets must be on the device of inputs"),
    ({"alpha": T(2)}, ValueError, r"alpha must be of shape \[3\], a weight for each class, got \[2\]"),
    ({"alpha": T(3, 1)}, ValueError, r"alpha must be of shape \[K\]"),
    ({"alpha": T(3, dtype=torch.int64)}, TypeError, "alpha must be float32"),
    ({"alpha": T(3, device="meta")}, ValueError, "alpha must be on the device of inputs"),
    ({"alpha": -0.5}, ValueError, "alpha must be None, a finite number, 0 or more"),
    ({"alpha": "0.25"}, TypeError, "alpha must be a number, got '0.25'"),
    ({"gamma": -1}, ValueError, "gamma must be a finite number, 0 or more, got -1"),
    ({"gamma": float("nan")}, ValueError, "gamma must be a finite number, 0 or more, got nan"),
    ({"gamma": None}, TypeError, "gamma must be a number"),
    ({"ignore_index": 1.5}, TypeError, r"ignore_index must be an integer, got 1.5 \(float\)"),
    ({"ignore_index": None}, TypeError, "ignore_index must be an integer"),
    ({"reduction": "avg"}, ValueError, "reduction must be one of 'none', 'mean', 'sum', got 'avg'"),
    ({"reduction": None}, TypeError, "reduction must be a string"),
]


@pytest.mark.parametrize(
    ("change", "error", "message"), BAD, ids=[f"{next(iter(c))}-{i}" for i, (c, _, _) in enumerate(BAD)]
)
def test_bad_input_is_named(backend: Backend, change: dict[str, Any], error: type[Exception], message: str) -> None:
    good = {"inputs": T(2, 3, 4, 4), "targets": L, "alpha": None, "gamma": 2.0, "ignore_index": -1, "reduction": "mean"}
    arguments = {
        k: v.to(backend.device) if isinstance(v, Tensor) and v.device.type == "cpu" else v
        for k, v in {**good, **change}.items()
    }
    with pytest.raises(error, match=f"softmax_focal_loss: .*{message}"):
        sod_ops.softmax_focal_loss(**arguments)


@pytest.mark.parametrize("bad", [-1, 7, 100])
def test_a_target_that_is_no_class(backend: Backend, bad: int) -> None:
    """An error where the host can look without waiting; on a GPU, NaN in its position alone."""
    for shape in ((4, 7), (2, 7, 3, 3), (4, 40)):
        inputs, targets = make(shape, device=backend.device)
        targets.view(-1)[1] = bad if shape[1] == 7 else 4000
        if backend.device == "cpu":
            with pytest.raises(ValueError, match=r"targets must be a class, 0 to \d+, or ignore_index, 101, .* got"):
                sod_ops.softmax_focal_loss(inputs, targets, ignore_index=IGNORED)
            if backend.name != "triton":
                continue
        loss, gradient = poisoned(backend, inputs, targets, 0)
        assert loss.isnan().nonzero().numel() == targets.dim()
        assert gradient.isnan().sum() == shape[1]
        loss, gradient = poisoned(backend, inputs, targets, 1)
        assert loss.isnan()


def poisoned(backend: Backend, inputs: Tensor, targets: Tensor, reduction: int) -> tuple[Tensor, Tensor]:
    """The loss and the gradient as the operators give them, below the check that the CPU has."""
    kernels = sod_ops.ops.softmax_focal_loss._select(backend.device)
    options = (inputs, targets, torch.ones(inputs.shape[1], device=inputs.device), 1.0, 2.0, IGNORED, reduction)
    loss, _ = kernels.forward(*options, False)
    return loss, kernels.backward(torch.ones_like(loss), *options)


def test_operators_refuse_what_would_read_out_of_bounds() -> None:
    """The operators below the public function guard themselves too."""
    x, y = T(2, 3, 4, 4), L
    operator, backward = torch.ops.sod_ops.softmax_focal_loss, torch.ops.sod_ops.softmax_focal_loss_backward
    options = (None, 1.0, 2.0, -100, 1)
    for arguments in (
        (x, y[:1], *options, False),
        (x, y + 3, *options, False),
        (x, y - 1, *options, False),
        (x, y.float(), *options, False),
        (x.int(), y, *options, False),
        (x, y, T(2), *options[1:], False),
        (x, y, None, -1.0, *options[2:], False),
        (x, y, None, 1.0, -1.0, *options[3:], False),
        (x, y, *options[:4], 3, False),
        (x, y[:, :1].expand(2, 4, 4), *options, False),
    ):
        with pytest.raises(RuntimeError, match="softmax_focal_loss"):
            operator(*arguments)
    for grad, reduction in ((x, 0), (T(2, 4, 4).double(), 0), (T(2, 4, 4), 1), (T(1), 2)):
        with pytest.raises(RuntimeError, match="grad_output"):
            backward(grad, x, y, *options[:4], reduction)

"""sigmoid_focal_loss on every backend: stored gradients, memory, PyTorch's other parts, bad input."""

from typing import Any

import pytest
import torch
from cases import MAPS, MapCase
from conftest import Backend
from test_sigmoid_focal_loss import Inputs, make, run, small
from torch import Tensor

import sod_ops
from sod_ops.reference.sigmoid_focal_loss import REDUCTIONS


def allocated(backend: Backend, function: Any) -> int:
    """Bytes that the tensors made by ``function`` take."""
    with torch.profiler.profile(profile_memory=True) as profile:
        kept = function()
    assert kept is not None
    attribute = "self_device_memory_usage" if backend.device == "cuda" else "self_cpu_memory_usage"
    return sum(max(0, getattr(event, attribute)) for event in profile.events())


# ---- The gradient that a mean or a sum stores -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_incoming_gradient_scales_the_stored_one(kernel_backend: Backend, reduction: str, dtype: torch.dtype) -> None:
    given = make(MapCase((2, 3, 5, 7)), dtype, kernel_backend.device)
    for factor in (1.0, 2.0, -0.5, 0.0):  # powers of two: the rounding of the stored gradient is all there is
        one, scaled = (
            run(kernel_backend.name, given, torch.tensor(f, device=kernel_backend.device), reduction=reduction)[1]
            for f in (1.0, factor)
        )
        torch.testing.assert_close(scaled, (one.double() * factor).to(dtype), rtol=0, atol=1e-7)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_backward_twice(backend: Backend, reduction: str) -> None:
    """retain_graph: each time with the gradient that comes in, whatever became of what the first time returned."""
    inputs, targets = make(device=backend.device)
    leaf = inputs.detach().requires_grad_()
    loss = sod_ops.sigmoid_focal_loss(leaf, targets, reduction=reduction)
    grads = [torch.full_like(loss, factor) for factor in (4.0, 1.0, -2.0)]
    (first,) = torch.autograd.grad(loss, leaf, grads[0], retain_graph=True)
    copy = first.clone()
    first.zero_()
    for grad, factor in zip(grads[1:], (1.0, -2.0), strict=True):
        (again,) = torch.autograd.grad(loss, leaf, grad, retain_graph=True)
        torch.testing.assert_close(again, copy * (factor / 4), rtol=1e-6, atol=1e-9)
    loss.backward(grads[1])
    torch.testing.assert_close(leaf.grad, copy / 4, rtol=1e-6, atol=1e-9)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward(grads[1])


def test_gradients_accumulate(backend: Backend) -> None:
    """Two losses of one leaf, as with several heads: neither changes what the other has stored."""
    inputs, targets = make(device=backend.device)
    leaf = inputs.detach().requires_grad_()
    expected = torch.zeros_like(inputs)
    for gamma in (2.0, 0.5):
        (one,) = torch.autograd.grad(sod_ops.sigmoid_focal_loss(leaf, targets, 0.25, gamma, "mean"), leaf)
        expected += one
    losses = [sod_ops.sigmoid_focal_loss(leaf, targets, 0.25, gamma, "mean") for gamma in (2.0, 0.5)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(leaf.grad, expected)


def test_a_mean_costs_one_map(kernel_backend: Backend) -> None:
    """Forward and backward allocate the gradient and nothing else of its size; autograd keeps it without a copy."""
    inputs, targets = make(MapCase((4, 1, 64, 64)), device=kernel_backend.device)
    leaf = inputs.detach().requires_grad_()

    def step() -> Tensor:
        loss = sod_ops.sigmoid_focal_loss(leaf, targets, reduction="mean")
        loss.backward()
        return loss

    size = inputs.numel() * inputs.element_size()
    assert size <= allocated(kernel_backend, step) < 1.5 * size


def test_float16_with_a_loss_scale(backend: Backend) -> None:
    """A mean's gradient that float16 cannot hold before the loss scale lifts it."""
    inputs, targets = make(MapCase((4, 1, 64, 64)), torch.float16, backend.device)
    scale = torch.tensor(2.0**15, device=backend.device)
    _, actual = run(backend.name, Inputs(inputs, targets.float()), scale, reduction="mean")
    exact = run("reference", Inputs(inputs.double(), targets.double()), scale, reduction="mean")[1]
    torch.testing.assert_close(actual.double(), exact, rtol=2e-3, atol=1e-4 * exact.abs().max().item())


# ---- Memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target_dtype", [torch.float32, torch.bool, torch.int64], ids=str)
@pytest.mark.parametrize("layout", ["channel_slice", "sample_slice", "channels_last_slice"])
def test_slices_and_targets_are_read_in_place(kernel_backend: Backend, layout: str, target_dtype: torch.dtype) -> None:
    """out[:, :1] in either memory format: a mean allocates next to nothing, whatever the targets' dtype."""
    given = make(MapCase((4, 1, 48, 40), layout), device=kernel_backend.device, target_dtype=target_dtype)
    size = given.inputs.numel()
    function = sod_ops.sigmoid_focal_loss
    assert allocated(kernel_backend, lambda: function(*given, reduction="mean")) < size / 2
    leaf = given.inputs.detach().requires_grad_()

    def step() -> Tensor:
        return torch.autograd.grad(function(leaf, given.targets).sum(), leaf)[0]

    # The losses and the gradient; sum()'s gradient is an expanded number and is read as such.
    assert allocated(kernel_backend, step) < 2.5 * 4 * size


@pytest.mark.parametrize("case", [c for c in MAPS if not c.large], ids=str)
def test_memory_format_is_kept(kernel_backend: Backend, case: MapCase) -> None:
    given = make(case, device=kernel_backend.device)
    for reduction in REDUCTIONS:
        grad = torch.ones(() if reduction != "none" else case.shape, device=kernel_backend.device)
        loss, gradient = run(kernel_backend.name, given, grad, reduction=reduction)
        if case.layout in ("contiguous", "channels_last"):
            assert gradient.stride() == given.inputs.stride() or gradient.numel() == max(gradient.shape)
        if case.layout == "channels_last" and reduction == "none":
            assert loss.is_contiguous(memory_format=torch.channels_last)


# ---- Determinism ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [MAPS[0], MAPS[7], *(c for c in MAPS if c.large)], ids=str)
def test_deterministic(backend: Backend, case: MapCase) -> None:
    given = make(small(case, backend), device=backend.device)
    torch.use_deterministic_algorithms(True)
    try:
        grad = torch.tensor(0.7, device=backend.device)
        first = run(backend.name, given, grad, reduction="mean")
        for _ in range(1 if backend.interpreted else 5):
            for a, b in zip(run(backend.name, given, grad, reduction="mean"), first, strict=True):
                assert torch.equal(a, b)
    finally:
        torch.use_deterministic_algorithms(False)


def test_sums_do_not_depend_on_the_number_of_threads() -> None:
    threads = torch.get_num_threads()
    given = make(MapCase((3, 2, 211, 197)))
    results = []
    try:
        for count in (1, 2, 3, 4):
            torch.set_num_threads(count)
            results.append(run("cpu", given, torch.tensor(1.0), reduction="sum"))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


# ---- PyTorch's other parts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_double_backward_matches_the_reference(backend: Backend, reduction: str) -> None:
    def second(name: str) -> tuple[Tensor, ...]:
        torch.manual_seed(1)
        inputs, targets = make(MapCase((2, 3, 3, 3)), torch.float64, backend.device)
        leaf = inputs.detach().requires_grad_()
        with sod_ops.use_backend(name):
            loss = sod_ops.sigmoid_focal_loss(leaf, targets, 0.25, 1.5, reduction)
            (grad,) = torch.autograd.grad(loss.square().sum(), leaf, create_graph=True)
            return torch.autograd.grad(grad.square().sum(), leaf)

    for a, e in zip(second(backend.name), second("reference"), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-14)


def test_func_transforms(backend: Backend) -> None:
    inputs, targets = make(MapCase((3, 2, 4, 4)), torch.float64, backend.device)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return sod_ops.sigmoid_focal_loss(x, y, reduction="sum")

    leaf = inputs.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf, targets), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(inputs, targets), expected)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(inputs, targets), expected)
    _, tangent = torch.func.jvp(lambda x: loss(x, targets), (inputs,), (torch.ones_like(inputs),))
    torch.testing.assert_close(tangent, expected.sum())


@pytest.mark.parametrize("reduction", range(3))
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "channel_slice"])
def test_operators_pass_opcheck(kernel_backend: Backend, layout: str, reduction: int) -> None:
    kernels = sod_ops.ops.sigmoid_focal_loss._select(kernel_backend.device)
    case = MapCase((2, 6, 3, 4), layout)
    given = make(case, device=kernel_backend.device, target_dtype=torch.bool, target_layout=layout)
    for with_gradient in (False, True):
        leaf = given.inputs.detach().requires_grad_()
        torch.library.opcheck(kernels.forward, (leaf, given.targets, 0.25, 1.5, reduction, with_gradient))
    loss, _ = kernels.forward(*given, 0.25, 1.5, reduction, False)
    torch.library.opcheck(kernels.backward, (torch.randn_like(loss), *given, 0.25, 1.5, reduction))


@pytest.mark.parametrize("reduction", range(3))
def test_operators_called_directly_have_gradients(kernel_backend: Backend, reduction: int) -> None:
    kernels = sod_ops.ops.sigmoid_focal_loss._select(kernel_backend.device)
    inputs, targets = make(device=kernel_backend.device)
    for with_gradient in (False, True):
        leaves = inputs.clone().requires_grad_(), targets.clone().requires_grad_()
        loss, _ = kernels.forward(*leaves, 0.25, 2.0, reduction, with_gradient)
        grad = torch.randn_like(loss)
        options = 0.25, 2.0, REDUCTIONS[reduction]
        (alone,) = torch.autograd.grad(loss, leaves[0], grad, retain_graph=True)
        torch.testing.assert_close(alone, run(kernel_backend.name, Inputs(inputs, targets), grad, *options)[1])
        found = torch.autograd.grad(loss, leaves, grad)
        expected = torch.autograd.grad(sod_ops.sigmoid_focal_loss(*leaves, *options), leaves, grad)
        for a, e in zip(found, expected, strict=True):
            torch.testing.assert_close(a, e)


def graphs_of(function: Any, *arguments: Any) -> tuple[Any, list[str]]:
    """``function`` compiled to one graph, and the operators of its forward and, once it has run, its backward."""
    from torch._dynamo.backends.common import aot_autograd

    operators: list[str] = []

    def collect(graph: torch.fx.GraphModule, _: Any) -> Any:
        operators.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=collect, bw_compiler=collect)
    return torch.compile(function, fullgraph=True, backend=backend), operators


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "channel_slice"])
@pytest.mark.parametrize(("dtype", "reduction"), [(torch.float32, r) for r in REDUCTIONS] + [(torch.float16, "mean")])
def test_compile(backend: Backend, dtype: torch.dtype, reduction: str, layout: str) -> None:
    """One graph, with the fused operators of this backend; twice run, as what is stored must not be used up."""
    given = make(MapCase((2, 6, 5, 4), layout), dtype, backend.device)
    options = 0.25, 1.5, reduction
    grad = torch.tensor(-2.0, dtype=dtype, device=backend.device)
    grad = grad.expand(given.inputs.shape) if reduction == "none" else grad
    expected = run(backend.name, given, grad, *options)
    compiled, operators = graphs_of(sod_ops.sigmoid_focal_loss)
    for _ in range(2):
        leaf = given.inputs.detach().requires_grad_()
        loss = compiled(leaf, given.targets, *options)
        torch.testing.assert_close(loss, expected[0])
        for _ in range(2):
            (found,) = torch.autograd.grad(loss, leaf, grad, retain_graph=True)
            torch.testing.assert_close(found, expected[1])
    namespace = {"cpu": "sod_ops.", "cuda": "sod_ops.", "triton": "sod_ops_triton."}.get(backend.name)
    assert [o for o in operators if o.startswith("sod_ops")] == (
        []
        if namespace is None
        else [f"{namespace}sigmoid_focal_loss.default"]
        + [f"{namespace}sigmoid_focal_loss_backward.default"] * (reduction == "none" or dtype == torch.float16)
    )


def test_compile_with_gradients_of_targets(backend: Backend) -> None:
    inputs, targets = make(device=backend.device)
    compiled, _ = graphs_of(sod_ops.sigmoid_focal_loss)
    results = []
    for function in (compiled, sod_ops.sigmoid_focal_loss):
        leaves = inputs.clone().requires_grad_(), targets.clone().requires_grad_()
        loss = function(*leaves, reduction="mean")
        results.append((loss, *torch.autograd.grad(loss, leaves)))
    for a, e in zip(*results, strict=True):
        torch.testing.assert_close(a, e)


def test_compile_with_inductor_inside_a_model() -> None:
    inputs, targets = make()
    torch._dynamo.reset()

    def model(x: Tensor) -> Tensor:
        return sod_ops.sigmoid_focal_loss(x.relu() - 1, targets, reduction="mean").mul(2)

    leaves = [inputs.clone().requires_grad_() for _ in range(2)]
    for function, leaf in zip((model, torch.compile(model, fullgraph=True)), leaves, strict=True):
        function(leaf).backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)


def test_compile_with_dynamic_shapes(backend: Backend) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(sod_ops.sigmoid_focal_loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((2, 3, 8, 8), (3, 5, 5, 7), (4, 2, 9, 3)):
        x, y = torch.randn(size, device=backend.device), torch.rand(size, device=backend.device)
        torch.testing.assert_close(compiled(x, y), sod_ops.sigmoid_focal_loss(x, y))
        sliced = compiled(x[:, :1], y[:, :1], reduction="mean")
        torch.testing.assert_close(sliced, sod_ops.sigmoid_focal_loss(x[:, :1], y[:, :1], reduction="mean"))


def test_export(backend: Backend) -> None:
    inputs, targets = make(device=backend.device)
    module = sod_ops.nn.SigmoidFocalLoss(alpha=0.4, gamma=1.5)
    batch = torch.export.Dim("batch", min=2, max=64)
    shapes = {"inputs": {0: batch}, "targets": {0: batch}}
    exported = torch.export.export(module, (inputs, targets), dynamic_shapes=shapes)
    larger = torch.cat([inputs] * 3), torch.cat([targets] * 3)
    torch.testing.assert_close(exported.module()(*larger), module(*larger))


# ---- The module -------------------------------------------------------------------------------------------------------


def test_module() -> None:
    given = make()
    module = sod_ops.nn.SigmoidFocalLoss()
    assert torch.equal(module(*given), sod_ops.sigmoid_focal_loss(*given, reduction="mean"))
    module = sod_ops.nn.SigmoidFocalLoss(-1, 0.5, "none")
    assert torch.equal(module(*given), sod_ops.sigmoid_focal_loss(*given, -1, 0.5, "none"))
    assert repr(module) == "SigmoidFocalLoss(alpha=-1, gamma=0.5, reduction='none')"
    assert list(module.state_dict()) == []
    with pytest.raises(ValueError, match="SigmoidFocalLoss: alpha must be in"):
        sod_ops.nn.SigmoidFocalLoss(alpha=2)
    with pytest.raises(TypeError, match="SigmoidFocalLoss: reduction must be a string"):
        sod_ops.nn.SigmoidFocalLoss(reduction=None)


# ---- Bad input --------------------------------------------------------------------------------------------------------

T = torch.zeros
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"inputs": None}, TypeError, "inputs must be a Tensor, got NoneType"),
    ({"inputs": T(2, 1, 4, 4, dtype=torch.int64)}, TypeError, "inputs must be float32, .* got torch.int64"),
    ({"inputs": T(2, 1, 4, 4, dtype=torch.complex64)}, TypeError, "inputs must be float32"),
    ({"inputs": T(2, 1, 4, 4).to_sparse()}, TypeError, "inputs must be a dense tensor"),
    ({"inputs": T(2, 4, 4)}, ValueError, r"targets must be of the shape of inputs, \[2, 4, 4\], .*out\[:, :1\]"),
    ({"inputs": T(2, 2, 4, 4)}, ValueError, r"targets must be of .* got \[2, 1, 4, 4\]; .*out\[:, :1\]"),
    ({"targets": T(2, 4, 4)}, ValueError, r"targets must be of .*\[2, 4, 4\]; .*out\[:, :1\].*targets.unsqueeze\(1\)"),
    ({"targets": T(2, 1, 4, 1)}, ValueError, r"got \[2, 1, 4, 1\]; a loss never broadcasts$"),
    ({"targets": T(())}, ValueError, r"targets must be of the shape of inputs, \[2, 1, 4, 4\], got \[\]"),
    ({"targets": T(32)}, ValueError, r"targets must be of the shape of inputs"),
    ({"targets": 1.0}, TypeError, "targets must be a Tensor, got float"),
    ({"targets": T(2, 1, 4, 4, dtype=torch.complex64)}, TypeError, "targets must be floating, bool, uint8"),
    ({"targets": T(2, 1, 4, 4, device="meta")}, ValueError, "targets must be on the device of inputs"),
    ({"alpha": 1.5}, ValueError, r"alpha must be in \[0, 1\], or -1 to weigh nothing, got 1.5"),
    ({"alpha": -0.5}, ValueError, r"alpha must be in \[0, 1\]"),
    ({"alpha": float("nan")}, ValueError, r"alpha must be in \[0, 1\]"),
    ({"alpha": None}, TypeError, "alpha must be a number, got None"),
    ({"alpha": "0.25"}, TypeError, "alpha must be a number, got '0.25'"),
    ({"alpha": T(1)}, TypeError, "alpha must be a number, got tensor"),
    ({"gamma": -1}, ValueError, "gamma must be a finite number, 0 or more, got -1"),
    ({"gamma": float("nan")}, ValueError, "gamma must be a finite number, 0 or more, got nan"),
    ({"gamma": float("inf")}, ValueError, "gamma must be a finite number, 0 or more, got inf"),
    ({"gamma": [2.0]}, TypeError, "gamma must be a number, got"),
    ({"reduction": "avg"}, ValueError, "reduction must be one of 'none', 'mean', 'sum', got 'avg'"),
    ({"reduction": None}, TypeError, "reduction must be a string"),
    ({"reduction": ["mean"]}, TypeError, "reduction must be a string"),
]


@pytest.mark.parametrize(
    ("change", "error", "message"), BAD, ids=[f"{next(iter(c))}-{i}" for i, (c, _, _) in enumerate(BAD)]
)
def test_bad_input_is_named(backend: Backend, change: dict[str, Any], error: type[Exception], message: str) -> None:
    good = {"inputs": T(2, 1, 4, 4), "targets": T(2, 1, 4, 4), "alpha": 0.25, "gamma": 2.0, "reduction": "none"}
    arguments = {
        k: v.to(backend.device) if isinstance(v, Tensor) and v.device.type == "cpu" else v
        for k, v in {**good, **change}.items()
    }
    with pytest.raises(error, match=f"sigmoid_focal_loss: .*{message}"):
        sod_ops.sigmoid_focal_loss(**arguments)


def test_operators_refuse_what_would_read_out_of_bounds() -> None:
    """The operators below the public function guard themselves too."""
    x, y = T(2, 3, 4, 4), T(2, 3, 4, 4)
    operator, backward = torch.ops.sod_ops.sigmoid_focal_loss, torch.ops.sod_ops.sigmoid_focal_loss_backward
    for arguments in (
        (x, y[:1], 0.25, 2.0, 0, False),
        (x, y[:, :, None], 0.25, 2.0, 0, False),
        (x.int(), y, 0.25, 2.0, 0, False),
        (x, y.to(torch.complex64), 0.25, 2.0, 0, False),
        (x, y, 1.25, 2.0, 0, False),
        (x, y, 0.25, -2.0, 0, False),
        (x, y, 0.25, 2.0, 3, False),
        (x[:, :, 1:3, 1:3], y[:, :, 1:3, 1:3], 0.25, 2.0, 0, False),
        (x[:1].expand(2, 3, 4, 4), y, 0.25, 2.0, 0, False),
    ):
        with pytest.raises(RuntimeError, match="sigmoid_focal_loss"):
            operator(*arguments)
    for grad, reduction in ((x[:1], 0), (x.double(), 0), (x, 1), (T(1), 2)):
        with pytest.raises(RuntimeError, match="grad_output"):
            backward(grad, x, y, 0.25, 2.0, reduction)

"""squeeze_excite on every backend, against its reference in float64 and against the contract of an op."""

import itertools
from typing import Any, NamedTuple

import pytest
import torch
from cases import EMPTY_MAPS, FLOATING, MAPS, MapCase
from conftest import Backend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tolerances import assert_accurate
from torch import Tensor

import sod_ops
from sod_ops._extension import squeeze_excite_fits
from sod_ops.reference import squeeze_excite as reference


def on_chip(case: MapCase, dtype: torch.dtype) -> bool:
    """Whether the CUDA kernel serves a map on this machine's GPU."""
    _, channels, height, width = case.shape
    return torch.cuda.is_available() and squeeze_excite_fits(0, channels, height * width, True, 5, dtype.itemsize)


# It takes a GPU of compute capability 9.0 or higher; Triton serves others.
WITHOUT_KERNELS = () if on_chip(MAPS[0], torch.float64) else ("cuda",)

ACTIVATIONS = tuple(reference.ACTIVATIONS)
GATES = tuple(reference.GATES)


class Inputs(NamedTuple):
    x: Tensor
    reduce_weight: Tensor | None
    reduce_bias: Tensor | None
    expand_weight: Tensor
    expand_bias: Tensor | None

    def to(self, dtype: torch.dtype) -> "Inputs":
        return Inputs(*(t if t is None else t.detach().to(dtype) for t in self))

    def requiring_grad(self) -> "Inputs":
        return Inputs(*(t if t is None else t.detach().requires_grad_() for t in self))


def make(
    case: MapCase = MAPS[0],
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    *,
    reduced: int | None = 5,
    bias: bool = True,
    linear: bool = False,
    parameters: torch.dtype | None = None,
) -> Inputs:
    """Random inputs; ``reduced`` None leaves out the reduction."""
    channels = case.shape[1]
    pointwise = () if linear else (1, 1)

    def parameter(*shape: int) -> Tensor:
        scale = max(1, shape[1]) ** -0.5 if len(shape) > 1 else 1.0
        return (torch.randn(shape, dtype=torch.float64) * scale).to(parameters or dtype).to(device)

    return Inputs(
        case.build(dtype, device),
        None if reduced is None else parameter(reduced, channels, *pointwise),
        parameter(reduced) if bias and reduced is not None else None,
        parameter(channels, channels if reduced is None else reduced, *pointwise),
        parameter(channels) if bias else None,
    )


def run(backend: str, inputs: Inputs, grad: Tensor, **kwargs: str) -> tuple[Tensor | None, ...]:
    """The result and the gradients of x and the four parameters."""
    leaves = inputs.requiring_grad()
    with sod_ops.use_backend(backend):
        y = sod_ops.squeeze_excite(*leaves, **kwargs)
        wanted = [t for t in leaves if t is not None]
        found = iter(torch.autograd.grad(y, wanted, grad.to(y.dtype)))
    return y.detach(), *(None if t is None else next(found) for t in leaves)


NAMES = ("forward", "x", "reduce_weight", "reduce_bias", "expand_weight", "expand_bias")


def check(backend: Backend, inputs: Inputs, **kwargs: str) -> None:
    """Holds the result and all gradients to those of the reference in float64."""
    grad = torch.randn(inputs.x.shape, dtype=torch.float64, device=inputs.x.device).to(inputs.x.dtype)
    before = [None if t is None else t.detach().clone() for t in inputs]
    actual = run(backend.name, inputs, grad, **kwargs)
    plain = run("reference", inputs, grad, **kwargs)
    exact = run("reference", inputs.to(torch.float64), grad, **kwargs)
    for name, a, p, e in zip(NAMES, actual, plain, exact, strict=True):
        assert_accurate(a, p, e, name)
    for name, a, b in zip(NAMES[1:], inputs, before, strict=True):
        assert a is b is None or torch.equal(a, b), f"{name} was changed"


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("case", MAPS, ids=str)
def test_shapes_layouts_and_dtypes(backend: Backend, case: MapCase, dtype: torch.dtype) -> None:
    if case.large and (backend.interpreted or (backend.name == "cuda" and not on_chip(case, dtype))):
        case = MapCase((*case.shape[:1], min(case.shape[1], 70), 9, 7), case.layout)
    check(backend, make(case, dtype, backend.device))


@pytest.mark.parametrize(("activation", "gate"), list(itertools.product(ACTIVATIONS, GATES)))
def test_activations_and_gates(backend: Backend, activation: str, gate: str) -> None:
    # Biases spread over the kinks and the saturated ends.
    inputs = make(MapCase((2, 23, 3, 5)), device=backend.device, reduced=19)
    spread = torch.linspace(-9, 9, 19, device=backend.device), torch.linspace(-12, 12, 23, device=backend.device)
    check(backend, inputs._replace(reduce_bias=spread[0], expand_bias=spread[1]), activation=activation, gate=gate)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "options",
    [
        {"bias": False},
        {"linear": True},
        {"reduced": None},
        {"reduced": None, "bias": False},
        {"reduced": 1},
        {"reduced": 40},
    ],
    ids=str,
)
def test_forms_of_the_parameters(backend: Backend, options: dict[str, Any], layout: str) -> None:
    check(backend, make(MapCase((3, 18, 5, 6), layout), device=backend.device, **options), gate="hardsigmoid")


@pytest.mark.parametrize(
    "strides", [(100, 1, 5, 1), (7, 20, 5, 1), (3, 1, 35, 7), (0, 0, 5, 1), (20, 60, 5, 1), (1, 20, 5, 1)], ids=str
)
def test_unusual_strides(backend: Backend, strides: tuple[int, int, int, int]) -> None:
    """Maps that overlap, repeat, or have samples inside channels."""
    inputs = make(MapCase((3, 7, 4, 5)), device=backend.device)
    storage = torch.randn(500, device=backend.device)
    check(backend, inputs._replace(x=storage.as_strided((3, 7, 4, 5), strides)))


def test_one_bias_without_the_other(backend: Backend) -> None:
    inputs = make(device=backend.device)
    check(backend, inputs._replace(reduce_bias=None))
    check(backend, inputs._replace(expand_bias=None))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_float32_parameters_beside_half_precision(backend: Backend, dtype: torch.dtype) -> None:
    """As under autocast, where parameters stay float32; they get float32 gradients."""
    check(backend, make(MAPS[1], dtype, backend.device, parameters=torch.float32))


def test_autocast(backend: Backend) -> None:
    x, *parameters = make(device=backend.device)
    with torch.autocast(backend.device, dtype=torch.bfloat16):
        y = sod_ops.squeeze_excite(x.bfloat16(), *parameters)
        z = sod_ops.squeeze_excite(x, *parameters)
    assert y.dtype == torch.bfloat16
    assert z.dtype in (torch.float32, torch.bfloat16)
    torch.testing.assert_close(y.float(), z.float(), rtol=0.02, atol=0.02)  # bfloat16 keeps 8 bits


def test_parameters_that_are_views(backend: Backend) -> None:
    inputs = make(MapCase((2, 8, 5, 5)), device=backend.device, linear=True)
    views = Inputs(
        inputs.x,
        inputs.reduce_weight.t().contiguous().t(),
        torch.stack([inputs.reduce_bias] * 2, 1)[:, 0],
        inputs.expand_weight.t().contiguous().t(),
        torch.stack([inputs.expand_bias] * 2, 1)[:, 0],
    )
    assert not views.reduce_weight.is_contiguous()
    check(backend, views)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), "max"])
def test_extreme_values(backend: Backend, value: Any, layout: str, dtype: torch.dtype) -> None:
    """Infinities and NaN end up where the reference has them; sums of the largest numbers don't overflow in float16."""
    x, *parameters = make(MapCase((3, 6, 4, 5), layout), dtype, backend.device)
    if value == "max":
        x[1, 2] = torch.finfo(dtype).max if dtype == torch.float16 else 1e30
    else:
        x[1, 2, 1, 1] = value
    y = sod_ops.squeeze_excite(x, *parameters)
    exact = reference.squeeze_excite(x.double(), *(p.double() for p in parameters))
    torch.testing.assert_close(y.isnan(), exact.isnan())
    torch.testing.assert_close(y[[0, 2]], exact[[0, 2]].to(dtype), rtol=1e-2, atol=1e-2)  # other samples are unharmed
    if value == "max":
        torch.testing.assert_close(y, exact.to(dtype), rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("case", EMPTY_MAPS, ids=str)
def test_empty(backend: Backend, case: MapCase) -> None:
    inputs = make(case, device=backend.device)
    grad = torch.zeros_like(inputs.x)
    actual, expected = run(backend.name, inputs, grad), run("reference", inputs, grad)
    assert actual[0].shape == case.shape
    for name, a, e in zip(NAMES, actual, expected, strict=True):
        torch.testing.assert_close(a, e, equal_nan=True, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "channel_slice"])
@pytest.mark.parametrize("options", [{}, {"reduced": None}, {"bias": False}], ids=str)
def test_gradcheck(backend: Backend, layout: str, options: dict[str, Any]) -> None:
    inputs = make(MapCase((2, 5, 3, 2), layout), torch.float64, backend.device, **{"reduced": 3, **options})
    inputs = inputs.requiring_grad()

    def function(*tensors: Tensor) -> Tensor:
        given = iter(tensors)
        # silu and sigmoid: smooth, as finite differences need it.
        return sod_ops.squeeze_excite(*(None if t is None else next(given) for t in inputs), activation="silu")

    leaves = [t for t in inputs if t is not None]
    assert torch.autograd.gradcheck(function, leaves, fast_mode=backend.interpreted)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck_of_every_activation(backend: Backend, activation: str) -> None:
    inputs = make(MapCase((2, 4, 2, 2)), torch.float64, backend.device, reduced=3).requiring_grad()
    for gate in GATES:
        assert torch.autograd.gradcheck(
            lambda *t, gate=gate: sod_ops.squeeze_excite(*t, activation=activation, gate=gate),
            tuple(inputs),
            fast_mode=True,
        )


def test_gradients_only_where_wanted(backend: Backend) -> None:
    inputs = make(device=backend.device)
    grad = torch.randn_like(inputs.x)
    full = run(backend.name, inputs, grad)
    for i in range(5):
        leaves = [t.detach().requires_grad_(j == i) for j, t in enumerate(inputs)]
        sod_ops.squeeze_excite(*leaves).backward(grad)
        for j, leaf in enumerate(leaves):
            assert (leaf.grad is not None) == (i == j)
        torch.testing.assert_close(leaves[i].grad, full[1 + i], rtol=0, atol=0)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_incoming_gradients_of_any_layout(backend: Backend, layout: str) -> None:
    """sum() sends an expanded gradient, a permuted loss one of the other memory format."""
    inputs = make(MapCase((2, 6, 3, 4), layout), device=backend.device)
    dense = torch.randn(inputs.x.shape, device=backend.device)
    expected = run(backend.name, inputs, dense)
    for grad in (
        dense.contiguous(memory_format=torch.channels_last),
        dense.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        for a, e in zip(run(backend.name, inputs, grad), expected, strict=True):
            # Kernels see one layout, and so the same sums; PyTorch's own sums run in another order for another layout.
            torch.testing.assert_close(a, e, **({} if backend.name == "reference" else {"rtol": 0, "atol": 0}))
    ones = torch.ones((), device=backend.device)
    for a, e in zip(
        run(backend.name, inputs, ones.expand(inputs.x.shape)),
        run(backend.name, inputs, torch.ones_like(dense)),
        strict=True,
    ):
        torch.testing.assert_close(a, e, **({} if backend.name == "reference" else {"rtol": 0, "atol": 0}))


@pytest.mark.parametrize("case", [c for c in MAPS if not c.large], ids=str)
def test_memory_format_is_kept(backend: Backend, case: MapCase) -> None:
    inputs = make(case, device=backend.device).requiring_grad()
    y = sod_ops.squeeze_excite(*inputs)
    (grad,) = torch.autograd.grad(y, inputs.x, torch.randn_like(y))
    kinds = (torch.contiguous_format, torch.channels_last)
    if case.layout in ("contiguous", "channels_last"):
        assert [y.is_contiguous(memory_format=f) for f in kinds] == [
            inputs.x.is_contiguous(memory_format=f) for f in kinds
        ]
        assert grad.stride() == inputs.x.stride() or grad.numel() == max(grad.shape)
    elif case.layout == "channels_last_slice":
        assert y.is_contiguous(memory_format=torch.channels_last)
    else:
        assert y.is_contiguous() or backend.name == "reference"


@pytest.mark.parametrize("layout", ["channel_slice", "sample_slice", "channels_last_slice", "expanded"])
def test_slices_are_read_in_place(kernel_backend: Backend, layout: str) -> None:
    """No copy of x: besides the result there are only the statistics, which are small."""
    inputs = make(MapCase((4, 6, 16, 16), layout), device=kernel_backend.device)
    bytes_of_x = inputs.x.numel() * inputs.x.element_size()
    with torch.profiler.profile(profile_memory=True) as profile:
        y = sod_ops.squeeze_excite(*inputs)
    allocated = sum(
        max(0, e.self_device_memory_usage if kernel_backend.device == "cuda" else e.self_cpu_memory_usage)
        for e in profile.events()
    )
    assert bytes_of_x <= allocated < 1.5 * bytes_of_x
    assert y.shape == inputs.x.shape


@pytest.mark.parametrize("case", [MAPS[0], MAPS[7], *(c for c in MAPS if c.large)], ids=str)
def test_deterministic(backend: Backend, case: MapCase) -> None:
    if case.large and (backend.interpreted or (backend.name == "cuda" and not on_chip(case, torch.float32))):
        case = MapCase((1, 5, 19, 23), case.layout)
    inputs = make(case, device=backend.device)
    grad = torch.randn_like(inputs.x)
    torch.use_deterministic_algorithms(True)
    try:
        first = run(backend.name, inputs, grad)
        for _ in range(1 if backend.interpreted else 5):
            for name, a, b in zip(NAMES, run(backend.name, inputs, grad), first, strict=True):
                assert torch.equal(a, b), name
    finally:
        torch.use_deterministic_algorithms(False)


def test_tiles_do_not_depend_on_the_number_of_threads() -> None:
    threads = torch.get_num_threads()
    for case in MAPS:
        inputs = make(case)
        grad = torch.randn_like(inputs.x)
        results = []
        try:
            for count in (2, 3, 4):
                torch.set_num_threads(count)
                # One sample, which every number of threads above one cuts into the same tiles.
                results.append(run("cpu", inputs._replace(x=inputs.x[:1]), grad[:1]))
        finally:
            torch.set_num_threads(threads)
        for other in results[1:]:
            for name, a, b in zip(NAMES, results[0], other, strict=True):
                assert torch.equal(a, b), f"{case}: {name}"


def test_double_backward_matches_the_reference(backend: Backend) -> None:
    def second(name: str) -> tuple[Tensor, ...]:
        torch.manual_seed(1)
        inputs = make(MapCase((2, 6, 3, 3)), torch.float64, backend.device).requiring_grad()
        with sod_ops.use_backend(name):
            y = sod_ops.squeeze_excite(*inputs, activation="gelu")
            (grad,) = torch.autograd.grad(y.square().sum(), inputs.x, create_graph=True)
            return torch.autograd.grad(grad.square().sum(), inputs)

    for a, e in zip(second(backend.name), second("reference"), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-12)


def test_func_transforms(backend: Backend) -> None:
    x, *parameters = make(MapCase((3, 6, 4, 4)), torch.float64, backend.device)

    def loss(x: Tensor) -> Tensor:
        return sod_ops.squeeze_excite(x, *parameters).square().sum()

    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(x), expected)
    per_sample = torch.func.vmap(torch.func.grad(lambda s: loss(s[None])))(x)
    torch.testing.assert_close(per_sample, expected)
    _, tangent = torch.func.jvp(loss, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, expected.sum())


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "channel_slice"])
@pytest.mark.parametrize("options", [{}, {"reduced": None}], ids=str)
def test_operators_pass_opcheck(kernel_backend: Backend, layout: str, options: dict[str, Any]) -> None:
    kernels = sod_ops.ops.squeeze_excite._select(kernel_backend.device)
    inputs = make(MapCase((2, 6, 3, 4), layout), device=kernel_backend.device, **options).requiring_grad()
    torch.library.opcheck(kernels.forward, (*inputs, 1, 0))
    y, statistics = kernels.forward(*(t if t is None else t.detach() for t in inputs), 1, 0)
    grad = torch.randn_like(y)
    arguments = (grad, inputs.x.detach(), inputs.reduce_weight, inputs.expand_weight, statistics, 1, 0)
    arguments = tuple(a.detach() if isinstance(a, Tensor) else a for a in arguments)
    torch.library.opcheck(kernels.backward, arguments)


def test_operators_called_directly_have_gradients(kernel_backend: Backend) -> None:
    kernels = sod_ops.ops.squeeze_excite._select(kernel_backend.device)
    inputs = make(device=kernel_backend.device)
    grad = torch.randn_like(inputs.x)
    leaves = inputs.requiring_grad()
    y, _ = kernels.forward(*leaves, 1, 0)
    found = torch.autograd.grad(y, leaves, grad)
    for a, e in zip(found, run(kernel_backend.name, inputs, grad)[1:], strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_compile(backend: Backend, layout: str) -> None:
    """One graph, with the fused operators of this backend in the forward and in the backward."""
    inputs = make(MapCase((2, 6, 5, 4), layout), device=backend.device)
    grad = torch.randn_like(inputs.x)
    expected = run(backend.name, inputs, grad)
    operators: list[str] = []

    def collect(graph: torch.fx.GraphModule, _: Any) -> Any:
        operators.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    torch._dynamo.reset()
    from torch._dynamo.backends.common import aot_autograd

    compiled = torch.compile(
        sod_ops.squeeze_excite, fullgraph=True, backend=aot_autograd(fw_compiler=collect, bw_compiler=collect)
    )
    leaves = inputs.requiring_grad()
    y = compiled(*leaves)
    torch.testing.assert_close(y, expected[0])
    assert y.is_contiguous(memory_format=torch.channels_last) == (layout == "channels_last")
    for a, e in zip(torch.autograd.grad(y, leaves, grad), expected[1:], strict=True):
        torch.testing.assert_close(a, e)
    namespace = {"cpu": "sod_ops.", "cuda": "sod_ops.", "triton": "sod_ops_triton."}.get(backend.name)
    assert ([o for o in operators if o.startswith("sod_ops")] != []) == (namespace is not None)
    if namespace is not None:
        assert f"{namespace}squeeze_excite.default" in operators
        assert f"{namespace}squeeze_excite_backward.default" in operators


def test_compile_with_inductor_inside_a_model() -> None:
    x, *parameters = make()
    torch._dynamo.reset()

    def model(x: Tensor) -> Tensor:
        return sod_ops.squeeze_excite(torch.relu(x + 1), *parameters).mul(2).mean()

    compiled = torch.compile(model, fullgraph=True)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    for function, leaf in zip((model, compiled), leaves, strict=True):
        function(leaf).backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)


def test_compiled_code_follows_the_backend() -> None:
    inputs = make()
    graphs: list[set[str]] = []

    def collect(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append({str(node.target) for node in graph.graph.nodes if node.op == "call_function"})
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(sod_ops.squeeze_excite, fullgraph=True, backend=collect)
    compiled(*inputs)
    with sod_ops.use_backend("reference"):
        compiled(*inputs)
    compiled(*inputs)
    assert len(graphs) == 2
    assert "sod_ops.squeeze_excite.default" in graphs[0]
    assert "sod_ops.squeeze_excite.default" not in graphs[1]


def test_compile_with_dynamic_shapes(backend: Backend) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(sod_ops.squeeze_excite, fullgraph=True, dynamic=True, backend="aot_eager")
    _, *parameters = make(device=backend.device)
    for size in ((2, 16, 8, 8), (3, 16, 5, 7), (4, 16, 9, 3)):
        x = torch.randn(size, device=backend.device)
        torch.testing.assert_close(compiled(x, *parameters), sod_ops.squeeze_excite(x, *parameters))


def test_export(backend: Backend) -> None:
    x, *parameters = make(device=backend.device)

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.nn.ParameterList(parameters)

        def forward(self, x: Tensor) -> Tensor:
            return sod_ops.squeeze_excite(x, *self.weights)

    module = Module()
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(module, (x,), dynamic_shapes={"x": {0: batch}})
    larger = torch.cat([x, x, x])
    torch.testing.assert_close(exported.module()(larger), module(larger))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 20), st.integers(1, 20)),
    layout=st.sampled_from(["contiguous", "channels_last", "channel_slice", "channels_last_slice", "crop"]),
    reduced=st.one_of(st.none(), st.integers(1, 40)),
    dtype=st.sampled_from(FLOATING),
    activation=st.sampled_from(ACTIVATIONS),
    gate=st.sampled_from(GATES),
)
def test_any_shape(
    shape: tuple[int, int, int, int], layout: str, reduced: int | None, dtype: torch.dtype, activation: str, gate: str
) -> None:
    check(Backend("cpu", "cpu"), make(MapCase(shape, layout), dtype, reduced=reduced), activation=activation, gate=gate)


# ---- Bad input --------------------------------------------------------------------------------------------------------

T = torch.zeros
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": None}, TypeError, "x must be a Tensor, got NoneType"),
    ({"x": [1.0]}, TypeError, "x must be a Tensor, got list"),
    ({"x": T(16, 8, 8)}, ValueError, r"x must be of shape \[N, C, H, W\], got \[16, 8, 8\]"),
    ({"x": T(2, 16, 8, 8, 8)}, ValueError, r"x must be of shape \[N, C, H, W\]"),
    ({"x": T(2, 16, 8, 8, dtype=torch.int32)}, TypeError, "x must be float32, .* got torch.int32"),
    ({"x": T(2, 16, 8, 8, dtype=torch.complex64)}, TypeError, "x must be float32"),
    ({"x": T(2, 16, 8, 8).to_sparse()}, TypeError, "x must be a dense tensor"),
    ({"x": T(2, 16, 8, 8, device="meta")}, ValueError, "reduce_weight must be on the device of x"),
    (
        {"x": T(2, 7, 8, 8)},
        ValueError,
        r"reduce_weight must be of shape \[R, 7\] or \[R, 7, 1, 1\], got \[5, 16, 1, 1\]",
    ),
    ({"x": T(2, 16, 8, 8, dtype=torch.float64)}, TypeError, "expand_weight must be torch.float64 .* got torch.float32"),
    ({"reduce_weight": 3}, TypeError, "reduce_weight must be a Tensor or None, got int"),
    ({"reduce_weight": T(5)}, ValueError, r"reduce_weight must be of shape"),
    ({"reduce_weight": T(())}, ValueError, r"reduce_weight must be of shape"),
    ({"reduce_weight": T(5, 16, 3, 3)}, ValueError, r"reduce_weight must be of shape .* got \[5, 16, 3, 3\]"),
    ({"reduce_weight": T(5, 16, 1, 1).double()}, TypeError, "reduce_weight must be torch.float32 as expand_weight is"),
    ({"reduce_weight": T(5, 16, device="meta")}, ValueError, "reduce_weight must be on the device of x"),
    ({"reduce_weight": None}, ValueError, "reduce_bias must be None without reduce_weight"),
    ({"reduce_weight": None, "reduce_bias": None}, ValueError, r"expand_weight must be of shape \[16, 16\]"),
    ({"reduce_bias": T(4)}, ValueError, r"reduce_bias must be of shape \[5\], got \[4\]"),
    ({"reduce_bias": T(5, 1)}, ValueError, r"reduce_bias must be of shape \[5\], got \[5, 1\]"),
    ({"reduce_bias": T(5, dtype=torch.int64)}, TypeError, "reduce_bias must be torch.float32"),
    ({"expand_weight": None}, TypeError, "expand_weight must be a Tensor, got NoneType"),
    (
        {"expand_weight": T(16, 6, 1, 1)},
        ValueError,
        r"expand_weight must be of shape \[16, 5\] or .* got \[16, 6, 1, 1\]",
    ),
    ({"expand_weight": T(16, 5, 1)}, ValueError, r"expand_weight must be of shape"),
    ({"expand_weight": T(16, 5, 1, 1).half()}, TypeError, "expand_weight must be torch.float32"),
    ({"expand_bias": T(15)}, ValueError, r"expand_bias must be of shape \[16\], got \[15\]"),
    ({"expand_bias": "none"}, TypeError, "expand_bias must be a Tensor or None, got str"),
    ({"activation": "selu"}, ValueError, "activation must be one of 'identity', 'relu', .* got 'selu'"),
    ({"activation": torch.relu}, TypeError, "activation must be a string"),
    ({"activation": ["relu"]}, TypeError, "activation must be a string"),
    ({"gate": "softmax"}, ValueError, "gate must be one of 'sigmoid', .* got 'softmax'"),
    ({"gate": None}, TypeError, "gate must be a string"),
]


@pytest.mark.parametrize(
    ("change", "error", "message"), BAD, ids=[f"{next(iter(c))}-{i}" for i, (c, _, _) in enumerate(BAD)]
)
def test_bad_input_is_named(backend: Backend, change: dict[str, Any], error: type[Exception], message: str) -> None:
    good = {**make(device=backend.device)._asdict(), "activation": "relu", "gate": "sigmoid"}
    moved = {
        k: v.to(backend.device) if isinstance(v, Tensor) and v.device.type == "cpu" else v for k, v in change.items()
    }
    with pytest.raises(error, match=f"squeeze_excite: {message}"):
        sod_ops.squeeze_excite(**{**good, **moved})


def test_operators_refuse_what_would_read_out_of_bounds() -> None:
    """The operators below the public function guard themselves too."""
    x, w1, b1, w2, b2 = make()
    op = torch.ops.sod_ops.squeeze_excite
    for arguments in (
        (x[0], w1, b1, w2, b2, 1, 0),
        (x[:, :, ::2, ::2], w1, b1, w2, b2, 1, 0),
        (x, w1[:, :4], b1, w2, b2, 1, 0),
        (x, w1, b1[:2], w2, b2, 1, 0),
        (x, w1, b1, w2[:3], b2, 1, 0),
        (x, w1, b1, w2, b2[:3], 1, 0),
        (x, w1.double(), b1, w2, b2, 1, 0),
        (x.int(), w1, b1, w2, b2, 1, 0),
        (x, w1, b1, w2, b2, 99, 0),
        (x, w1, b1, w2, b2, 1, -1),
    ):
        with pytest.raises(RuntimeError, match="squeeze_excite"):
            op(*arguments)
    y, statistics = op(x, w1, b1, w2, b2, 1, 0)
    with pytest.raises(RuntimeError, match="statistics"):
        torch.ops.sod_ops.squeeze_excite_backward(y, x, w1, w2, statistics[:, 1:], 1, 0)
    with pytest.raises(RuntimeError, match="grad_output"):
        torch.ops.sod_ops.squeeze_excite_backward(y[:1], x, w1, w2, statistics, 1, 0)

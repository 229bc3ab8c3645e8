"""gate on every backend, against its reference in float64 and against the contract of an op."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import map_contract
import pytest
import torch
from cases import EMPTY_MAPS, FLOATING, MAPS, MapCase
from conftest import Backend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tolerances import assert_accurate
from torch import Tensor

import sod_ops
from sod_ops.reference.gate import gate as reference

# Triton serves GPUs; a CUDA C++ kernel comes where it measurably beats Triton's.
WITHOUT_KERNELS = ("cuda",)

LAYOUTS = ("contiguous", "channels_last")
KINDS = ("channel", "spatial", "logits", "gates")  # the last two: both, and what is added
SMALL = MapCase((2, 6, 4, 3))


def op(kind: str) -> map_contract.Function:
    return partial(sod_ops.gate, sum_of=kind) if kind in ("logits", "gates") else sod_ops.gate


def make(case: MapCase, kind: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[Tensor]:
    """x and the logits, from saturated to saturated."""
    samples, channels, height, width = case.shape
    shapes = {"channel": (samples, channels, 1, 1), "spatial": (samples, 1, height, width)}
    wanted = [shapes[kind]] if kind in shapes else list(shapes.values())
    logits = [(torch.randn(shape, dtype=torch.float64) * 3).to(dtype).to(device) for shape in wanted]
    return [case.build(dtype, device), *logits]


def terms(inputs: Sequence[Tensor]) -> float:
    """What cancels in a sum over pixels or channels is as large as a usual sum of so many."""
    return max(1.0, float(max(inputs[0].shape[1], inputs[0].shape[2:].numel())) ** 0.5)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("case", MAPS, ids=str)
def test_shapes_layouts_and_dtypes(backend: Backend, case: MapCase, dtype: torch.dtype) -> None:
    kinds = KINDS
    if backend.interpreted:
        kinds = (KINDS[FLOATING.index(dtype)],)
        samples, channels, height, width = case.shape
        case = MapCase((min(samples, 2), min(channels, 40), min(height, 7), min(width, 9)), case.layout)
    for kind in kinds:
        map_contract.check_numbers(backend, op(kind), make(case, kind, dtype, backend.device))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_more_than_one_tile(backend: Backend, layout: str, kind: str) -> None:
    """More than 512 columns and more than 128 rows of them, either way."""
    shape = (1, 150, 3, 5) if backend.interpreted else (1, 700, 29, 23)
    inputs = make(MapCase(shape, layout), kind, device=backend.device)
    map_contract.check_numbers(backend, op(kind), inputs, terms(inputs))


@pytest.mark.parametrize("kind", ["logits", "gates"])
def test_either_order(backend: Backend, kind: str) -> None:
    x, channel, spatial = make(SMALL, kind, device=backend.device)
    function = op(kind)
    assert torch.equal(function(x, channel, spatial), function(x, spatial, channel))


def test_what_is_computed(backend: Backend) -> None:
    x, a, b = make(SMALL, "gates", torch.float64, backend.device)
    for logits, expected in (
        ((a,), x * a.sigmoid()),
        ((b,), x * b.sigmoid()),
        ((a, b), x * (a + b).sigmoid()),
    ):
        torch.testing.assert_close(sod_ops.gate(x, *logits), expected)
    torch.testing.assert_close(sod_ops.gate(x, a, b, sum_of="gates"), x * (a.sigmoid() + b.sigmoid()))


@pytest.mark.parametrize("shape", [(2, 1, 3, 4), (2, 5, 1, 1), (2, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_shapes_that_both_kinds_of_logits_may_have(backend: Backend, kind: str, shape: tuple[int, ...]) -> None:
    map_contract.check_numbers(backend, op(kind), make(MapCase(shape), kind, torch.float64, backend.device))


@pytest.mark.parametrize("layout", ["channel_slice", "channels_last_slice", "sample_slice", "expanded", "transposed"])
def test_logits_of_any_layout(backend: Backend, layout: str) -> None:
    x = SMALL.build(torch.float32, backend.device)
    spatial = MapCase((2, 1, 4, 3), layout).build(torch.float32, backend.device)
    channel = MapCase((2, 6, 1, 1), layout).build(torch.float32, backend.device)
    for kind in ("logits", "gates"):
        map_contract.check_numbers(backend, op(kind), [x, channel, spatial])


@pytest.mark.parametrize(
    "strides", [(100, 1, 5, 1), (7, 20, 5, 1), (3, 1, 35, 7), (0, 0, 5, 1), (20, 60, 5, 1), (1, 20, 5, 1)], ids=str
)
def test_unusual_strides(backend: Backend, strides: tuple[int, int, int, int]) -> None:
    """Maps that overlap, repeat, or have samples inside channels."""
    _, *logits = make(MapCase((3, 7, 4, 5)), "logits", device=backend.device)
    x = torch.randn(500, device=backend.device).as_strided((3, 7, 4, 5), strides)
    map_contract.check_numbers(backend, op("logits"), [x, *logits])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_logits_of_another_dtype(backend: Backend, dtype: torch.dtype) -> None:
    """As autocast mixes them; each gets a gradient in its own dtype."""
    inputs = make(SMALL, "gates", device=backend.device)
    for mixed in ([inputs[0].to(dtype), *inputs[1:]], [inputs[0], *(t.to(dtype) for t in inputs[1:])]):
        grads = map_contract.make_grads(op("gates"), mixed)
        actual, plain, exact = (
            map_contract.run(name, op("gates"), tensors, grads)
            for name, tensors in (
                (backend.name, mixed),
                ("reference", mixed),
                ("reference", [t.double() for t in mixed]),
            )
        )
        for a, p, e in zip(actual, plain, exact, strict=True):
            assert_accurate(a, p, e)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 100.0, -100.0, 1e30])
def test_extreme_logits(backend: Backend, value: float, layout: str, kind: str) -> None:
    """Saturated gates are 0 and 1 and have no gradient; NaN stays where it belongs."""
    x, *logits = make(MapCase((2, 5, 3, 4), layout), kind, device=backend.device)
    for tensor in logits[:1]:
        tensor[1, -1, -1, -1] = value
    map_contract.check_numbers(backend, op(kind), [x, *logits])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", EMPTY_MAPS, ids=str)
def test_empty(backend: Backend, case: MapCase, kind: str) -> None:
    inputs = make(case, kind, device=backend.device)
    grads = map_contract.make_grads(op(kind), inputs)
    actual = map_contract.run(backend.name, op(kind), inputs, grads)
    expected = map_contract.run("reference", op(kind), inputs, grads)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", [*LAYOUTS, "channel_slice"])
def test_gradcheck(backend: Backend, layout: str, kind: str) -> None:
    inputs = make(MapCase((2, 4, 3, 2), layout), kind, torch.float64, backend.device)
    map_contract.check_gradients(backend, op(kind), inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_only_where_wanted(backend: Backend, kind: str) -> None:
    map_contract.check_gradients_only_where_wanted(backend, op(kind), make(SMALL, kind, device=backend.device))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_incoming_gradients_of_any_layout(backend: Backend, layout: str) -> None:
    inputs = make(MapCase((2, 6, 4, 3), layout), "gates", device=backend.device)
    map_contract.check_incoming_gradients(backend, op("gates"), inputs)


@pytest.mark.parametrize("case", [c for c in MAPS if not c.large], ids=str)
def test_memory_format_is_kept(kernel_backend: Backend, case: MapCase) -> None:
    x, *logits = make(case, "gates", device=kernel_backend.device)
    x.requires_grad_()
    y = op("gates")(x, *logits)
    (gradient,) = torch.autograd.grad(y, x, torch.randn_like(y))
    channels_last = case.layout.startswith("channels_last") and x.shape[1] > 1 and x.shape[2] * x.shape[3] > 1
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    assert y.is_contiguous(memory_format=memory_format)
    assert gradient.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("layout", ["channel_slice", "sample_slice", "channels_last_slice", "expanded"])
def test_slices_are_read_in_place(kernel_backend: Backend, layout: str) -> None:
    """No copy of x: besides the result there are only the gates, which are small."""
    x, *logits = make(MapCase((2, 24, 12, 12), layout), "gates", device=kernel_backend.device)
    bytes_of_x = x.numel() * x.element_size()
    assert bytes_of_x <= map_contract.allocated_bytes(kernel_backend, op("gates"), [x, *logits]) < 1.5 * bytes_of_x


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", [MAPS[0], MAPS[7], *(c for c in MAPS if c.large)], ids=str)
def test_deterministic(kernel_backend: Backend, case: MapCase, kind: str) -> None:
    if kernel_backend.interpreted:
        case = MapCase((1, 5, 3, 4), case.layout)
    map_contract.check_deterministic(kernel_backend, op(kind), make(case, kind, device=kernel_backend.device))


@pytest.mark.parametrize("kind", KINDS)
def test_func_transforms(backend: Backend, kind: str) -> None:
    inputs = make(MapCase((3, 2, 5, 4)), kind, torch.float64, backend.device)
    map_contract.check_func_transforms(op(kind), inputs)


@pytest.mark.parametrize("layout", [*LAYOUTS, "channel_slice"])
@pytest.mark.parametrize("kind", KINDS)
def test_operators_pass_opcheck(kernel_backend: Backend, kind: str, layout: str) -> None:
    kernels = sod_ops.ops.gate._select(kernel_backend.device)
    x, *logits = make(MapCase((2, 3, 4, 5), layout), kind, device=kernel_backend.device)
    present = {"channel": [*logits, None], "spatial": [None, *logits]}.get(kind, logits)
    arguments = (x, *present, kind == "gates")
    torch.library.opcheck(kernels.backward, (torch.randn_like(x), *arguments))
    wanting = [a.clone().requires_grad_() if isinstance(a, Tensor) else a for a in arguments]
    torch.library.opcheck(kernels.forward, tuple(wanting))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_compile(backend: Backend, kind: str, layout: str) -> None:
    inputs = make(MapCase((1, 3, 4, 3), layout), kind, device=backend.device)
    y, gradient, *_ = map_contract.check_compile(backend, op(kind), inputs, ["gate"])
    for tensor in (y, gradient):
        assert tensor.is_contiguous(memory_format=torch.channels_last) == (layout == "channels_last")


def test_compile_with_inductor_and_any_size() -> None:
    sizes = [make(MapCase((2, 3, size, 7)), "gates") for size in (8, 13)]
    map_contract.check_inductor_and_any_size(op("gates"), *sizes)


def test_export() -> None:
    map_contract.check_export(op("logits"), make(MapCase((2, 3, 9, 8)), "logits"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40)),
    layout=st.sampled_from([*LAYOUTS, "channel_slice", "channels_last_slice", "sample_slice"]),
    dtype=st.sampled_from(FLOATING),
    kind=st.sampled_from(KINDS),
)
def test_any_shape(shape: tuple[int, int, int, int], layout: str, dtype: torch.dtype, kind: str) -> None:
    inputs = make(MapCase(shape, layout), kind, dtype)
    map_contract.check_numbers(Backend("cpu", "cpu"), op(kind), inputs, terms(inputs))


# ---- Bad input --------------------------------------------------------------------------------------------------------

X, A, B = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 1, 1), torch.zeros(2, 1, 4, 5)
BAD: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
    ((None, A), {}, TypeError, "x must be a Tensor, got NoneType"),
    ((X[0], A), {}, ValueError, r"x must be of shape \[N, C, H, W\], got \[3, 4, 5\]"),
    ((X.int(), A), {}, TypeError, "x must be float32, .* got torch.int32"),
    ((X, None), {}, TypeError, "logits must be a Tensor, got NoneType"),
    ((X, A, 1.0), {}, TypeError, "other must be a Tensor or None, got float"),
    ((X, A.long()), {}, TypeError, "logits must be float32, .* got torch.int64"),
    ((X, A.double()), {}, TypeError, "logits must be float32, bfloat16 or float16 beside x of torch.float32, got"),
    ((X.double(), A), {}, TypeError, "logits must be torch.float64 beside x of torch.float64, got torch.float32"),
    ((X, A[:1]), {}, ValueError, r"logits must be of shape \[2, 3, 1, 1\] \(channels\) or .*, got \[1, 3, 1, 1\]"),
    ((X, A[..., 0]), {}, ValueError, r"logits must be of shape .*, got \[2, 3, 1\]"),
    ((X, X), {}, ValueError, r"logits must be of shape .* or \[2, 1, 4, 5\] \(pixels\), got \[2, 3, 4, 5\]"),
    ((X, A, A), {}, ValueError, r"other must be of shape \[2, 1, 4, 5\] beside such logits, got \[2, 3, 1, 1\]"),
    ((X, B, B), {}, ValueError, r"other must be of shape \[2, 3, 1, 1\] beside such logits, got \[2, 1, 4, 5\]"),
    ((X, A, B), {"sum_of": "sum"}, ValueError, "sum_of must be one of 'logits', 'gates', got 'sum'"),
    ((X, A), {"sum_of": None}, TypeError, "sum_of must be a string, .* got None"),
    ((X, A, B.to("meta")), {}, ValueError, r"other must be on the device of x \(cpu\), got meta"),
]


@pytest.mark.parametrize(("arguments", "keywords", "error", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_input_is_named(
    backend: Backend, arguments: tuple[Any, ...], keywords: dict[str, Any], error: type[Exception], message: str
) -> None:
    if backend.device != "cpu":
        message = message.replace("cpu", backend.device)
        arguments = tuple(a.to(backend.device) if isinstance(a, Tensor) and a.is_cpu else a for a in arguments)
    with pytest.raises(error, match=f"gate: {message}"):
        sod_ops.gate(*arguments, **keywords)


def test_operators_refuse_what_would_read_out_of_bounds() -> None:
    """The operators below the public function guard themselves too."""
    operators = torch.ops.sod_ops
    for arguments in (
        (X[0], A, B, False),
        (X[:, :, ::2, ::2], A, None, False),
        (X, None, None, False),
        (X, B, None, False),
        (X, None, A, False),
        (X, A[:1], B, True),
        (X, A, B[..., ::2], True),
        (X.double(), A, B, True),
        (X.int(), A, B, True),
    ):
        with pytest.raises(RuntimeError, match="gate"):
            operators.gate(*arguments)
        with pytest.raises(RuntimeError, match="gate"):
            operators.gate_backward(arguments[0], *arguments)
    for grad in (X[:1], X.double(), X.contiguous(memory_format=torch.channels_last)):
        with pytest.raises(RuntimeError, match="gate"):
            operators.gate_backward(grad, X, A, B, False)


def test_matches_the_reference_bit_for_bit_where_nothing_is_summed() -> None:
    """Gates of 0 and 1: the result is x or 0."""
    x, channel, _ = make(MAPS[1], "logits")
    channel.copy_(torch.where(channel > 0, 200.0, -200.0))
    torch.testing.assert_close(sod_ops.gate(x, channel), reference(x, channel), rtol=0, atol=0)

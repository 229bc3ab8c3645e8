"""object_attention on every backend, against the authors' formula in float64 and against the contract of an op."""

from typing import Any

import pytest
import torch
from cases import EMPTY_MAPS, FLOATING, MAPS, MapCase
from conftest import Backend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tolerances import assert_accurate
from torch import Tensor

import sod_ops
from sod_ops.reference.object_attention import lowest_kept_logit

# Those of gate, of which the op is a composite.
WITHOUT_KERNELS = ("cuda",)

LAYOUTS = ("contiguous", "channels_last")
NAMES = ("forward", "decoder_logits", "encoder")


def published(decoder_logits: Tensor, encoder: Tensor, threshold: float = 0.93) -> Tensor:
    """Step by step, as TRACER does it: object part, plus reverse part where that is not above the threshold."""
    probability = torch.sigmoid(decoder_logits)
    reverse = 1 - probability
    reverse = reverse.masked_fill(reverse > threshold, 0.0)
    return encoder * probability + encoder * reverse


def make(case: MapCase, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Logits on both sides of the threshold, laid out as the encoder's map is, and that map."""
    samples, _, height, width = case.shape
    logits = 4 * MapCase((samples, 1, height, width), case.layout).build(torch.float64, device)
    like = MapCase((samples, 1, height, width), case.layout).build(dtype, device)
    return like if case.layout == "expanded" else like.copy_(logits), case.build(dtype, device)


def run(backend: str, logits: Tensor, encoder: Tensor, grad: Tensor, threshold: float = 0.93) -> list[Tensor]:
    """The result and the gradients of the logits and of the encoder's map."""
    leaves = [t.detach().requires_grad_() for t in (logits, encoder)]
    with sod_ops.use_backend(backend):
        y = sod_ops.object_attention(*leaves, threshold)
        return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(y.dtype))]


def check(backend: Backend, logits: Tensor, encoder: Tensor, threshold: float = 0.93) -> None:
    """Holds the result and both gradients to the reference's in float64."""
    grad = torch.randn(encoder.shape, dtype=torch.float64).to(encoder)
    before = [logits.clone(), encoder.clone()]
    actual = run(backend.name, logits, encoder, grad, threshold)
    plain = run("reference", logits, encoder, grad, threshold)
    exact = run("reference", logits.double(), encoder.double(), grad, threshold)
    for name, a, p, e in zip(NAMES, actual, plain, exact, strict=True):
        assert_accurate(a, p, e, name)
    for tensor, copy in zip((logits, encoder), before, strict=True):
        assert torch.equal(tensor, copy), "an input was changed"


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.93, 1.0])
def test_is_what_is_published(backend: Backend, threshold: float) -> None:
    logits, encoder = make(MapCase((2, 5, 6, 7)), torch.float64, backend.device)
    logits[0, 0, 0, :3] = torch.tensor([0.0, -0.0, 40.0])  # 1 - s is 1/2, which a threshold of 1/2 keeps; and nothing
    leaves = [logits.clone().requires_grad_(), encoder.clone().requires_grad_()]
    expected = published(*leaves, threshold)
    grad = torch.randn_like(expected)
    wanted = [expected, *torch.autograd.grad(expected, leaves, grad)]
    for name, a, e in zip(NAMES, run(backend.name, logits, encoder, grad, threshold), wanted, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")


def test_the_comparison_passes_no_gradient(backend: Backend) -> None:
    """A logit that is kept gets none: its two parts cancel. One below the threshold gets that of the sigmoid."""
    bound = lowest_kept_logit(0.93)
    logits = torch.tensor([bound - 1e-3, bound + 1e-3, 0.0, 50.0], dtype=torch.float64, device=backend.device)
    encoder = torch.full((1, 3, 1, 4), 2.0, dtype=torch.float64, device=backend.device)
    y, grad_logits, grad_encoder = run(backend.name, logits.view(1, 1, 1, 4), encoder, torch.ones_like(encoder))
    s = torch.sigmoid(logits[0])
    torch.testing.assert_close(y[0, 0, 0], torch.stack([2 * s, *3 * [torch.full_like(s, 2.0)]]))
    torch.testing.assert_close(grad_logits.flatten(), torch.stack([6 * s * (1 - s), *3 * [torch.zeros_like(s)]]))
    torch.testing.assert_close(grad_encoder[0, 1, 0], y[0, 1, 0] / 2)


@pytest.mark.parametrize("case", MAPS, ids=str)
def test_shapes_layouts_and_dtypes(kernel_backend: Backend, case: MapCase) -> None:
    dtypes = FLOATING
    if kernel_backend.interpreted:  # slow: one dtype for each layout
        dtypes = FLOATING[MAPS.index(case) % 4 :][:1]
        if case.large:
            case = MapCase((min(case.shape[0], 3), min(case.shape[1], 70), 9, 7), case.layout)
    for dtype in dtypes:
        check(kernel_backend, *make(case, dtype, kernel_backend.device))


@pytest.mark.parametrize("logits_layout", [*LAYOUTS, "channel_slice", "channels_last_slice", "sample_slice", "crop"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logits_of_any_layout(kernel_backend: Backend, dtype: torch.dtype, layout: str, logits_layout: str) -> None:
    logits = MapCase((2, 1, 5, 7), logits_layout).build(dtype, kernel_backend.device)
    check(kernel_backend, logits, MapCase((2, 19, 5, 7), layout).build(dtype, kernel_backend.device))


def test_unusual_strides(kernel_backend: Backend) -> None:
    storage = torch.randn(500, device=kernel_backend.device)
    for strides in ((100, 1, 5, 1), (7, 20, 5, 1), (3, 1, 35, 7), (0, 0, 5, 1), (20, 60, 5, 1), (1, 20, 5, 1)):
        encoder = storage.as_strided((3, 7, 4, 5), strides)
        check(kernel_backend, storage.as_strided((3, 1, 4, 5), (2, 1, 10, 2)), encoder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_extreme_values(backend: Backend, layout: str, dtype: torch.dtype) -> None:
    """Infinite logits are certain ones; NaN stays where it is; the largest numbers don't overflow."""
    logits, encoder = make(MapCase((1, 3, 2, 3), layout), dtype, backend.device)
    inf, largest = float("inf"), torch.finfo(dtype).max
    logits[0, 0] = torch.tensor([[inf, -inf, float("nan")], [largest, -largest, 0.0]])
    encoder[0, 1, 1, 2] = largest
    encoder[0, 2, 1, 2] = inf
    y, grad_logits, grad_encoder = run(backend.name, logits, encoder, torch.ones_like(encoder))
    factor = torch.tensor([[1.0, 0.0, float("nan")], [1.0, 0.0, 1.0]], dtype=dtype, device=backend.device)
    torch.testing.assert_close(grad_encoder, factor.expand_as(encoder).contiguous(), equal_nan=True)
    torch.testing.assert_close(y[0, :, 1, 2], encoder[0, :, 1, 2])
    torch.testing.assert_close(y[0, 0], encoder[0, 0] * factor, equal_nan=True)
    assert torch.equal(grad_logits.isnan()[0, 0, :, :2], torch.zeros(2, 2, dtype=torch.bool, device=backend.device))


@pytest.mark.parametrize("case", EMPTY_MAPS, ids=str)
def test_empty(backend: Backend, case: MapCase) -> None:
    logits, encoder = make(case, device=backend.device)
    y, grad_logits, grad_encoder = run(backend.name, logits, encoder, torch.zeros_like(encoder))
    assert y.shape == grad_encoder.shape == case.shape
    assert torch.equal(grad_logits, torch.zeros_like(logits))


@pytest.mark.parametrize("layout", [*LAYOUTS, "channel_slice"])
def test_gradcheck(backend: Backend, layout: str) -> None:
    logits, encoder = make(MapCase((2, 3, 3, 2), layout), torch.float64, backend.device)
    leaves = [logits.requires_grad_(), encoder.requires_grad_()]
    assert torch.autograd.gradcheck(sod_ops.object_attention, leaves, fast_mode=backend.interpreted)
    assert torch.autograd.gradgradcheck(sod_ops.object_attention, leaves, fast_mode=True)


def test_gradients_only_where_wanted(backend: Backend) -> None:
    inputs = make(MapCase((2, 3, 4, 5)), device=backend.device)
    grad = torch.randn_like(inputs[1])
    full = run(backend.name, *inputs, grad)[1:]
    for i in range(2):
        leaves = [t.detach().requires_grad_(i == j) for j, t in enumerate(inputs)]
        sod_ops.object_attention(*leaves).backward(grad)
        assert leaves[1 - i].grad is None
        torch.testing.assert_close(leaves[i].grad, full[i], rtol=0, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_incoming_gradients_of_any_layout(backend: Backend, layout: str) -> None:
    inputs = make(MapCase((2, 6, 3, 4), layout), device=backend.device)
    dense = torch.randn(2, 6, 3, 4, device=backend.device)
    expected = run(backend.name, *inputs, dense)
    for grad in (
        dense.contiguous(memory_format=torch.channels_last),
        dense.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        for a, e in zip(run(backend.name, *inputs, grad), expected, strict=True):
            torch.testing.assert_close(a, e, **({} if backend.name == "reference" else {"rtol": 0, "atol": 0}))
    ones = torch.ones((), device=backend.device).expand(2, 6, 3, 4)
    for a, e in zip(run(backend.name, *inputs, ones), run(backend.name, *inputs, ones.clone()), strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("layout", [*LAYOUTS, "channel_slice", "channels_last_slice"])
def test_memory_format_is_kept(kernel_backend: Backend, layout: str) -> None:
    logits, encoder = make(MapCase((2, 6, 4, 5), layout), device=kernel_backend.device)
    y, _, grad_encoder = run(kernel_backend.name, logits, encoder, torch.randn(2, 6, 4, 5, device=encoder.device))
    memory_format = torch.channels_last if layout.startswith("channels_last") else torch.contiguous_format
    assert y.is_contiguous(memory_format=memory_format)
    assert grad_encoder.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("layout", ["channel_slice", "sample_slice", "channels_last_slice", "expanded"])
def test_slices_are_read_in_place(kernel_backend: Backend, layout: str) -> None:
    """Nothing of the size of the encoder's map is allocated but the result."""
    logits, encoder = make(MapCase((4, 6, 16, 16), layout), device=kernel_backend.device)
    with torch.profiler.profile(profile_memory=True) as profile:
        sod_ops.object_attention(logits, encoder)
    on_gpu = kernel_backend.device == "cuda"
    allocated = sum(max(0, e.self_device_memory_usage if on_gpu else e.self_cpu_memory_usage) for e in profile.events())
    comparison, logits_again = 4 * 16 * 16, 4 * 16 * 16 * encoder.element_size()
    assert allocated <= 4 * 6 * 16 * 16 * encoder.element_size() + comparison + logits_again + 512


@pytest.mark.parametrize("case", [MAPS[1], MAPS[7], *(c for c in MAPS if c.large)], ids=str)
def test_deterministic_whatever_the_threads(kernel_backend: Backend, case: MapCase) -> None:
    if kernel_backend.interpreted:
        case = MapCase((1, 5, 4, 3), case.layout)
    inputs = make(case, device=kernel_backend.device)
    grad = torch.randn_like(inputs[1])
    threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    results = []
    try:
        for count in (1, 2) if kernel_backend.interpreted else (1, 2, 3, 8, 8):
            torch.set_num_threads(count)
            results.append(run(kernel_backend.name, *inputs, grad))
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(backend: Backend, dtype: torch.dtype) -> None:
    """An upsampled map in float32 beside a convolution's result in two bytes: what their product would be."""
    logits, encoder = make(MapCase((1, 2, 3, 4)), device=backend.device)
    encoder = encoder.to(dtype)
    with torch.autocast(backend.device, dtype):
        y = sod_ops.object_attention(logits, encoder)
        narrow = sod_ops.object_attention(logits.to(dtype), encoder)
    assert [y.dtype, narrow.dtype] == [torch.float32, dtype]
    torch.testing.assert_close(y, sod_ops.object_attention(logits, encoder.float()), rtol=0, atol=0)


def test_func_transforms(backend: Backend) -> None:
    logits, encoder = make(MapCase((3, 2, 3, 4)), torch.float64, backend.device)

    def loss(encoder: Tensor, logits: Tensor) -> Tensor:
        return sod_ops.object_attention(logits, encoder).square().sum()

    leaf = encoder.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf, logits), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(encoder, logits), expected)
    per_sample = torch.func.vmap(torch.func.grad(lambda e, d: loss(e[None], d[None])))(encoder, logits)
    torch.testing.assert_close(per_sample, expected)
    _, tangent = torch.func.jvp(lambda e: loss(e, logits), (encoder,), (torch.ones_like(encoder),))
    torch.testing.assert_close(tangent, expected.sum())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_compile(backend: Backend, layout: str) -> None:
    """One graph, with the fused operators of this backend in the forward and in the backward."""
    inputs = make(MapCase((2, 6, 5, 4), layout), device=backend.device)
    grad = torch.randn_like(inputs[1])
    expected = run(backend.name, *inputs, grad, 0.7)
    operators: list[str] = []

    def collect(graph: torch.fx.GraphModule, _: Any) -> Any:
        operators.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    torch._dynamo.reset()
    from torch._dynamo.backends.common import aot_autograd

    compiled = torch.compile(
        sod_ops.object_attention, fullgraph=True, backend=aot_autograd(fw_compiler=collect, bw_compiler=collect)
    )
    leaves = [t.clone().requires_grad_() for t in inputs]
    y = compiled(*leaves, 0.7)
    for a, e in zip((y, *torch.autograd.grad(y, leaves, grad)), expected, strict=True):
        torch.testing.assert_close(a, e)
    namespace = {"cpu": "sod_ops.", "triton": "sod_ops_triton."}.get(backend.name)
    assert ([o for o in operators if o.startswith("sod_ops")] != []) == (namespace is not None)
    if namespace is not None:
        assert f"{namespace}gate.default" in operators
        assert f"{namespace}gate_backward.default" in operators


def test_export(backend: Backend) -> None:
    class Model(torch.nn.Module):
        def forward(self, logits: Tensor, encoder: Tensor) -> Tensor:
            return sod_ops.object_attention(logits, encoder)

    inputs = make(MAPS[0], device=backend.device)
    exported = torch.export.export(Model(), inputs).module()
    torch.testing.assert_close(exported(*inputs), sod_ops.object_attention(*inputs))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 80), st.integers(1, 70), st.integers(1, 70)),
    layout=st.sampled_from([*LAYOUTS, "channel_slice", "channels_last_slice"]),
    dtype=st.sampled_from(FLOATING),
    threshold=st.floats(0, 1),
)
def test_any_shape(shape: tuple[int, int, int, int], layout: str, dtype: torch.dtype, threshold: float) -> None:
    check(Backend("cpu", "cpu"), *make(MapCase(shape, layout), dtype), threshold)


# ---- Bad input --------------------------------------------------------------------------------------------------------

D, E = torch.zeros(2, 1, 4, 5), torch.zeros(2, 3, 4, 5)
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"decoder_logits": None}, TypeError, "decoder_logits must be a Tensor, got NoneType"),
    ({"encoder": 1.0}, TypeError, "encoder must be a Tensor, got float"),
    ({"decoder_logits": D.int()}, TypeError, "decoder_logits must be float32"),
    ({"encoder": E.int()}, TypeError, "encoder must be float32"),
    ({"encoder": E[0]}, ValueError, r"encoder must be of shape \[N, C, H, W\], got \[3, 4, 5\]"),
    ({"decoder_logits": D[0]}, ValueError, r"decoder_logits must be of shape \[2, 1, 4, 5\] .* got \[1, 4, 5\]"),
    ({"decoder_logits": E}, ValueError, r"decoder_logits must be of shape \[2, 1, 4, 5\] .* got \[2, 3, 4, 5\]"),
    ({"decoder_logits": D[:1]}, ValueError, r"decoder_logits must be of shape .* got \[1, 1, 4, 5\]"),
    ({"decoder_logits": D[..., :1]}, ValueError, r"decoder_logits must be of shape .* got \[2, 1, 4, 1\]"),
    (
        {"decoder_logits": D.double()},
        TypeError,
        "decoder_logits must be torch.float32 as encoder is, got torch.float64",
    ),
    ({"encoder": E.to("meta")}, ValueError, "encoder must be on the device of decoder_logits"),
    ({"threshold": 1.5}, ValueError, "threshold must be from 0 to 1, got 1.5"),
    ({"threshold": float("nan")}, ValueError, "threshold must be from 0 to 1, got nan"),
    ({"threshold": "high"}, TypeError, "threshold must be a number, got 'high'"),
    ({"threshold": torch.tensor(0.5)}, TypeError, "threshold must be a number"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_input_is_named(backend: Backend, change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"decoder_logits": D.to(backend.device), "encoder": E.to(backend.device), **change}
    with pytest.raises(error, match=f"object_attention: {message}"):
        sod_ops.object_attention(**arguments)

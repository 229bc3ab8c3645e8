"""ssim on every backend, against the published code's formula and against its reference in float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import EMPTY_MAPS, FLOATING, MAPS, MapCase
from conftest import Backend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_sigmoid_focal_loss_contract import allocated
from tolerances import assert_accurate
from torch import Tensor

import sod_ops
from sod_ops.reference.ssim import gaussian_filter

WITHOUT_KERNELS = ("cuda",)
REDUCTIONS = ("none", "mean", "sum")
# More planes would teach nothing here.
CASES = [c._replace(shape=(c.shape[0], min(c.shape[1], 3), *c.shape[2:])) for c in MAPS if not c.large] + [
    MapCase((1, 1, 131, 67), large=True),
    MapCase((2, 3, 61, 67), "channels_last", large=True),
]


def small(case: MapCase) -> MapCase:
    """The same layout for Triton's interpreter: one plane or two, of at most 3 x 3 pixels."""
    return case._replace(shape=(1, 1 + case.shape[1] % 2, *(min(size, 3) for size in case.shape[2:])))


def images(
    case: MapCase, dtype: torch.dtype, device: str = "cpu", *, second: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Two in [0, 1] that have something to do with each other, in the case's layout."""
    found = []
    values = torch.rand(case.shape, dtype=torch.float64)
    for kind in (dtype, second or dtype):
        image = case.build(kind, device)
        values = values * 0.5 + 0.5 * torch.rand(case.shape, dtype=torch.float64)
        if case.layout == "expanded":
            image = values[:1].to(kind).to(device).expand(case.shape)
        else:
            image.copy_(values)
        found.append(image)
    return found[0], found[1]


def run(
    backend: str, x: Tensor, y: Tensor, grad: Tensor, *options: Any, wanted: tuple[bool, bool] = (True, True)
) -> list[Tensor]:
    """The similarity and the gradients that are ``wanted``."""
    leaves = [t.detach().requires_grad_(want) for t, want in zip((x, y), wanted, strict=True)]
    with sod_ops.use_backend(backend):
        value = sod_ops.ssim(*leaves, *options)
        return [
            value.detach(),
            *torch.autograd.grad(value, [t for t in leaves if t.requires_grad], grad.to(value.dtype)),
        ]


def cancelling(x: Tensor, y: Tensor, window_size: int, sigma: float) -> tuple[float, float]:
    """How large the terms are that cancel, about 1 / C2 where images hardly vary.

    In an index they are the averages of squares, of which variances are what is left; in a pixel's derivative 2 x G(1 / B2).
    Over 60 draws of images of 24 x 19 the root mean square of the largest error was 0.4 to 0.8 times plain PyTorch's in the
    similarity and 0.5 to 1.1 times in the gradients.
    """
    mx, my, squares = (gaussian_filter(m, window_size, sigma) for m in (x, y, x * x + y * y))
    b2 = (squares - mx * mx - my * my).clamp(min=0) + 0.03**2
    terms = 2 * torch.maximum(x.abs(), y.abs()) * gaussian_filter(1 / b2, window_size, sigma)
    return (squares / b2).mean().item(), terms.max().item()


def check(
    backend: Backend,
    x: Tensor,
    y: Tensor,
    window_size: int = 11,
    sigma: float = 1.5,
    reduction: str = "mean",
    **wanted: Any,
) -> None:
    """Holds the similarity and the gradients to those of the reference in float64."""
    shape = x.shape[:1] if reduction == "none" else ()
    # The interpreter truncates what it stores in two bytes, and would do so twice where the stored gradient is scaled.
    grad = torch.randn(shape, dtype=torch.float64, device=x.device) if reduction == "none" else torch.tensor(-2.0)
    grad = grad.to(x.device)
    before = [t.detach().clone() for t in (x, y)]
    options = (window_size, sigma, reduction)
    grad = grad.to(torch.promote_types(x.dtype, y.dtype))
    actual = run(backend.name, x, y, grad, *options, **wanted)
    plain = run("reference", x, y, grad, *options, **wanted)
    exact = run("reference", x.double(), y.double(), grad.double(), *options, **wanted)
    of_value, of_gradient = cancelling(x.double(), y.double(), window_size, sigma)
    of_value *= x.shape[0] if reduction == "sum" else 1
    of_gradient *= grad.abs().max().item() / x[0].numel() / (x.shape[0] if reduction == "mean" else 1)
    for index, (a, p, e) in enumerate(zip(actual, plain, exact, strict=True)):
        assert_accurate(a, p, e, f"gradient {index}" if index else "forward", of_gradient if index else of_value)
    for tensor, copy in zip((x, y), before, strict=True):
        assert torch.equal(tensor.nan_to_num(), copy.nan_to_num()), "an input was changed"


# ---- What it computes -------------------------------------------------------------------------------------------------


def published(x: Tensor, y: Tensor, window_size: int = 11, sigma: float = 1.5, size_average: bool = True) -> Tensor:
    """The formula of pytorch_ssim, with its two-dimensional window."""
    offsets = torch.arange(window_size, dtype=torch.float64) - window_size // 2
    taps = torch.exp(-(offsets**2) / (2 * sigma**2))
    taps = (taps / taps.sum()).to(x.device)
    channels = x.shape[1]
    window = taps.outer(taps).expand(channels, 1, window_size, window_size)

    def filtered(image: Tensor) -> Tensor:
        return F.conv2d(image, window, padding=window_size // 2, groups=channels)

    mu1, mu2 = filtered(x), filtered(y)
    sigma1_sq = filtered(x * x) - mu1.pow(2)
    sigma2_sq = filtered(y * y) - mu2.pow(2)
    sigma12 = filtered(x * y) - mu1 * mu2
    c1, c2 = 0.01**2, 0.03**2
    ssim_map = ((2 * mu1 * mu2 + c1) * (2 * sigma12 + c2)) / (
        (mu1.pow(2) + mu2.pow(2) + c1) * (sigma1_sq + sigma2_sq + c2)
    )
    return ssim_map.mean() if size_average else ssim_map.mean(1).mean(1).mean(1)


@pytest.mark.parametrize(("window_size", "size_average"), [(5, True), (11, False)])
def test_is_the_published_function(backend: Backend, window_size: int, size_average: bool) -> None:
    x, y = images(MapCase((2, 2, 7, 9)), torch.float64, backend.device)
    leaves = [[t.clone().requires_grad_() for t in (x, y)] for _ in range(2)]
    values = (
        sod_ops.ssim(*leaves[0], window_size, reduction="mean" if size_average else "none"),
        published(*leaves[1], window_size, size_average=size_average),
    )
    torch.testing.assert_close(*values, rtol=1e-11, atol=0)
    grad = torch.rand_like(values[0])
    found = [torch.autograd.grad(value, pair, grad) for value, pair in zip(values, leaves, strict=True)]
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-13)


def test_the_same_image_has_1_and_no_gradient(backend: Backend) -> None:
    x, _ = images(MapCase((1, 2, 7, 9)), torch.float64, backend.device)
    value, *gradients = run(backend.name, x, x.clone(), torch.tensor(1.0, device=backend.device))
    assert value.item() == pytest.approx(1, abs=1e-12)
    assert all(gradient.abs().max() < 1e-12 for gradient in gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_shapes_layouts_and_dtypes(kernel_backend: Backend, case: MapCase, dtype: torch.dtype) -> None:
    if kernel_backend.interpreted:
        return check(kernel_backend, *images(small(case), dtype), 3, 1.5, "none")
    for window_size, reduction in ((3, "none"), (11, "mean")):
        check(kernel_backend, *images(case, dtype, kernel_backend.device), window_size, 1.5, reduction)
    return None


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_reductions(kernel_backend: Backend, dtype: torch.dtype, reduction: str) -> None:
    check(kernel_backend, *images(MapCase((2, 1, 6, 5)), dtype, kernel_backend.device), 3, 0.8, reduction)


@pytest.mark.parametrize("window_size", [1, 11, 101])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 1, 1, 19), (1, 1, 13, 8)], ids=str)
def test_windows(kernel_backend: Backend, shape: tuple[int, ...], window_size: int) -> None:
    """Odd sizes, one pixel, windows larger than the image."""
    x, y = images(MapCase(shape), torch.float32, kernel_backend.device)
    check(kernel_backend, x, y, window_size, 1.5 if window_size < 31 else 20.0)


@pytest.mark.parametrize("sigma", [1e-200, 1e-3, 1e200])
def test_extreme_deviations(kernel_backend: Backend, sigma: float) -> None:
    """One pixel has all the weight, or all have the same."""
    check(kernel_backend, *images(MapCase((1, 1, 6, 5)), torch.float64, kernel_backend.device), 3, sigma)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)], ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_one_gradient(kernel_backend: Backend, wanted: tuple[bool, bool], reduction: str) -> None:
    x, y = images(MapCase((2, 2, 7, 6)), torch.float32, kernel_backend.device)
    check(kernel_backend, x, y, 5, 1.5, reduction, wanted=wanted)


@pytest.mark.parametrize(
    ("first", "second"), [(torch.bfloat16, torch.float32), (torch.float16, torch.float64)], ids=str
)
def test_two_dtypes(kernel_backend: Backend, first: torch.dtype, second: torch.dtype) -> None:
    x, y = images(MapCase((2, 1, 7, 6)), first, kernel_backend.device, second=second)
    for reduction in ("none", "mean"):
        check(kernel_backend, x, y, 5, 1.5, reduction)
    assert sod_ops.ssim(y, x).dtype == second


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3])
def test_constant_images(kernel_backend: Backend, value: float) -> None:
    """Variances are differences of equal numbers there."""
    x, y = images(
        MapCase((1, 1, 24, 19) if not kernel_backend.interpreted else (1, 1, 8, 9)),
        torch.float32,
        kernel_backend.device,
    )
    check(kernel_backend, x, torch.full_like(y, value), 5)
    check(kernel_backend, torch.full_like(x, value), torch.full_like(y, 1 - value), 5)


@pytest.mark.parametrize("case", EMPTY_MAPS, ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_empty(backend: Backend, case: MapCase, reduction: str) -> None:
    """No samples: a mean of NaN, a sum of 0. No pixels: 0 / 0."""
    x, y = (case.build(torch.float32, backend.device) for _ in range(2))
    grad = torch.ones(case.shape[:1] if reduction == "none" else (), device=backend.device)
    results = [run(name, x, y, grad, 3, 1.5, reduction) for name in (backend.name, "reference")]
    for a, e in zip(*results, strict=True):
        torch.testing.assert_close(a, e, equal_nan=True)


def test_nan_stays_in_its_windows(backend: Backend) -> None:
    x, y = images(MapCase((2, 1, 9, 8)), torch.float32, backend.device)
    x[0, 0, 4, 4] = float("nan")
    value, of_x, of_y = run(backend.name, x, y, torch.ones(2, device=backend.device), 3, 1.5, "none")
    assert value.isnan().tolist() == [True, False]
    near = torch.zeros_like(x, dtype=torch.bool)
    near[0, 0, 2:7, 2:7] = True
    assert torch.equal(of_x.isnan(), near)
    assert torch.equal(of_y.isnan(), near)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 50), st.integers(1, 50)),
    layout=st.sampled_from(
        ["contiguous", "channels_last", "channel_slice", "channels_last_slice", "crop", "transposed", "sample_slice"]
    ),
    dtypes=st.tuples(*[st.sampled_from(FLOATING)] * 2),
    half=st.integers(0, 30),
    sigma=st.floats(0.3, 30),
    reduction=st.sampled_from(REDUCTIONS),
)
def test_any_shape(
    shape: tuple[int, int, int, int],
    layout: str,
    dtypes: tuple[torch.dtype, torch.dtype],
    half: int,
    sigma: float,
    reduction: str,
) -> None:
    x, y = images(MapCase(shape, layout), dtypes[0], second=dtypes[1])
    check(Backend("cpu", "cpu"), x, y, 2 * half + 1, sigma, reduction)


# ---- Gradients, determinism, memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("window_size", "reduction"), [(3, "mean"), (3, "none"), (11, "sum")])
def test_gradcheck(backend: Backend, window_size: int, reduction: str) -> None:
    x, y = (
        t.requires_grad_()
        for t in images(MapCase((1 if backend.interpreted else 2, 1, 3, 4)), torch.float64, backend.device)
    )

    def function(x: Tensor, y: Tensor) -> Tensor:
        return sod_ops.ssim(x, y, window_size, reduction=reduction)

    assert torch.autograd.gradcheck(function, (x, y), fast_mode=backend.interpreted)
    assert torch.autograd.gradgradcheck(function, (x, y), fast_mode=True)


def test_backward_twice(kernel_backend: Backend) -> None:
    """retain_graph: each time with the gradient that comes in, whatever became of what the first time returned."""
    leaves = [t.requires_grad_() for t in images(MapCase((2, 1, 6, 7)), torch.float32, kernel_backend.device)]
    for reduction in REDUCTIONS:
        value = sod_ops.ssim(*leaves, 3, reduction=reduction)
        first = torch.autograd.grad(value, leaves, torch.full_like(value, 4.0), retain_graph=True)
        copies = [gradient.clone() for gradient in first]
        for gradient in first:
            gradient.zero_()
        for factor in (1.0, -2.0):
            again = torch.autograd.grad(value, leaves, torch.full_like(value, factor), retain_graph=True)
            for a, e in zip(again, copies, strict=True):
                torch.testing.assert_close(a, e * (factor / 4), rtol=1e-6, atol=1e-9)


def test_float16_with_a_loss_scale(kernel_backend: Backend) -> None:
    """A mean's gradient that float16 cannot hold before the loss scale lifts it."""
    shape = (2, 1, 12, 12) if kernel_backend.interpreted else (4, 1, 96, 96)
    x, y = images(MapCase(shape), torch.float16, kernel_backend.device)
    scale = torch.tensor(2.0**15, device=kernel_backend.device)
    for a, e in zip(
        run(kernel_backend.name, x, y, scale, 3)[1:],
        run("reference", x.double(), y.double(), scale, 3)[1:],
        strict=True,
    ):
        torch.testing.assert_close(a.double(), e, rtol=2e-3, atol=1e-4 * e.abs().max().item())


def test_memory() -> None:
    """On the CPU, nothing of the images' size but the gradients."""
    with sod_ops.use_backend("cpu"):
        x, y = (t.requires_grad_() for t in images(MapCase((4, 3, 48, 40)), torch.float32))
        size = x.numel() * 4

        def step() -> Tensor:
            value = sod_ops.ssim(x, y)
            value.backward()
            return value

        assert 2 * size <= allocated(Backend("cpu", "cpu"), step) < 2.1 * size


@pytest.mark.gpu
def test_a_workspace_serves_one_group_of_planes_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton: the same results from several groups, the last of them smaller."""
    if torch.cuda.is_available():
        backend = Backend("triton", "cuda")
    else:
        backend = Backend("triton", "cpu")
    x, y = images(MapCase((3, 1, 5, 4)), torch.float32, backend.device)
    grad = torch.rand(3, device=backend.device)
    expected = run(backend.name, x, y, grad, 3, 1.5, "none")
    from sod_ops.triton import _similarity

    monkeypatch.setattr(_similarity, "_WORKSPACE", 2 * 8 * 5 * 4)
    for a, e in zip(run(backend.name, x, y, grad, 3, 1.5, "none"), expected, strict=True):
        assert torch.equal(a, e)


@pytest.mark.parametrize("case", [c for c in CASES if not c.large], ids=str)
def test_memory_format_of_gradients(kernel_backend: Backend, case: MapCase) -> None:
    if kernel_backend.interpreted:
        case = small(case)
    x, y = images(case, torch.float32, kernel_backend.device)
    _, *gradients = run(kernel_backend.name, x, y, torch.tensor(1.0, device=kernel_backend.device), 1)
    for gradient, image in zip(gradients, (x, y), strict=True):
        assert gradient.stride() == torch.empty_like(image).stride()


def test_deterministic(kernel_backend: Backend) -> None:
    shape = (2, 1, 11, 13) if kernel_backend.interpreted else (3, 2, 130, 97)
    x, y = images(MapCase(shape), torch.float32, kernel_backend.device)
    torch.use_deterministic_algorithms(True)
    try:
        grad = torch.tensor(0.7, device=kernel_backend.device)
        first = run(kernel_backend.name, x, y, grad)
        for _ in range(1 if kernel_backend.interpreted else 5):
            for a, b in zip(run(kernel_backend.name, x, y, grad), first, strict=True):
                assert torch.equal(a, b)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("samples", [1, 3])
def test_does_not_depend_on_the_number_of_threads(samples: int) -> None:
    """A thread's bands are walked as one, and rows beside them are computed by two threads."""
    threads = torch.get_num_threads()
    x, y = images(MapCase((samples, 1, 411, 97)), torch.float32)
    results = []
    try:
        for count in (1, 2, 3, 4):
            torch.set_num_threads(count)
            results.append(run("cpu", x, y, torch.tensor(1.0)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


# ---- PyTorch's other parts --------------------------------------------------------------------------------------------


def test_func_transforms(backend: Backend) -> None:
    x, y = images(MapCase((3, 1, 4, 5)), torch.float64, backend.device)

    def total(x: Tensor, y: Tensor) -> Tensor:
        return sod_ops.ssim(x, y, 3, reduction="sum")

    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(total(leaf, y), leaf)
    torch.testing.assert_close(torch.func.grad(total)(x, y), expected)
    each = torch.func.vmap(torch.func.grad(total))(x.unsqueeze(1), y.unsqueeze(1))
    torch.testing.assert_close(each.squeeze(1), expected)


@pytest.mark.parametrize("reduction", range(2))
def test_operators_pass_opcheck(kernel_backend: Backend, reduction: int) -> None:
    kernels = sod_ops.ops.ssim._select(kernel_backend.device)
    x, y = images(MapCase((1, 2, 3, 4), "channels_last"), torch.float32, kernel_backend.device)
    options = (3, 1.5, reduction)
    torch.library.opcheck(
        kernels.forward, (x.clone().requires_grad_(), y.clone().requires_grad_(), *options, True, True)
    )
    torch.library.opcheck(kernels.forward, (x, y, *options, False, False))
    value = kernels.forward(x, y, *options, False, False)[0]
    torch.library.opcheck(kernels.backward, (torch.rand_like(value), x, y, *options, False, True))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_compile(backend: Backend, reduction: str) -> None:
    """One graph with the fused operators; twice run, as what is stored must not be used up."""
    torch._dynamo.reset()
    x, y = images(MapCase((2, 1, 7, 5)), torch.float32, backend.device)
    grad = torch.full((2,) if reduction == "none" else (), -2.0, device=backend.device)
    expected = run(backend.name, x, y, grad, 3, 1.5, reduction)
    compiled = torch.compile(sod_ops.ssim, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        leaves = [t.detach().requires_grad_() for t in (x, y)]
        value = compiled(*leaves, 3, 1.5, reduction)
        for a, e in zip((value, *torch.autograd.grad(value, leaves, grad)), expected, strict=True):
            torch.testing.assert_close(a, e)


def test_compile_with_inductor_inside_a_model() -> None:
    torch._dynamo.reset()
    x, y = images(MapCase((2, 1, 9, 11)), torch.float32)

    def model(x: Tensor, y: Tensor) -> Tensor:
        return 1 - sod_ops.ssim(x.sigmoid(), y * 0.5)

    leaves = [x.clone().requires_grad_() for _ in range(2)]
    for function, leaf in zip((model, torch.compile(model, fullgraph=True)), leaves, strict=True):
        function(leaf, y).backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)


def test_export(backend: Backend) -> None:
    x, y = images(MapCase((1, 1, 5, 6)), torch.float32, backend.device)
    module = sod_ops.nn.SSIM(3)
    exported = torch.export.export(module, (x, y))
    torch.testing.assert_close(exported.module()(x, y), module(x, y))


def test_autocast(backend: Backend) -> None:
    """The variances would be lost in two bytes."""
    x, y = images(MapCase((1, 1, 6, 7)), torch.float32, backend.device)
    with torch.autocast(backend.device, torch.bfloat16):
        assert torch.equal(sod_ops.ssim(x, y, 3), run(backend.name, x, y, torch.tensor(1.0, device=x.device), 3)[0])


# ---- The module and bad input -----------------------------------------------------------------------------------------


def test_module() -> None:
    x, y = images(MapCase((2, 1, 8, 9)), torch.float32)
    module = sod_ops.nn.SSIM(5, 2.0, "sum")
    assert torch.equal(module(x, y), sod_ops.ssim(x, y, 5, 2.0, "sum"))
    assert repr(module) == "SSIM(window_size=5, sigma=2.0, reduction='sum')"
    with pytest.raises(ValueError, match="SSIM: window_size must be odd"):
        sod_ops.nn.SSIM(4)
    with pytest.raises(TypeError, match="SSIM: reduction must be a string"):
        sod_ops.nn.SSIM(reduction=None)


T = torch.zeros
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": None}, TypeError, "x must be a Tensor, got NoneType"),
    ({"y": 1.0}, TypeError, "y must be a Tensor, got float"),
    ({"y": T(2, 1, 4, 4).to_sparse()}, TypeError, "y must be a dense tensor"),
    ({"x": T(2, 1, 4, 4, dtype=torch.uint8)}, TypeError, "x must be float32, .* got torch.uint8"),
    ({"y": T(2, 1, 4, 4, dtype=torch.bool)}, TypeError, "y must be float32, .* got torch.bool"),
    ({"x": T(2, 4, 4)}, ValueError, r"y must be of the shape of x, \[2, 4, 4\], .*out\[:, :1\]"),
    ({"x": T(2, 2, 4, 4)}, ValueError, r"y must be of the shape of x.*out\[:, :1\]"),
    ({"x": T(4, 4), "y": T(4, 4)}, ValueError, r"x must be of shape \[N, C, H, W\], got \[4, 4\]"),
    ({"y": T(2, 1, 4, 4, device="meta")}, ValueError, "y must be on the device of x"),
    ({"window_size": 10}, ValueError, "window_size must be odd and above 0, got 10"),
    ({"window_size": 11.0}, TypeError, r"window_size must be an integer, got 11.0 \(float\)"),
    ({"sigma": 0.0}, ValueError, "sigma must be finite and above 0, got 0.0"),
    ({"sigma": float("nan")}, ValueError, "sigma must be finite and above 0, got nan"),
    ({"sigma": "1.5"}, TypeError, r"sigma must be a number, got '1.5' \(str\)"),
    ({"reduction": "avg"}, ValueError, "reduction must be one of 'none', 'mean', 'sum', got 'avg'"),
    ({"reduction": None}, TypeError, "reduction must be a string"),
]


@pytest.mark.parametrize(
    ("change", "error", "message"), BAD, ids=[f"{next(iter(c))}-{i}" for i, (c, _, _) in enumerate(BAD)]
)
def test_bad_input_is_named(backend: Backend, change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"x": T(2, 1, 4, 4), "y": T(2, 1, 4, 4), **change}
    for name, value in arguments.items():
        if isinstance(value, Tensor) and value.device.type == "cpu":
            arguments[name] = value.to(backend.device)
    with pytest.raises(error, match=f"ssim: {message}"):
        sod_ops.ssim(**arguments)


def test_operators_refuse_what_would_read_out_of_bounds() -> None:
    """The operators below the public function guard themselves too."""
    x = T(2, 1, 4, 4)
    operator, backward = torch.ops.sod_ops.ssim, torch.ops.sod_ops.ssim_backward
    for first, second, window_size, sigma, reduction in (
        (x, x[:1], 3, 1.5, 1),
        (x[:, 0], x[:, 0], 3, 1.5, 1),
        (x, x.int(), 3, 1.5, 1),
        (x, x, 4, 1.5, 1),
        (x, x, 3, 0.0, 1),
        (x, x, 3, 1.5, 3),
    ):
        with pytest.raises(RuntimeError, match="ssim"):
            operator(first, second, window_size, sigma, reduction, False, False)
    for grad, reduction in ((T(1), 0), (T(2).double(), 0), (T(2), 1)):
        with pytest.raises(RuntimeError, match="grad_output"):
            backward(grad, x, x, 3, 1.5, reduction, True, True)

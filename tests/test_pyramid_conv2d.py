"""pyramid_conv2d on every backend, against interpolate + cat + conv2d in float64 and against the contract of an op."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from cases import FLOATING
from conftest import Backend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tolerances import assert_accurate
from torch import Tensor

import sod_ops
from sod_ops.ops._cost_of_upsampling import pays_before_upsampling
from sod_ops.reference import pyramid_conv2d as reference

# Triton serves GPUs; the convolution and the products are cuDNN's and cuBLAS's.
WITHOUT_KERNELS = ("cuda",)

Size = tuple[int, int]


@pytest.fixture(autouse=True)
def at_their_own_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """All branches, however cheap they were to upsample, and all in cache: the kernels are tested on small maps."""
    choose(monkeypatch, lambda *_: True)
    place(monkeypatch, 1 << 20)


def choose(monkeypatch: pytest.MonkeyPatch, pays: Callable[[Tensor, Tensor, tuple[int, int], bool, str], bool]) -> None:
    monkeypatch.setattr(sys.modules["sod_ops.ops.pyramid_conv2d"], "pays_before_upsampling", pays)


def place(monkeypatch: pytest.MonkeyPatch, channels: int) -> None:
    """On the CPU, up to how many channels of a branch its products stay in the cache."""
    for name in ("_CHANNELS_IN_CACHE", "_CHANNELS_OF_SHORT_ROWS"):
        monkeypatch.setattr(sys.modules["sod_ops.ops.pyramid_conv2d"], name, channels)


class Case(NamedTuple):
    """Sizes of a call; ``branches`` has (channels, height, width) of each."""

    size: Size = (7, 11)
    branches: tuple[tuple[int, int, int], ...] = ((3, 1, 1), (4, 2, 2), (2, 3, 3), (5, 6, 6))
    channels: int | None = 5
    out_channels: int = 7
    samples: int = 2
    kernel: int = 3
    bias: bool = True
    layout: str = "contiguous"

    def on(self, backend: Backend) -> "Case":
        """Smaller for Triton's interpreter, where a program, of which there is one for each pixel, takes 10 ms."""
        if not backend.interpreted:
            return self
        height, width = self.size
        small = tuple((c, min(h, 2), min(w, 5)) for c, h, w in self.branches)
        if len(small) < 5:
            small = small[-2:]
        return self._replace(
            size=(min(height, 3), min(width, 4)), branches=small, samples=min(self.samples, 1), out_channels=3
        )


class Inputs(NamedTuple):
    x: Tensor | None
    branches: tuple[Tensor, ...]
    weight: Tensor
    bias: Tensor | None

    @property
    def leaves(self) -> list[Tensor]:
        return [t for t in (self.x, self.weight, self.bias, *self.branches) if t is not None]

    def map(self, function: Any) -> "Inputs":
        x, weight, bias = (None if t is None else function(t) for t in (self.x, self.weight, self.bias))
        return Inputs(x, tuple(function(t) for t in self.branches), weight, bias)

    def to(self, dtype: torch.dtype) -> "Inputs":
        return self.map(lambda t: t.detach().to(dtype))

    def requiring_grad(self) -> "Inputs":
        return self.map(lambda t: t.detach().requires_grad_())


# Primes, sizes that divide and that don't, one pixel, branches as large as the output and larger, blocks of channels
# that fill no vector and more than one block.
CASES = {
    "pyramid": Case(),
    "one sample": Case(samples=1, size=(13, 5)),
    "1x1": Case(kernel=1),
    "one branch": Case(size=(8, 12), branches=((3, 4, 6),)),
    "factor 2.37": Case(size=(19, 14), branches=((3, 8, 6), (2, 3, 2))),
    "same size and larger": Case(size=(5, 7), branches=((3, 5, 7), (2, 9, 4), (1, 13, 23))),
    "one pixel": Case(size=(1, 1), branches=((3, 1, 1), (2, 2, 3))),
    "one row": Case(size=(1, 9), branches=((3, 1, 3),)),
    "no bias": Case(bias=False),
    "no branch": Case(branches=()),
    "no x": Case(channels=None),
    "no x, no bias": Case(channels=None, bias=False, branches=((3, 4, 4),)),
    "channels_last": Case(layout="channels_last"),
    "channels_last 1x1": Case(layout="channels_last", kernel=1, out_channels=19),
    "slices": Case(layout="slice"),
    "five branches": Case(branches=((1, 1, 1), (1, 2, 2), (1, 3, 3), (1, 4, 4), (2, 5, 5))),
    "one channel": Case(channels=1, out_channels=1, branches=((1, 2, 2),)),
}
LARGE = {
    "two blocks of channels": Case(size=(20, 20), branches=((16, 10, 10), (16, 5, 5)), channels=32, out_channels=150),
    "wide": Case(size=(33, 70), branches=((8, 17, 35), (8, 6, 6)), channels=8, out_channels=64, layout="channels_last"),
    "many branches": Case(size=(12, 12), branches=((2, 3, 3),) * 35, channels=4, out_channels=20),
}
# Branches that nearest neighbours double, each a map of at least 24 by 24 and 16 pixels to a channel.
DOUBLED = {
    "even": Case((48, 48), ((5, 24, 24),), 2, 7),
    "odd": Case((50, 54), ((16, 25, 27),), 3, 16, layout="channels_last"),
    "two blocks of channels": Case((62, 80), ((33, 31, 40),), 4, 70, bias=False),
    "long rows": Case((52, 180), ((3, 26, 90),), None, 64, samples=1),
    "many channels": Case((48, 194), ((130, 24, 97),), None, 20, samples=1, bias=False, layout="channels_last"),
    "slices": Case((54, 50), ((17, 27, 25),), 1, 33, samples=3, layout="slice"),
}
OPTIONS = [
    {},
    {"align_corners": True},
    {"x_first": False},
    {"align_corners": True, "x_first": False},
    {"mode": "nearest"},
]


def make(case: Case = CASES["pyramid"], dtype: torch.dtype = torch.float32, device: str = "cpu") -> Inputs:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        values = (torch.randn(shape, dtype=torch.float64, generator=generator) * scale).to(dtype).to(device)
        if len(shape) == 4 and case.layout == "channels_last":
            return values.contiguous(memory_format=torch.channels_last)
        if len(shape) == 4 and case.layout == "slice":
            wider = torch.full((shape[0], shape[1] + 3, *shape[2:]), float("nan"), dtype=dtype, device=device)
            return wider[:, 2:-1].copy_(values)
        return values

    total = (case.channels or 0) + sum(c for c, _, _ in case.branches)
    return Inputs(
        None if case.channels is None else normal(case.samples, case.channels, *case.size),
        tuple(normal(case.samples, *branch) for branch in case.branches),
        normal(case.out_channels, total, case.kernel, case.kernel, scale=(total * case.kernel**2) ** -0.5),
        normal(case.out_channels) if case.bias else None,
    )


def call(case: Case, inputs: Inputs, **options: Any) -> Tensor:
    size = case.size if inputs.x is None else None
    return sod_ops.pyramid_conv2d(*inputs, padding=case.kernel // 2, size=size, **options)


def run(backend: str, case: Case, inputs: Inputs, grad: Tensor, **options: Any) -> list[Tensor]:
    """The result and the gradients of all tensors."""
    leaves = inputs.requiring_grad()
    with sod_ops.use_backend(backend):
        y = call(case, leaves, **options)
        return [y.detach(), *torch.autograd.grad(y, leaves.leaves, grad.to(y.dtype))]


def output_grad(case: Case, inputs: Inputs) -> Tensor:
    shape = (case.samples, case.out_channels, *case.size)
    return torch.randn(shape, dtype=torch.float64, device=inputs.weight.device).to(inputs.weight.dtype)


def names(inputs: Inputs) -> list[str]:
    named = [("x", inputs.x), ("weight", inputs.weight), ("bias", inputs.bias)]
    return [
        "forward",
        *(n for n, t in named if t is not None),
        *(f"branches[{i}]" for i in range(len(inputs.branches))),
    ]


def check(backend: Backend, case: Case, inputs: Inputs, **options: Any) -> None:
    """Holds the result and all gradients to those of interpolate, cat and conv2d in float64."""
    grad = output_grad(case, inputs)
    before = [t.clone() for t in inputs.leaves]
    actual = run(backend.name, case, inputs, grad, **options)
    plain = run("reference", case, inputs, grad, **options)
    exact = run("reference", case, inputs.to(torch.float64), grad, **options)
    for name, a, p, e in zip(names(inputs), actual, plain, exact, strict=True):
        assert_accurate(a, p, e, name)
    assert all(torch.equal(a, b) for a, b in zip(inputs.leaves, before, strict=True))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_sizes(backend: Backend, case: Case) -> None:
    case = case.on(backend)
    check(backend, case, make(case, device=backend.device))


@pytest.mark.parametrize("dtype", FLOATING[1:], ids=str)
@pytest.mark.parametrize("name", ["pyramid", "1x1", "channels_last", "slices", "no x"])
def test_dtypes(backend: Backend, name: str, dtype: torch.dtype) -> None:
    case = CASES[name].on(backend)
    check(backend, case, make(case, dtype, backend.device))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", ["pyramid", "1x1", "factor 2.37", "same size and larger", "channels_last", "no x"])
def test_options(backend: Backend, name: str, options: dict[str, Any]) -> None:
    case = CASES[name].on(backend)
    check(backend, case, make(case, device=backend.device), **options)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("case", LARGE.values(), ids=LARGE)
def test_large(case: Case, options: dict[str, Any]) -> None:
    check(Backend("cpu", "cpu"), case, make(case), **options)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("case", DOUBLED.values(), ids=DOUBLED)
def test_doubled(case: Case, dtype: torch.dtype) -> None:
    check(Backend("cpu", "cpu"), case, make(case, dtype), mode="nearest")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("position", [(6, 9), (7, 10), (0, 0), (24, 25)], ids=str)
def test_not_finite_in_a_doubled_branch(position: tuple[int, int], value: float, layout: str) -> None:
    """Differences between neighbours spoil what the value reaches, and nothing else."""
    case = Case((50, 52), ((3, 25, 26),), None, 5, layout=layout)
    inputs = make(case)
    clean = call(case, inputs, mode="nearest")
    row, column = position
    inputs.branches[0][0, 1, row, column] = value
    reached = torch.zeros(clean.shape, dtype=torch.bool)
    reached[0, :, max(0, 2 * row - 1) : 2 * row + 3, max(0, 2 * column - 1) : 2 * column + 3] = True
    y = call(case, inputs, mode="nearest")
    assert torch.equal(~y.isfinite(), reached)
    assert torch.equal(y[~reached], clean[~reached])


@pytest.mark.parametrize("channels", [3, 0], ids=["some in memory", "all in memory"])
@pytest.mark.parametrize("case", [*CASES.values(), *LARGE.values()], ids=[*CASES, *LARGE])
def test_products_in_memory(monkeypatch: pytest.MonkeyPatch, case: Case, channels: int) -> None:
    place(monkeypatch, channels)
    check(Backend("cpu", "cpu"), case, make(case))
    check(Backend("cpu", "cpu"), case, make(case, torch.bfloat16), mode="nearest")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "slice"])
@pytest.mark.parametrize("depth", [16, 21, 300, 530])
def test_deep_branches(depth: int, layout: str) -> None:
    """More channels than are multiplied at once, whole panels of them and not, and several rows that wait."""
    case = Case((14, 23), ((depth, 7, 11), (depth + 1, 5, 3)), 3, 70, samples=3, layout=layout)
    check(Backend("cpu", "cpu"), case, make(case))
    check(Backend("cpu", "cpu"), case, make(case, torch.float64), mode="nearest")


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("factor", [2, 3, 4, 8, 2.37])
def test_factors(backend: Backend, factor: float, mode: str) -> None:
    height = 1 if backend.interpreted else 3
    case = Case((round(height * factor), round(2 * factor)), ((2, height, 2),), 2, 3, samples=1)
    check(backend, case, make(case, device=backend.device), mode=mode)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", ["pyramid", "1x1", "factor 2.37", "channels_last", "no x"])
@pytest.mark.parametrize("dear", [(2, 5), (3, 4), (2, 3, 4, 5)], ids=str)
def test_branches_that_are_cheaper_to_upsample(
    monkeypatch: pytest.MonkeyPatch, dear: tuple[int, ...], name: str, options: dict[str, Any]
) -> None:
    """By their channels; the last are all of them."""
    choose(monkeypatch, lambda branch, *_: branch.shape[1] not in dear)
    check(Backend("cpu", "cpu"), CASES[name], make(CASES[name]), **options)


@pytest.mark.parametrize("with_backward", [False, True])
@pytest.mark.parametrize(
    ("channels", "out_channels", "factor", "pays"),
    [
        (64, 64, 1, False),
        (8, 32, 2, False),
        (32, 16, 2, True),
        (64, 64, 2, True),
        (8, 8, 8, True),
        (512, 512, 60, True),
    ],
)
def test_what_is_cheaper(channels: int, out_channels: int, factor: int, pays: bool, with_backward: bool) -> None:
    """Never a branch as large as the output, always a deep one; between them, few channels at twice the size are not."""
    branch, weight = torch.empty(2, channels, 12, 10), torch.empty(out_channels, channels + 4, 3, 3)
    assert pays_before_upsampling(branch, weight, (12 * factor, 10 * factor), with_backward, "nearest") == pays


def test_what_pays_in_training_alone() -> None:
    """The backward multiplies twice and moves no more than the forward."""
    branch, weight = torch.empty(2, 20, 40, 40), torch.empty(64, 84, 3, 3)
    pays = partial(pays_before_upsampling, branch, weight, (80, 80), mode="bilinear")
    assert [pays(with_backward=with_backward) for with_backward in (False, True)] == [False, True]


def test_what_pays_where_neighbours_double() -> None:
    """Few channels, too few where they are interpolated, or where there are few rows."""
    weight = torch.empty(32, 40, 3, 3)
    for size, mode, pays in (((40, 40), "nearest", True), ((40, 40), "bilinear", False), ((20, 80), "nearest", False)):
        branch = torch.empty(2, 8, *size)
        assert pays_before_upsampling(branch, weight, (2 * size[0], 2 * size[1]), False, mode) == pays


@pytest.mark.parametrize("align_corners", [False, True])
def test_every_pair_of_sizes_reads_pytorchs_neighbours(kernel_backend: Backend, align_corners: bool) -> None:
    """One channel, 1x1: what is left is the interpolation itself, in both directions, and nearest's choices."""
    interpreted = kernel_backend.interpreted
    for dtype in (torch.float32, torch.float64):
        for size in (4, 7) if interpreted else range(1, 24):
            sizes = (1, 3, 5) if interpreted else range(1, 24)
            case = Case((1, size), tuple((1, 1, s) for s in sizes), 1, 1, samples=1, kernel=1, bias=False)
            inputs = make(case, dtype, kernel_backend.device)
            for mode in ("bilinear",) if align_corners else ("bilinear", "nearest"):
                options: dict[str, Any] = {"align_corners": align_corners, "mode": mode}
                grad = output_grad(case, inputs)
                actual = run(kernel_backend.name, case, inputs, grad, **options)
                expected = run("reference", case, inputs, grad, **options)
                for a, e in zip(actual, expected, strict=True):
                    torch.testing.assert_close(a, e)


@pytest.mark.parametrize("name", ["pyramid", "channels_last", "1x1", "no x", "factor 2.37"])
def test_gradcheck(backend: Backend, name: str) -> None:
    case = CASES[name]._replace(samples=1, size=(5, 4), out_channels=2).on(backend)
    inputs = make(case, torch.float64, backend.device).requiring_grad()
    for options in OPTIONS[::4] if backend.interpreted else OPTIONS:

        def function(*leaves: Tensor, options: dict[str, Any] = options) -> Tensor:
            given = iter(leaves)
            x, weight, bias = (None if t is None else next(given) for t in (inputs.x, inputs.weight, inputs.bias))
            assert weight is not None
            return call(case, Inputs(x, tuple(given), weight, bias), **options)

        assert torch.autograd.gradcheck(function, inputs.leaves, fast_mode=backend.interpreted or bool(options))
        assert torch.autograd.gradgradcheck(function, inputs.leaves, fast_mode=True)


def test_gradients_only_where_wanted(backend: Backend) -> None:
    case = CASES["pyramid"].on(backend)
    inputs = make(case, device=backend.device)
    grad = output_grad(case, inputs)
    full = run(backend.name, case, inputs, grad)
    for i, leaf in enumerate(inputs.leaves):
        leaf.requires_grad_()
        y = call(case, inputs)
        (found,) = torch.autograd.grad(y, leaf, grad)
        leaf.requires_grad_(False)
        torch.testing.assert_close(found, full[1 + i])


def test_memory_format(kernel_backend: Backend) -> None:
    """That of the convolution over x alone; gradients have that of their tensors."""
    for layout in ("contiguous", "channels_last"):
        case = Case(layout=layout).on(kernel_backend)
        inputs = make(case, device=kernel_backend.device).requiring_grad()
        y = call(case, inputs)
        assert inputs.x is not None
        own = torch.nn.functional.conv2d(inputs.x, inputs.weight[:, : inputs.x.shape[1]], padding=1)
        assert y.stride() == own.stride()
        for leaf, grad in zip(inputs.leaves, torch.autograd.grad(y.sum(), inputs.leaves), strict=True):
            assert grad.stride() == leaf.stride()


@pytest.mark.parametrize("case", [Case(samples=0), Case(channels=0)], ids=["no sample", "no channel of x"])
def test_empty(backend: Backend, case: Case) -> None:
    inputs = make(case, device=backend.device)
    grad = output_grad(case, inputs)
    for a, e in zip(run(backend.name, case, inputs, grad), run("reference", case, inputs, grad), strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("value", [float("inf"), float("nan"), "max"])
def test_extreme_values(backend: Backend, value: Any, dtype: torch.dtype) -> None:
    """A value beyond all others spoils what it reaches, and nothing else; sums do not overflow in float16."""
    case = Case(size=(6, 6), branches=((3, 3, 3),), out_channels=2)
    inputs = make(case, dtype, backend.device)
    if value == "max":
        inputs.branches[0][0, 1] = torch.finfo(dtype).max / 64
        expected = call(case, inputs.to(torch.float64))
        torch.testing.assert_close(call(case, inputs).double(), expected, rtol=4e-3, atol=1e-2)
        return
    clean = call(case, inputs)
    inputs.branches[0][0, 1, 0, 0] = value
    y = call(case, inputs)
    assert not y[0, :, 0, 0].isfinite().any()
    assert torch.equal(y[0, :, 4:], clean[0, :, 4:])
    assert torch.equal(y[1], clean[1])


def test_deterministic(backend: Backend) -> None:
    case = LARGE["two blocks of channels"].on(backend)
    inputs = make(case, device=backend.device)
    grad = output_grad(case, inputs)
    torch.use_deterministic_algorithms(True)
    try:
        first = run(backend.name, case, inputs, grad)
        for _ in range(1 if backend.interpreted else 5):
            for a, b in zip(run(backend.name, case, inputs, grad), first, strict=True):
                assert torch.equal(a, b)
    finally:
        torch.use_deterministic_algorithms(False)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    """Of the operators below the convolution and the matrix products, which are PyTorch's."""
    y = torch.randn(1, 150, 9, 13)
    products = [torch.randn(1, s, s, 9, 150) for s in (1, 2, 5)]
    branches, weights = [torch.randn(1, 20, s, s) for s in (3, 9)], [torch.randn(150, 20, 3, 3) for _ in range(2)]
    doubled = [torch.randn(2, 20, 25, 31)]
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 8):
            torch.set_num_threads(count)
            out = torch.ops.sod_ops.pyramid_conv2d(y, products, False, False)
            results.append([out, *torch.ops.sod_ops.pyramid_conv2d_backward(y, [1, 2, 5], [1, 2, 5], 3, False, False)])
            out = torch.ops.sod_ops.pyramid_conv2d_branches(None, None, branches, weights, 40, 13, False, False)
            results[-1] += [
                out,
                *torch.ops.sod_ops.pyramid_conv2d_branches_backward(out, branches, weights, False, False),
            ]
            out = torch.ops.sod_ops.pyramid_conv2d_branches(None, None, doubled, weights[:1], 50, 62, False, True)
            results[-1] += [
                out,
                *torch.ops.sod_ops.pyramid_conv2d_branches_backward(out, doubled, weights[:1], False, True),
            ]
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_nothing_of_the_upsampled_size_is_saved(kernel_backend: Backend) -> None:
    case = CASES["pyramid"].on(kernel_backend)
    inputs = make(case, device=kernel_backend.device).requiring_grad()
    known = {t.data_ptr() for t in inputs.leaves}
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        call(case, inputs)
    assert saved
    assert {t.data_ptr() for t in saved} <= known


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(backend: Backend, dtype: torch.dtype) -> None:
    """Tensors of mixed dtypes, as conv2d takes them there; parameters get gradients of their own dtype."""
    case = CASES["pyramid"].on(backend)
    inputs = make(case, device=backend.device).requiring_grad()
    mixed = inputs._replace(branches=tuple(b.detach().to(dtype).requires_grad_() for b in inputs.branches))
    with torch.autocast(backend.device, dtype=dtype):
        y = call(case, mixed)
    assert y.dtype == dtype
    gradients = torch.autograd.grad(y.float().square().sum(), mixed.leaves)
    assert [g.dtype for g in gradients] == [t.dtype for t in mixed.leaves]
    exact = call(case, inputs.to(torch.float64))
    torch.testing.assert_close(y.double(), exact, rtol=0.02, atol=0.03)  # bfloat16 keeps 8 bits


def test_func_transforms(backend: Backend) -> None:
    case = CASES["one branch"].on(backend)
    inputs = make(case, torch.float64, backend.device)
    assert inputs.x is not None

    def loss(x: Tensor) -> Tensor:
        branches = tuple(b[: x.shape[0]] for b in inputs.branches)
        return call(case, inputs._replace(x=x, branches=branches)).square().sum()

    leaf = inputs.x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(inputs.x), expected)
    _, tangent = torch.func.jvp(loss, (inputs.x,), (torch.ones_like(inputs.x),))
    torch.testing.assert_close(tangent, expected.sum())


@pytest.mark.parametrize("name", ["pyramid", "channels_last", "1x1"])
def test_operators_pass_opcheck(kernel_backend: Backend, name: str) -> None:
    kernels = sod_ops.ops.pyramid_conv2d._select(kernel_backend.device)
    case = CASES[name]._replace(size=(5, 4))
    y = torch.randn(2, 6, *case.size, device=kernel_backend.device, requires_grad=True)
    taps = case.kernel**2
    products = [torch.randn(2, s, s + 1, taps, 6, device=y.device, requires_grad=True) for s in (1, 3)]
    torch.library.opcheck(kernels.forward, (y, products, False, False))
    torch.library.opcheck(kernels.backward, (y.detach(), [1, 3], [2, 4], case.kernel, True, False))
    if kernel_backend.name == "cpu":
        branches = [torch.randn(2, 3, s, s + 1, requires_grad=True) for s in (1, 3)]
        weights = [torch.randn(6, 3, case.kernel, case.kernel, requires_grad=True) for _ in branches]
        bias = torch.randn(6, requires_grad=True)
        for start in ((y, None), (None, bias), (None, None)):
            torch.library.opcheck(
                torch.ops.sod_ops.pyramid_conv2d_branches, (*start, branches, weights, *case.size, False, False)
            )
        detached = [[t.detach() for t in tensors] for tensors in (branches, weights)]
        torch.library.opcheck(torch.ops.sod_ops.pyramid_conv2d_branches_backward, (y.detach(), *detached, True, False))


def test_operators_called_directly_have_gradients(kernel_backend: Backend) -> None:
    kernels = sod_ops.ops.pyramid_conv2d._select(kernel_backend.device)
    device = kernel_backend.device
    y = torch.randn(2, 3, 5, 4, dtype=torch.float64, device=device, requires_grad=True)
    products = [torch.randn(2, s, s, 9, 3, dtype=torch.float64, device=device, requires_grad=True) for s in (1, 3)]

    def function(y: Tensor, *products: Tensor) -> Tensor:
        return kernels.forward(y, list(products), False, False)

    torch.testing.assert_close(function(y, *products), reference.add_products(y, products, False, False))
    assert torch.autograd.gradcheck(function, (y, *products), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (y, *products), fast_mode=True)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_operators_for_branches_called_directly_have_gradients(mode: str) -> None:
    branches = [torch.randn(2, 3, s, s, dtype=torch.float64, requires_grad=True) for s in (1, 3)]
    weights = [torch.randn(2, 3, 3, 3, dtype=torch.float64, requires_grad=True) for _ in branches]
    bias = torch.randn(2, dtype=torch.float64, requires_grad=True)

    def function(bias: Tensor, *tensors: Tensor) -> Tensor:
        return torch.ops.sod_ops.pyramid_conv2d_branches(
            None, bias, list(tensors[:2]), list(tensors[2:]), 5, 4, False, mode == "nearest"
        )

    expected = reference.pyramid_conv2d(None, branches, torch.cat(weights, 1), bias, mode=mode, size=(5, 4))
    torch.testing.assert_close(function(bias, *branches, *weights), expected)
    assert torch.autograd.gradcheck(function, (bias, *branches, *weights), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (bias, *branches, *weights), fast_mode=True)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_compile(backend: Backend, layout: str) -> None:
    """One graph, with the fused operators of this backend in the forward and in the backward."""
    case = Case(layout=layout).on(backend)
    inputs = make(case, device=backend.device)
    grad = output_grad(case, inputs)
    expected = run(backend.name, case, inputs, grad)
    operators: list[str] = []

    def collect(graph: torch.fx.GraphModule, _: Any) -> Any:
        operators.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    torch._dynamo.reset()
    from torch._dynamo.backends.common import aot_autograd

    compiled = torch.compile(
        sod_ops.pyramid_conv2d, fullgraph=True, backend=aot_autograd(fw_compiler=collect, bw_compiler=collect)
    )
    leaves = inputs.requiring_grad()
    y = compiled(*leaves)
    torch.testing.assert_close(y, expected[0])
    for a, e in zip(torch.autograd.grad(y, leaves.leaves, grad), expected[1:], strict=True):
        torch.testing.assert_close(a, e)
    namespace = {"cpu": "sod_ops.", "triton": "sod_ops_triton."}.get(backend.name)
    assert ([o for o in operators if o.startswith("sod_ops")] != []) == (namespace is not None)
    if namespace is not None:
        stem = "pyramid_conv2d_branches" if backend.name == "cpu" else "pyramid_conv2d"
        assert f"{namespace}{stem}.default" in operators
        assert f"{namespace}{stem}_backward.default" in operators


def test_compile_with_inductor_inside_a_model() -> None:
    inputs = make(Case(size=(12, 12)))
    torch._dynamo.reset()

    def model(x: Tensor) -> Tensor:
        return sod_ops.pyramid_conv2d(torch.relu(x + 1), *inputs[1:]).mul(2).mean()

    compiled = torch.compile(model, fullgraph=True)
    assert inputs.x is not None
    leaves = [inputs.x.clone().requires_grad_() for _ in range(2)]
    for function, leaf in zip((model, compiled), leaves, strict=True):
        function(leaf).backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)


def test_export(backend: Backend) -> None:
    case = CASES["pyramid"].on(backend)
    inputs = make(case, device=backend.device)

    class Module(torch.nn.Module):
        def forward(self, x: Tensor, branches: tuple[Tensor, ...]) -> Tensor:
            return sod_ops.pyramid_conv2d(x, branches, inputs.weight, inputs.bias)

    assert inputs.x is not None
    exported = torch.export.export(Module(), (inputs.x, inputs.branches))
    torch.testing.assert_close(exported.module()(inputs.x, inputs.branches), call(case, inputs))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    branches=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 26), st.integers(1, 26)), min_size=1, max_size=4),
    channels=st.one_of(st.none(), st.integers(1, 9)),
    out_channels=st.integers(1, 70),
    kernel=st.sampled_from([1, 3]),
    layout=st.sampled_from(["contiguous", "channels_last", "slice"]),
    dtype=st.sampled_from(FLOATING),
    options=st.sampled_from(OPTIONS),
)
def test_any_size(
    size: Size,
    branches: list[tuple[int, int, int]],
    channels: int | None,
    out_channels: int,
    kernel: int,
    layout: str,
    dtype: torch.dtype,
    options: dict[str, Any],
) -> None:
    case = Case(size, tuple(branches), channels, out_channels, kernel=kernel, layout=layout)
    check(Backend("cpu", "cpu"), case, make(case, dtype), **options)


def T(*shape: int, **options: Any) -> Tensor:  # noqa: N802 (a tensor, in the table below)
    return torch.zeros(shape, **options)


X, B = T(2, 5, 7, 11), T(2, 3, 2, 2)
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": 3}, TypeError, "x must be a Tensor or None, got int"),
    ({"x": T(5, 7, 11)}, ValueError, r"x must be of shape \[N, C, H, W\], got \[5, 7, 11\]"),
    ({"x": X.long()}, TypeError, "x must be torch.float32 as weight is, got torch.int64"),
    ({"x": T(2, 5, 0, 11)}, ValueError, "x must be at least one row and column"),
    ({"x": None}, ValueError, r"size must be \(H, W\), two positive ints, without x, got None"),
    ({"x": None, "size": (7, 0)}, ValueError, r"size must be \(H, W\)"),
    ({"x": None, "size": (7, 11)}, ValueError, r"weight must be of shape \[C_out, 3, K, K\] for .* branches \(3\)"),
    ({"x": None, "branches": (), "size": (7, 11)}, ValueError, "branches must be at least one tensor without x"),
    ({"size": (7, 11)}, ValueError, "size must be None beside x"),
    ({"branches": B}, TypeError, "branches must be a sequence of tensors, got Tensor"),
    ({"branches": None}, TypeError, "branches must be a sequence of tensors, got NoneType"),
    ({"branches": (B, 3)}, TypeError, r"branches\[1\] must be a Tensor, got int"),
    ({"branches": (T(1, 3, 2, 2),)}, ValueError, r"branches\[0\] must be 2 samples as x has, got \[1, 3, 2, 2\]"),
    ({"branches": (T(3, 2, 2),)}, ValueError, r"branches\[0\] must be of shape \[N, C, H, W\], got \[3, 2, 2\]"),
    ({"branches": (B.half(),)}, TypeError, r"branches\[0\] must be torch.float32 as weight is, got torch.float16"),
    ({"branches": (T(2, 3, 2, 2, device="meta"),)}, ValueError, r"branches\[0\] must be on the device of weight"),
    ({"branches": (B, B)}, ValueError, r"weight must be of shape \[C_out, 11, K, K\] .* \(5 \+ 3 \+ 3\), got"),
    ({"weight": T(7, 9, 3, 3)}, ValueError, r"weight must be of shape \[C_out, 8, K, K\] .*\(5 \+ 3\), got \[7, 9, 3"),
    (
        {"weight": T(7, 8, 5, 5)},
        ValueError,
        r"weight must be of shape .* with C_out above 0 and K 1 or 3, got \[7, 8, 5",
    ),
    ({"weight": T(7, 8, 3, 1)}, ValueError, r"weight must be of shape .* and K 1 or 3"),
    ({"weight": T(7, 8)}, ValueError, r"weight must be of shape"),
    ({"weight": T(0, 8, 3, 3)}, ValueError, r"weight must be of shape .* with C_out above 0"),
    ({"weight": None}, TypeError, "weight must be a Tensor, got NoneType"),
    ({"bias": T(8)}, ValueError, r"bias must be of shape \[7\], got \[8\]"),
    ({"bias": T(7, dtype=torch.float64)}, TypeError, "bias must be torch.float32 as weight is"),
    ({"padding": 0}, ValueError, "padding must be 1 for a 3x3 kernel, got 0"),
    ({"padding": (1, 1)}, TypeError, "padding must be an int"),
    ({"align_corners": None}, TypeError, "align_corners must be a bool"),
    ({"x_first": 1}, TypeError, "x_first must be a bool"),
    ({"mode": "bicubic"}, ValueError, "mode must be one of 'bilinear', 'nearest', got 'bicubic'"),
    ({"mode": "nearest", "align_corners": True}, ValueError, "align_corners must be False with mode 'nearest'"),
]


@pytest.mark.parametrize(
    ("change", "error", "message"), BAD, ids=[f"{next(iter(c))}-{i}" for i, (c, _, _) in enumerate(BAD)]
)
def test_bad_input_is_named(backend: Backend, change: dict[str, Any], error: type[Exception], message: str) -> None:
    good = {"x": X, "branches": (B,), "weight": T(7, 8, 3, 3), "bias": T(7)}

    def moved(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(moved(v) for v in value)
        return value.to(backend.device) if isinstance(value, Tensor) and value.device.type == "cpu" else value

    with pytest.raises(error, match=f"pyramid_conv2d: {message}"):
        sod_ops.pyramid_conv2d(**{name: moved(value) for name, value in {**good, **change}.items()})


def test_operators_refuse_what_would_read_out_of_bounds() -> None:
    """The operators below the public function guard themselves too."""
    y, good = T(2, 6, 5, 4), T(2, 2, 2, 9, 6)
    for arguments in (
        (y[0], [good]),
        (y[:, :, ::2, ::2].permute(0, 2, 3, 1), [good]),
        (y, [good[:1]]),
        (y, [good[..., :5]]),
        (y, [good[:, :, :, :4]]),
        (y, [good.double()]),
        (y, [good.transpose(1, 2)[:, ::2]]),
        (y, [T(2, 0, 2, 9, 6)]),
        (y.long(), [good]),
    ):
        with pytest.raises(RuntimeError, match="pyramid_conv2d"):
            torch.ops.sod_ops.pyramid_conv2d(*arguments, False, False)
    for heights, widths, kernel in (([1, 2], [1], 3), ([0], [1], 3), ([1], [1], 5), ([1], [-1], 1)):
        with pytest.raises(RuntimeError, match="pyramid_conv2d"):
            torch.ops.sod_ops.pyramid_conv2d_backward(y, heights, widths, kernel, False, False)


def test_operators_for_branches_refuse_what_would_read_out_of_bounds() -> None:
    y, branch, weight, bias = T(2, 6, 5, 4), T(2, 3, 2, 2), T(6, 3, 3, 3), T(6)
    forward, backward = torch.ops.sod_ops.pyramid_conv2d_branches, torch.ops.sod_ops.pyramid_conv2d_branches_backward
    for branches, weights in (
        ([], []),
        ([branch], []),
        ([branch[0]], [weight]),
        ([branch[:1]], [weight]),
        ([branch, branch[:1]], [weight, weight]),
        ([branch[:, :2]], [weight]),
        ([branch], [weight[:5]]),
        ([branch], [weight[:, :, :2]]),
        ([branch], [weight.double()]),
        ([branch], [T(6, 3, 5, 5)]),
        ([T(2, 3, 4, 4)[:, :, ::2, ::2]], [weight]),
        ([T(2, 3, 0, 2)], [weight]),
    ):
        with pytest.raises(RuntimeError, match="pyramid_conv2d"):
            forward(y, None, branches, weights, 5, 4, False, False)
        with pytest.raises(RuntimeError, match="pyramid_conv2d"):
            backward(y, branches, weights, False, False)
    for start in (
        (y[0], None),
        (y[:, :5], None),
        (y, bias),
        (y.double(), None),
        (None, bias[:5]),
        (None, bias.double()),
    ):
        with pytest.raises(RuntimeError, match="pyramid_conv2d"):
            forward(*start, [branch], [weight], 5, 4, False, False)
    with pytest.raises(RuntimeError, match="pyramid_conv2d"):
        forward(y, None, [branch], [weight], 5, 5, False, False)
    with pytest.raises(RuntimeError, match="pyramid_conv2d"):
        forward(None, None, [branch], [weight], -1, 5, False, False)
    with pytest.raises(RuntimeError, match="pyramid_conv2d"):
        backward(y[:, :5], [branch], [weight], False, False)

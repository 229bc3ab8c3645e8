"""The 1x1 convolutions of a pyramid's levels in one call, against conv2d in float64 and against the contract of an op."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import map_contract
import pytest
import torch
from cases import FLOATING, MapCase
from conftest import Backend
from torch import Tensor
from torch.nn import Conv2d, functional

import sod_ops
from sod_ops.ops import _pointwise_conv2d
from sod_ops.ops._pointwise_conv2d import is_pointwise, pointwise_conv2d

LAYOUTS = ("contiguous", "channels_last")
CPU = Backend("cpu", "cpu")

# Samples, channels of x and of the result, heights and widths: a single pixel, every remainder of pixels, rows, lanes
# and tiles that a kernel takes at once, and a tile of the backward that holds a single vector.
SHAPES = {
    "pyramid": (2, 37, 13, [(1, 1), (2, 2), (3, 3), (6, 6)]),
    "one pixel": (1, 64, 8, [(1, 1)]),
    "one channel": (3, 1, 1, [(1, 2), (2, 1)]),
    "two tiles": (1, 1100, 7, [(1, 1), (1, 4), (1, 5)]),
    "most pixels": (4, 24, 11, [(6, 6)]),
    "more pixels": (5, 7, 5, [(6, 6), (2, 2)]),
    "many rows": (1, 16, 301, [(2, 1)]),
}


def call(*tensors: Tensor, count: int, form: Any = pointwise_conv2d) -> tuple[Tensor, ...]:
    return tuple(form(tensors[:count], tensors[count : 2 * count], tensors[2 * count :]))


def make(shape: str, dtype: torch.dtype, layout: str = "contiguous", *, bias: bool = True) -> list[Tensor]:
    """Maps, weights and biases."""
    samples, channels, rows, sizes = SHAPES[shape]
    maps = [MapCase((samples, channels, *size), layout).build(dtype) for size in sizes]
    weights = [torch.randn(rows, channels, 1, 1).to(dtype) for _ in sizes]
    return [*maps, *weights, *(torch.randn(rows).to(dtype) for _ in sizes if bias)]


def function(shape: str) -> Any:
    return partial(call, count=len(SHAPES[shape][3]))


@pytest.fixture(autouse=True)
def on_cpu() -> Any:
    with sod_ops.use_backend("cpu"):
        yield


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("layout", [*LAYOUTS, "channel_slice", "transposed"])
@pytest.mark.parametrize("shape", SHAPES)
def test_results_and_gradients(shape: str, layout: str, dtype: torch.dtype) -> None:
    map_contract.check_numbers(CPU, function(shape), make(shape, dtype, layout, bias=layout != "channels_last"))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradcheck(layout: str, bias: bool) -> None:
    inputs = [t[:, :5] if t.dim() == 4 else t for t in make("pyramid", torch.float64, layout, bias=bias)]
    map_contract.check_gradients(CPU, function("pyramid"), inputs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_lie_as_their_maps(layout: str) -> None:
    inputs = make("pyramid", torch.float32, layout)
    for y, map_ in zip(function("pyramid")(*inputs), inputs, strict=False):
        assert y.is_contiguous(
            memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format
        )
        assert y.shape == (map_.shape[0], 13, *map_.shape[2:])


def test_gradients_only_where_wanted() -> None:
    map_contract.check_gradients_only_where_wanted(CPU, function("pyramid"), make("pyramid", torch.float32))


def test_incoming_gradients() -> None:
    map_contract.check_incoming_gradients(CPU, function("pyramid"), make("pyramid", torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_deterministic(dtype: torch.dtype) -> None:
    map_contract.check_deterministic(CPU, function("two tiles"), make("two tiles", dtype))


def test_a_large_weight_gets_its_gradient_past_the_caches() -> None:
    """Of which whole registers are written, and which is the same."""
    x, weight = torch.randn(1, 2048, 1, 3), torch.randn(1030, 2048, 1, 1)
    leaves = [x.requires_grad_(), weight.requires_grad_()]
    (y,) = pointwise_conv2d([x], [weight])
    grad = torch.randn_like(y)
    actual = torch.autograd.grad(y, leaves, grad)
    expected = torch.autograd.grad(functional.conv2d(x, weight), leaves, grad)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("samples", "channels", "rows"), [(0, 3, 2), (2, 0, 2), (2, 3, 0)])
def test_empty(samples: int, channels: int, rows: int) -> None:
    """The sum of no products is the bias; a gradient that nothing contributes to is 0."""
    x = torch.randn(samples, channels, 2, 2, requires_grad=True)
    weight = torch.randn(rows, channels, 1, 1, requires_grad=True)
    bias = torch.randn(rows, requires_grad=True)
    (y,) = pointwise_conv2d([x], [weight], [bias])
    torch.testing.assert_close(y, bias.view(1, -1, 1, 1).expand(samples, rows, 2, 2) if channels == 0 else y)
    assert y.shape == (samples, rows, 2, 2)
    y.sum().backward()
    for leaf in (x, weight):
        torch.testing.assert_close(leaf.grad, torch.zeros_like(leaf))
    torch.testing.assert_close(bias.grad, torch.full_like(bias, 4 * samples))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_special_values(value: float) -> None:
    """Where conv2d has them: what is padded in the kernels is multiplied with nothing."""
    for of in range(2):
        inputs = make("pyramid", torch.float32)
        inputs[of * 4 + 2].view(-1)[5] = value
        map_contract.check_numbers(CPU, function("pyramid"), inputs)


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_other_backends_and_many_pixels_are_pytorch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make("pyramid", torch.float64)
    monkeypatch.setattr(_pointwise_conv2d, "_MOST_PIXELS", 0 if name == "cpu" else 1000)
    with sod_ops.use_backend(name):
        torch.testing.assert_close(
            function("pyramid")(*inputs), tuple(map(functional.conv2d, inputs[:4], inputs[4:8], inputs[8:]))
        )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout: str) -> None:
    bias = layout == "contiguous"
    tensors = make("one channel", torch.float32, layout, bias=bias)
    maps, weights, biases = tensors[:2], tensors[2:4], tensors[4:]
    leaves = [[t.detach().requires_grad_() for t in kind] for kind in (maps, weights, biases)]
    torch.library.opcheck(torch.ops.sod_ops.pointwise_conv2d.default, tuple(leaves))
    grads = [torch.randn_like(y) for y in pointwise_conv2d(maps, weights)]
    wanted = (True, True, True) if bias else (False, True, False)
    torch.library.opcheck(torch.ops.sod_ops.pointwise_conv2d_backward.default, (grads, maps, weights, *wanted))


@pytest.mark.parametrize("bias", [True, False])
def test_compile_and_export(bias: bool) -> None:
    torch.compiler.reset()
    inputs = make("pyramid", torch.float64, bias=bias)
    compiled = torch.compile(function("pyramid"), fullgraph=True, backend="aot_eager")
    found = []
    for form in (function("pyramid"), compiled):
        leaves = map_contract.leaves_of(inputs)
        y = form(*leaves)
        found.append([*y, *torch.autograd.grad(sum(part.square().sum() for part in y), leaves)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)

    class Module(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Sequence[Tensor]:
            return function("pyramid")(*tensors)  # type: ignore[no-any-return]

    exported = torch.export.export(Module(), tuple(inputs)).module()
    torch.testing.assert_close(exported(*inputs), function("pyramid")(*inputs))


def test_transforms() -> None:
    x, weight = make("one pixel", torch.float64)[:2]
    map_contract.check_func_transforms(lambda x: call(x, weight, count=1), [x.expand(2, -1, -1, -1).clone()])


@pytest.mark.parametrize(
    "options",
    [{"kernel_size": 3, "padding": 1}, {"stride": 2}, {"groups": 2}, {"padding": 1}],
    ids=lambda options: next(iter(options)),
)
def test_other_convolutions_are_not_pointwise(options: dict[str, Any]) -> None:
    assert is_pointwise(Conv2d(4, 4, 1))
    assert is_pointwise(Conv2d(4, 4, 1, padding="same", bias=False))
    assert not is_pointwise(Conv2d(4, 4, **{"kernel_size": 1, **options}))


@pytest.mark.parametrize(
    "register", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"]
)
def test_hooks_are_not_missed(register: str) -> None:
    convolution = Conv2d(4, 4, 1)
    getattr(convolution, f"register_{register}")(lambda *_: None)
    assert not is_pointwise(convolution)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, w, b: (m[:1], w, b), "one weight for each map, got 2 for 1"),
        (lambda m, w, b: (m, w, b[:1]), "one bias for each map, or none, got 1 for 2"),
        (lambda m, w, b: ([m[0][0], m[1]], w, b), r"maps must be \[N, C, H, W\]"),
        (lambda m, w, b: (m, [w[0].double(), w[1]], b), "maps and weights must have one dtype"),
        (lambda m, w, b: (m, [w[0][:, :2], w[1]], b), r"weight 0 must be contiguous, \[C_out, 3, 1, 1\]"),
        (lambda m, w, b: (m, w, [b[0][:1], b[1]]), r"bias 0 must be contiguous, \[5\], of the dtype of the maps"),
        (lambda m, w, b: ([m[0].transpose(2, 3), m[1]], w, b), "maps must be contiguous or channels_last"),
        (lambda m, w, b: ([t.int() for t in m], [t.int() for t in w], []), "float32, float64, bfloat16 or float16"),
    ],
)
def test_the_operator_refuses(change: Any, message: str) -> None:
    maps, weights = [torch.randn(2, 3, 4, 5)] * 2, [torch.randn(5, 3, 1, 1)] * 2
    with pytest.raises(RuntimeError, match=message):
        torch.ops.sod_ops.pointwise_conv2d(*change(maps, weights, [torch.randn(5)] * 2))


def test_the_backward_operator_refuses() -> None:
    x, weight, grad = torch.randn(2, 3, 4, 5), torch.randn(5, 3, 1, 1), torch.randn(2, 5, 4, 5)
    for grads in ([], [grad[:, :4]], [grad.double()], [grad.contiguous(memory_format=torch.channels_last)]):
        with pytest.raises(RuntimeError, match="gradient"):
            torch.ops.sod_ops.pointwise_conv2d_backward(grads, [x], [weight], True, True, True)

"""nn.ObjectAttention, nn.UnionAttention and nn.FrequencyEdge against TRACER's steps, written out on the same state_dict."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import sod_ops

KINDS: dict[str, Callable[..., nn.Module]] = {
    "ObjectAttention": lambda **o: sod_ops.nn.ObjectAttention(16, 3, **o),
    "UnionAttention": lambda **o: sod_ops.nn.UnionAttention(16, **o),
    "FrequencyEdge": lambda **o: sod_ops.nn.FrequencyEdge(2, 16, **o),
}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def inputs_of(kind: str, layout: str = "contiguous", dtype: torch.dtype = torch.float64) -> list[Tensor]:
    maps = [torch.randn(3, 16, 8, 8, dtype=dtype).contiguous(memory_format=LAYOUTS[layout])]
    return [3 * torch.randn(3, 1, 8, 8, dtype=dtype), *maps] if kind == "ObjectAttention" else maps


class Plain:
    """The modules of a state_dict, one PyTorch function after the other."""

    def __init__(self, module: nn.Module) -> None:
        self.state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        self.training = module.training
        self.module: Any = module

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean, variance = (self.state[f"{name}.running_{what}"].clone() for what in ("mean", "var"))
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return functional.batch_norm(x, mean, variance, weight, bias, self.training)

    def conv(self, x: Tensor, name: str, dilation: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"]
        padding = dilation * (weight.shape[2] // 2)
        return functional.conv2d(x, weight, None, 1, padding, dilation, x.shape[1] // weight.shape[1])

    def receive(self, x: Tensor, head: str) -> Tensor:
        x = functional.selu(self.norm(self.conv(x, "DWSConv.DWConv"), "DWSConv.bn"))
        x = functional.selu(self.norm(self.conv(x, "DWSConv.PWConv"), "DWSConv.bn2"))
        branches = []
        for name, dilation in (("DWConv1", 1), ("DWConv2", 1), ("DWConv3", 3), ("DWConv4", 5)):
            y = functional.selu(self.norm(self.conv(x, f"{name}.0.DWConv", dilation), f"{name}.0.bn"))
            branches.append(functional.selu(self.norm(self.conv(y, f"{name}.1.conv"), f"{name}.1.bn")))
        y = self.conv(torch.cat(branches, 1) + x, f"{head}.conv")
        return functional.selu(self.norm(y, f"{head}.bn")).relu()

    def object_attention(self, decoder: Tensor, encoder: Tensor) -> Tensor:
        probability = decoder.sigmoid()
        reverse = 1 - probability
        x = probability * encoder + torch.where(reverse > 0.93, 0.0, reverse) * encoder
        return self.receive(x, "conv1") + decoder

    def trace(self, x: Tensor, prefix: str = "") -> tuple[Tensor, Tensor]:
        pooled = self.norm(x.mean((2, 3), keepdim=True), f"{prefix}norm.0")
        q, k, v = (self.conv(pooled, f"{prefix}channel_{name}").squeeze(-1) for name in "qkv")
        attention = (q @ k.transpose(1, 2)).softmax(-1) @ v
        attention = self.conv(attention.unsqueeze(-1), f"{prefix}fc").sigmoid()
        return x * attention + x, attention

    def union_attention(self, x: Tensor) -> Tensor:
        x, attention = self.trace(x)
        x = self.norm(x, "bn")
        limits = [a.flatten().quantile(self.module.confidence_ratio) for a in attention]
        kept = torch.stack([torch.where(a <= limit, 0.0, a) for a, limit in zip(attention, limits, strict=True)])
        q, k, v = (self.conv(x * kept, f"spatial_{name}") for name in "qkv")
        return (q @ k.transpose(2, 3)).softmax(-1) @ v + v

    def frequency_edge(self, x: Tensor) -> tuple[Tensor, Tensor]:
        height, width = x.shape[2:]
        mask = torch.ones(height, width, dtype=x.dtype)
        for i in range(height):
            for j in range(width):
                if ((i - height / 2) ** 2 + (j - height / 2) ** 2) ** 0.5 < self.module.radius:
                    mask[i, j] = 0
        spectrum = torch.fft.fftshift(torch.fft.fft2(x))  # over batch and channels too, as published
        high = torch.fft.ifft2(torch.fft.ifftshift(spectrum * mask)).abs()
        edge = self.receive(self.trace(high, "UAM.")[0], "conv")
        return x + edge, edge

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        names = {"ObjectAttention": "object_attention", "UnionAttention": "union_attention"}
        outputs = getattr(self, names.get(type(self.module).__name__, "frequency_edge"))(*inputs)
        return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def outputs_of(module: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
    outputs = module(*inputs)
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def scattered(module: nn.Module) -> nn.Module:
    """``module`` with random norms, and without its dropout, whose random numbers are nobody else's."""
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.is_floating_point() and tensor.dim() == 1:
                tensor.uniform_(0.5, 1.5) if "var" in name or "weight" in name else tensor.normal_()
    for child in module.modules():
        if isinstance(child, nn.Dropout3d):
            child.eval()
            child.train = lambda mode=True, child=child: child  # type: ignore[method-assign, misc]
    return module


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("kind", KINDS)
def test_is_what_is_published(kind: str, training: bool, layout: str) -> None:
    module = scattered(KINDS[kind](dtype=torch.float64)).train(training)
    inputs = [x.requires_grad_() for x in inputs_of(kind, layout)]
    expected = Plain(module)(*inputs)
    found = outputs_of(module, inputs)
    grads = [torch.randn_like(y) for y in expected]
    leaves = [*inputs, *(p for name, p in module.named_parameters() if name not in ("UAM.bn.weight", "UAM.bn.bias"))]
    wanted = torch.autograd.grad(expected, leaves, grads)
    got = torch.autograd.grad(found, leaves, grads)
    for a, e in zip((*found, *got), (*expected, *wanted), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (6, 9), (9, 6), (1, 5)], ids=str)
def test_high_frequencies(size: tuple[int, int]) -> None:
    """As published for any size; otherwise from the zero frequency, which is the same for even squares."""
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    published = sod_ops.nn.FrequencyEdge(2, 4, as_published=True, dtype=torch.float64).eval()
    centred = sod_ops.nn.FrequencyEdge(2, 4, dtype=torch.float64).eval()
    centred.load_state_dict(published.state_dict())
    torch.testing.assert_close(published(x)[0], Plain(published)(x)[0])
    rows, columns = (torch.fft.fftfreq(n, 1 / n, dtype=torch.float64) for n in size)
    mask = (rows[:, None] ** 2 + columns**2).sqrt() >= 2
    expected = torch.fft.ifft2(torch.fft.fft2(x) * mask)
    torch.testing.assert_close(centred.high_frequencies(x), expected.abs(), rtol=1e-9, atol=1e-12)
    assert expected.imag.abs().max() < 1e-12
    if size == (8, 8):
        torch.testing.assert_close(centred(x)[0], published(x)[0])


def test_state_dict_has_the_authors_names() -> None:
    names = {kind: set(make().state_dict()) for kind, make in KINDS.items()}
    tail = {"DWSConv.PWConv.weight", "DWSConv.bn2.running_var", "DWConv4.0.DWConv.weight", "DWConv1.1.conv.weight"}
    assert tail | {"conv1.conv.weight", "conv1.bn.num_batches_tracked"} <= names["ObjectAttention"]
    assert tail | {"conv.conv.weight", "UAM.channel_q.weight", "UAM.norm.0.bias"} <= names["FrequencyEdge"]
    assert {"bn.weight", "norm.0.running_mean", "fc.weight", "spatial_v.weight"} <= names["UnionAttention"]
    assert not any("mask" in name or "spatial" in name for name in names["FrequencyEdge"])
    assert [len(names[kind]) for kind in KINDS] == [66, 17, 80]


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind: str) -> None:
    module = scattered(KINDS[kind](dtype=torch.float64)).eval()
    inputs = [x[:2, :, :4, :4].clone().requires_grad_() for x in inputs_of(kind)]
    assert torch.autograd.gradcheck(lambda *x: tuple(outputs_of(module, list(x))), inputs, fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
def test_deterministic_and_copied(kind: str) -> None:
    module = KINDS[kind]().eval()
    inputs = inputs_of(kind, dtype=torch.float32)
    first = outputs_of(module, inputs)
    for other in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        for a, b in zip(outputs_of(other, inputs), first, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_compile(kind: str) -> None:
    module = KINDS[kind]().eval()
    inputs = inputs_of(kind, dtype=torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for a, b in zip(outputs_of(compiled, inputs), outputs_of(module, inputs), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_autocast(kind: str, dtype: torch.dtype) -> None:
    module: Any = KINDS[kind]().eval()
    inputs = inputs_of(kind, dtype=torch.float32)
    if (
        kind == "UnionAttention"
    ):  # channels far enough from each other that rounding doesn't decide which of them are kept
        inputs = [x + torch.linspace(-2, 2, 16)[:, None, None] for x in inputs]
        with torch.no_grad():
            module.fc.weight.copy_(4 * torch.randn(16, 16, 1, 1))
    with torch.autocast("cpu", dtype):
        found = outputs_of(module, inputs)
    for a, b in zip(found, outputs_of(module, inputs), strict=True):
        torch.testing.assert_close(a.float(), b, rtol=0.05, atol=0.1)  # bfloat16 keeps 8 bits


N = sod_ops.nn
BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: N.ObjectAttention(12), ValueError, "ObjectAttention: channel must be a multiple of 8, got 12"),
    (lambda: N.ObjectAttention(8, 2), ValueError, "ObjectAttention: kernel_size must be odd"),
    (
        lambda: N.ObjectAttention(8, threshold=2.0),
        ValueError,
        "ObjectAttention: threshold must be from 0 to 1, got 2.0",
    ),
    (
        lambda: N.ObjectAttention(8)(torch.ones(1, 1, 2, 2), torch.ones(1, 16, 2, 2)),
        ValueError,
        r"ObjectAttention: encoder_map must be of shape \[N, 8, H, W\], got \[1, 16, 2, 2\]",
    ),
    (lambda: N.UnionAttention(0), ValueError, "UnionAttention: n_channels must be at least 1, got 0"),
    (lambda: N.UnionAttention(4, None), TypeError, "UnionAttention: only_channel_tracing must be a bool, got None"),
    (lambda: N.UnionAttention(4, gamma=-0.1), ValueError, "UnionAttention: gamma must be from 0 to 1, got -0.1"),
    (
        lambda: N.UnionAttention(4)(torch.ones(1, 3, 2, 2)),
        ValueError,
        r"UnionAttention: x must be .*got \[1, 3, 2, 2\]",
    ),
    (lambda: N.UnionAttention(4, True)(torch.ones(1, 4, 2, 2)), RuntimeError, "UnionAttention: made with only_channel"),
    (lambda: N.FrequencyEdge(0, 4), ValueError, "FrequencyEdge: radius must be finite and above 0, got 0"),
    (lambda: N.FrequencyEdge(2, 6), ValueError, "FrequencyEdge: channel must be a multiple of 4, got 6"),
    (lambda: N.FrequencyEdge(2, 4, as_published=1), TypeError, "FrequencyEdge: as_published must be a bool, got 1"),
    (
        lambda: N.FrequencyEdge(2, 4)(torch.ones(4, 2, 2)),
        ValueError,
        r"FrequencyEdge: x must be of shape \[N, C, H, W\]",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_input_is_named(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()

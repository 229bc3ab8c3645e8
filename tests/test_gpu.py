"""What only a GPU can show of an op: streams, graphs, synchronisation, memory. Collected where there is one (conftest.py).

The ops and their inputs are in gpu_cases.py, of which test_gpu_cases.py runs on every machine what needs no GPU.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from gpu_cases import (
    CALLS,
    LARGE,
    MODEL,
    SMALL,
    Call,
    Draw,
    Size,
    assert_equals_the_reference,
    forward_and_backward,
    stem,
)
from torch import Tensor

import sod_ops
from sod_ops import _extension

DEVICE = "cuda"
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def require_kernel(backend: str, name: str) -> None:
    """Skips the CUDA C++ backend for an op that has no kernel there."""
    operator = f"sod_ops::{stem(name)}"
    known = operator in torch._C._dispatch_get_all_op_names()
    if backend == "cuda" and not (known and torch._C._dispatch_has_kernel_for_dispatch_key(operator, "CUDA")):
        pytest.skip(f"{name} has no CUDA C++ kernel: Triton serves it")
    fits = _extension.squeeze_excite_fits
    if (backend, name) == ("cuda", "squeeze_excite") and not fits(0, MODEL.channels, MODEL.pixels, True, 16, 8):
        pytest.skip("squeeze_excite's CUDA C++ kernel takes a GPU of compute capability 9.0 or higher")


@pytest.fixture(params=CALLS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["triton", "cuda"])
def kernels(request: pytest.FixtureRequest, name: str) -> Iterator[None]:
    """Each backend that has a kernel for the op."""
    require_kernel(request.param, name)
    with sod_ops.use_backend(request.param):
        yield


def make(name: str, dtype: torch.dtype = torch.float32, device: str = DEVICE) -> Call:
    return CALLS[name](Draw(MODEL, dtype, device))


def on_another_stream(function: Callable[[], object], times: int = 1) -> None:
    """Before a capture: what a first call compiles or allocates must not be captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(times):
            function()
    torch.cuda.current_stream().wait_stream(stream)


def assert_all_equal(actual: list[Tensor], expected: list[Tensor]) -> None:
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)


@pytest.mark.sanitize
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SMALL, ids=str)
def test_small_shapes(kernels: None, name: str, size: Size, dtype: torch.dtype, channels_last: bool) -> None:
    """What compute-sanitizer watches: few elements, in tiles that they do not fill."""
    assert_equals_the_reference(CALLS[name](Draw(size, dtype, DEVICE, channels_last)), dtype)


def test_graph_capture_and_replay(kernels: None, name: str) -> None:
    call = make(name)
    expected = [t.clone() for t in forward_and_backward(call)]
    on_another_stream(lambda: forward_and_backward(call), 3)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = forward_and_backward(call)
    for t in captured:
        t.zero_()
    graph.replay()
    assert_all_equal(captured, expected)
    # New values in the captured inputs, of the same kind: those of another sample.
    with torch.no_grad():
        call.inputs[0].copy_(call.inputs[0].roll(1, 0))
    graph.replay()
    assert_all_equal(captured, forward_and_backward(call))


def test_no_synchronisation(kernels: None, name: str) -> None:
    call = make(name)
    forward_and_backward(call)  # compiles and loads
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        forward_and_backward(call)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_two_streams(kernels: None, name: str) -> None:
    """Behind a long job on its stream, an op that ran elsewhere would read its inputs too early."""
    calls = [make(name), make(name)]
    values = [call.inputs[0].detach().roll(1, 0) for call in calls]
    streams = [torch.cuda.Stream() for _ in calls]
    found = []
    for stream, call, value in zip(streams, calls, values, strict=True):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            with torch.no_grad():
                call.inputs[0].copy_(value)
            found.append(forward_and_backward(call))
    torch.cuda.synchronize()
    for call, results in zip(calls, found, strict=True):
        assert_all_equal(results, forward_and_backward(call))


def test_bitwise_deterministic(kernels: None, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # PyTorch's own convolutions, which some ops are made of, are so on request alone.
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    call = make(name, torch.bfloat16)
    first = forward_and_backward(call)
    differs = torch.zeros((), dtype=torch.bool, device=DEVICE)
    for _ in range(100):
        for a, e in zip(forward_and_backward(call), first, strict=True):
            differs |= a.ne(e).any()
    assert not differs.item()


def test_second_device(kernels: None, name: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    call = make(name, device="cuda:1")
    for t in forward_and_backward(call):
        assert t.device == torch.device("cuda:1")
    assert_equals_the_reference(call, torch.float32)


def test_memory(kernels: None, name: str) -> None:
    """A forward keeps its inputs and small statistics: beyond the output, less than a quarter of the largest input."""
    call = make(name)
    forward_and_backward(call)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    output = call.function(*call.inputs)
    kept = torch.cuda.memory_allocated() - before
    sizes = [t.numel() * t.element_size() for t in call.inputs]
    stored = sizes[0] if call.stores_gradient else 0
    result = output.numel() * output.element_size()
    assert kept <= result + stored + max(sizes) / 4


@pytest.mark.xdist_group("large")  # one after the other: together they would not fit
@pytest.mark.parametrize("backend", ["triton", "cuda"])
@pytest.mark.parametrize("name", LARGE)
def test_more_than_2_to_the_31_elements(name: str, backend: str) -> None:
    require_kernel(backend, name)
    needed = 5 * torch.Size(LARGE[name].shape).numel() * 2
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of GPU memory")
    with sod_ops.use_backend(backend):
        if (backend, name) == ("cuda", "squeeze_excite"):
            with pytest.raises(RuntimeError, match="does not fit"):  # on a chip
                LARGE[name].check(DEVICE)
        else:
            LARGE[name].check(DEVICE)
    torch.cuda.empty_cache()


def test_augmentations_draw_on_the_device() -> None:
    """Whole, with what they draw: nothing is read back."""
    images = torch.rand(4, 3, 64, 48, device=DEVICE)
    masks = torch.rand(4, 3, 64, 48, device=DEVICE) > 0.5
    boxes, labels = torch.zeros(4, 3, 4, device=DEVICE), torch.arange(4, device=DEVICE)

    def draw() -> None:
        sod_ops.cutmix(images, [labels, masks], num_classes=4)
        sod_ops.copy_paste(images, masks, boxes, labels[:, None].expand(4, 3), blend_sigma=1.5)

    draw()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        draw()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_cutmix_draws_in_a_graph() -> None:
    """Anew at each replay; labels count what the images hold."""
    labels = torch.arange(4, device=DEVICE)
    images = labels[:, None, None, None].expand(4, 3, 64, 48).float().contiguous()
    on_another_stream(lambda: sod_ops.cutmix(images, labels, num_classes=4))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        mixed, soft = sod_ops.cutmix(images, labels, num_classes=4)
    seen = []
    for _ in range(3):
        graph.replay()
        counted = torch.stack([(mixed == k).float().mean((1, 2, 3)) for k in range(4)], 1)
        torch.testing.assert_close(soft, counted)
        seen.append(mixed.clone())
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_squeeze_excite_on_chip_of_every_cluster() -> None:
    """From one block to as many as there are, in both memory formats, against Triton; and more samples than clusters."""
    require_kernel("cuda", "squeeze_excite")
    for shape in ((3, 16, 8, 8), (2, 64, 28, 28), (300, 32, 14, 14), (2, 256, 56, 56), (40, 512, 14, 14)):
        for dtype in (torch.float32, torch.bfloat16):
            for memory_format in (torch.contiguous_format, torch.channels_last):
                if not _extension.squeeze_excite_fits(0, shape[1], shape[2] * shape[3], True, 16, dtype.itemsize):
                    continue
                inputs = [
                    torch.randn(shape, device=DEVICE),
                    *(torch.randn(s, device=DEVICE) for s in ((16, shape[1]), (16,), (shape[1], 16), (shape[1],))),
                ]
                x, *parameters = (t.to(dtype).requires_grad_() for t in inputs)
                x = x.detach().contiguous(memory_format=memory_format).requires_grad_()
                found = []
                for backend in ("cuda", "triton"):
                    with sod_ops.use_backend(backend):
                        y = sod_ops.squeeze_excite(x, *parameters)
                        found.append([y, *torch.autograd.grad(y, (x, *parameters), torch.ones_like(y))])
                for a, b in zip(*found, strict=True):
                    unit = torch.finfo(dtype).eps
                    torch.testing.assert_close(a, b, rtol=16 * unit, atol=16 * unit * b.abs().max().item())

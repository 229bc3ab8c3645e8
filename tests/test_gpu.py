"""What only a GPU can show: streams, graphs, synchronisation, memory. Collected where there is one (conftest.py)."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import sod_ops
from sod_ops import _extension
from sod_ops.ops.copy_paste import paste as paste_instances
from sod_ops.ops.cutmix import _draw as draw_cutmix
from sod_ops.ops.cutmix import paste

DEVICE = "cuda"


class Call(NamedTuple):
    """One op on inputs of model size: ``function(*inputs)`` returns one tensor."""

    function: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    stores_gradient: bool = False  # of the first input, as the forward of a mean does


def squeeze_excite(dtype: torch.dtype, device: str) -> Call:
    shapes = ((8, 64, 28, 28), (16, 64, 1, 1), (16,), (64, 16, 1, 1), (64,))
    inputs = tuple((torch.randn(s, device=device) * 0.3).to(dtype).requires_grad_() for s in shapes)
    return Call(sod_ops.squeeze_excite, inputs)


def pyramid_pool(dtype: torch.dtype, device: str) -> Call:
    """The levels as one tensor."""
    x = torch.randn(4, 64, 33, 40, device=device).to(dtype).requires_grad_()
    return Call(lambda x: torch.cat([level.flatten(2) for level in sod_ops.pyramid_pool(x)], 2), (x,))


def channel_pool(dtype: torch.dtype, device: str) -> Call:
    x = torch.randn(4, 64, 33, 40, device=device).to(dtype).requires_grad_()
    return Call(sod_ops.channel_pool, (x,))


def global_pool(dtype: torch.dtype, device: str) -> Call:
    """Mean and maximum as one tensor."""
    x = torch.randn(4, 64, 33, 40, device=device).to(dtype).requires_grad_()
    return Call(lambda x: torch.cat(sod_ops.global_pool(x), 1), (x,))


def gate(dtype: torch.dtype, device: str) -> Call:
    shapes = ((4, 64, 33, 40), (4, 64, 1, 1), (4, 1, 33, 40))
    return Call(sod_ops.gate, tuple(torch.randn(s, device=device).to(dtype).requires_grad_() for s in shapes))


def boxes(count: int, dtype: torch.dtype, device: str) -> Tensor:
    """[count, 4], in 100 x 100 pixels."""
    return (torch.rand(count, 2, 2, device=device).sort(1).values * 100).view(-1, 4).to(dtype).requires_grad_()


def box_iou_loss(dtype: torch.dtype, device: str) -> Call:
    return Call(sod_ops.complete_box_iou_loss, (boxes(5000, dtype, device), boxes(5000, dtype, device)))


def complete_box_iou(dtype: torch.dtype, device: str) -> Call:
    return Call(sod_ops.complete_box_iou, (boxes(300, dtype, device), boxes(200, dtype, device)))


def sigmoid_focal_loss(dtype: torch.dtype, device: str) -> Call:
    inputs = torch.randn(8, 4, 112, 112, device=device).to(dtype)[:, :1].requires_grad_()
    targets = torch.rand(8, 1, 112, 112, device=device)
    return Call(partial(sod_ops.sigmoid_focal_loss, reduction="mean"), (inputs, targets), stores_gradient=True)


def softmax_focal_loss(dtype: torch.dtype, device: str) -> Call:
    inputs = torch.randn(4, 19, 64, 64, device=device).to(dtype).requires_grad_()
    targets = torch.randint(19, (4, 64, 64), device=device)
    return Call(sod_ops.softmax_focal_loss, (inputs, targets), stores_gradient=True)


def pyramid_conv2d(dtype: torch.dtype, device: str) -> Call:
    shapes = ((4, 64, 30, 30), (4, 32, 1, 1), (4, 32, 6, 6), (4, 32, 15, 15), (64, 160, 3, 3), (64,))
    x, *branches, weight, bias = ((torch.randn(s, device=device) * 0.1).to(dtype).requires_grad_() for s in shapes)
    return Call(
        lambda x, weight, bias, *branches: sod_ops.pyramid_conv2d(x, branches, weight, bias),
        (x, weight, bias, *branches),
    )


def pyramid_upsample_concat(dtype: torch.dtype, device: str) -> Call:
    shapes = ((4, 64, 33, 40), (4, 16, 1, 1), (4, 16, 6, 6))
    inputs = tuple(torch.randn(shape, device=device).to(dtype).requires_grad_() for shape in shapes)
    return Call(lambda x, *branches: sod_ops.pyramid_upsample_concat(x, branches), inputs)


def box_filter(dtype: torch.dtype, device: str) -> Call:
    mask = torch.rand(4, 1, 96, 80, device=device).to(dtype).requires_grad_()
    return Call(partial(sod_ops.box_filter, kernel_size=31), (mask,))


def structure_loss(dtype: torch.dtype, device: str) -> Call:
    logits = torch.randn(8, 2, 112, 112, device=device).to(dtype)[:, :1].requires_grad_()
    mask = (torch.rand(8, 1, 112, 112, device=device) > 0.5).float()
    return Call(sod_ops.structure_loss, (logits, mask), stores_gradient=True)


def tversky_loss(dtype: torch.dtype, device: str) -> Call:
    return structure_loss(dtype, device)._replace(function=sod_ops.tversky_loss)


def adaptive_pixel_intensity_loss(dtype: torch.dtype, device: str) -> Call:
    probabilities = torch.rand(8, 2, 112, 112, device=device).to(dtype)[:, :1].requires_grad_()
    mask = (torch.rand(8, 1, 112, 112, device=device) > 0.5).float()
    return Call(sod_ops.adaptive_pixel_intensity_loss, (probabilities, mask), stores_gradient=True)


def bce_ssim_iou_loss(dtype: torch.dtype, device: str) -> Call:
    return adaptive_pixel_intensity_loss(dtype, device)._replace(function=sod_ops.bce_ssim_iou_loss)


def ssim(dtype: torch.dtype, device: str) -> Call:
    x, y = (torch.rand(4, 1, 96, 80, device=device).to(dtype).requires_grad_() for _ in range(2))
    return Call(partial(sod_ops.ssim, reduction="none"), (x, y))


def cutmix(dtype: torch.dtype, device: str) -> Call:
    """The pasting, which is what is differentiated; test_cutmix_draws_in_a_graph has the rest."""
    images = torch.rand(8, 3, 96, 80, device=device).to(dtype).requires_grad_()
    partner, boxes, _ = draw_cutmix(images, 1.0, True, None)
    return Call(partial(paste, partner=partner, boxes=boxes), (images,))


def copy_paste(dtype: torch.dtype, device: str) -> Call:
    """The images, with blended edges."""
    images = torch.rand(8, 3, 96, 80, device=device).to(dtype).requires_grad_()
    masks = torch.rand(8, 4, 12, 10, device=device).sub(0.4).round().bool()
    masks = masks.repeat_interleave(8, 2).repeat_interleave(8, 3)
    partner, chosen = torch.arange(8, device=device).roll(1), torch.ones(8, 4, dtype=torch.bool, device=device)
    return Call(lambda images: paste_instances(images, masks, partner, chosen, 1.5, 0.3)[0], (images,))


# An op adds a line.
CALLS = {
    "squeeze_excite": squeeze_excite,
    "box_iou_loss": box_iou_loss,
    "complete_box_iou": complete_box_iou,
    "pyramid_conv2d": pyramid_conv2d,
    "sigmoid_focal_loss": sigmoid_focal_loss,
    "softmax_focal_loss": softmax_focal_loss,
    "channel_pool": channel_pool,
    "global_pool": global_pool,
    "gate": gate,
    "pyramid_pool": pyramid_pool,
    "pyramid_upsample_concat": pyramid_upsample_concat,
    "box_filter": box_filter,
    "copy_paste": copy_paste,
    "cutmix": cutmix,
    "bce_ssim_iou_loss": bce_ssim_iou_loss,
    "ssim": ssim,
    "structure_loss": structure_loss,
    "adaptive_pixel_intensity_loss": adaptive_pixel_intensity_loss,
    "tversky_loss": tversky_loss,
}


@pytest.fixture(params=CALLS)
def make(request: pytest.FixtureRequest) -> Callable[..., Call]:
    return CALLS[request.param]


@pytest.fixture(params=["triton", "cuda"], autouse=True)
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend that has a kernel for the op."""
    if request.param == "cuda":
        operator = request.node.callspec.params.get("make", "squeeze_excite")
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"sod_ops::{operator}", "CUDA"):
            pytest.skip(f"{operator} has no CUDA C++ kernel: Triton serves it")
        if operator == "squeeze_excite" and not _extension.squeeze_excite_fits(0, 64, 28 * 28, True, 16, 4):
            pytest.skip("squeeze_excite's CUDA C++ kernel takes a GPU of compute capability 9.0 or higher")
    with sod_ops.use_backend(request.param):
        yield request.param


def forward_and_backward(call: Call) -> list[Tensor]:
    output = call.function(*call.inputs)
    wanted = [t for t in call.inputs if t.requires_grad]
    return [output.detach(), *torch.autograd.grad(output, wanted, torch.ones_like(output))]


def test_graph_capture_and_replay(make: Callable[..., Call]) -> None:
    call = make(torch.float32, DEVICE)
    expected = [t.clone() for t in forward_and_backward(call)]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            forward_and_backward(call)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = forward_and_backward(call)
    for t in captured:
        t.zero_()
    graph.replay()
    for a, e in zip(captured, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)
    # New values in the captured inputs.
    with torch.no_grad():
        call.inputs[0].copy_(torch.randn_like(call.inputs[0]))
    graph.replay()
    for a, e in zip(captured, forward_and_backward(call), strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)


def test_cutmix_draws_in_a_graph() -> None:
    """Without synchronising, and anew at each replay; labels count what the images hold."""
    labels = torch.arange(4, device=DEVICE)
    images = labels[:, None, None, None].expand(4, 3, 64, 48).float().contiguous()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        sod_ops.cutmix(images, labels, num_classes=4)
    torch.cuda.current_stream().wait_stream(stream)
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


def test_no_synchronisation(make: Callable[..., Call]) -> None:
    call = make(torch.float32, DEVICE)
    forward_and_backward(call)  # compiles and loads
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        forward_and_backward(call)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_runs_on_the_current_stream(make: Callable[..., Call]) -> None:
    """Behind a long job on its stream, an op that ran elsewhere would read the inputs too early."""
    call = make(torch.float32, DEVICE)
    values = torch.randn_like(call.inputs[0])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        with torch.no_grad():
            call.inputs[0].copy_(values)
        found = forward_and_backward(call)
    stream.synchronize()
    for a, e in zip(found, forward_and_backward(call), strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)


def test_bitwise_deterministic(make: Callable[..., Call]) -> None:
    call = make(torch.bfloat16, DEVICE)
    first = forward_and_backward(call)
    for _ in range(100):
        for a, e in zip(forward_and_backward(call), first, strict=True):
            assert torch.equal(a, e)


def test_second_device(make: Callable[..., Call]) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    call = make(torch.float32, "cuda:1")
    for t in forward_and_backward(call):
        assert t.device == torch.device("cuda:1")


def test_memory(make: Callable[..., Call]) -> None:
    """A forward keeps its inputs and small statistics: beyond the output, less than a quarter of the largest input."""
    call = make(torch.float32, DEVICE)
    forward_and_backward(call)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    output = call.function(*call.inputs)
    kept = torch.cuda.memory_allocated() - before
    sizes = [t.numel() * t.element_size() for t in call.inputs]
    stored = sizes[0] if call.stores_gradient else 0
    assert kept <= output.numel() * output.element_size() + stored + max(sizes) / 4


@pytest.mark.parametrize("make", ["squeeze_excite", "sigmoid_focal_loss"], indirect=True)  # boxes share one dtype
def test_grad_scaler(make: Callable[..., Call]) -> None:
    """AMP: float16 activations beside float32 parameters, an overflow is found and skipped."""
    half, single = make(torch.float16, DEVICE), make(torch.float32, DEVICE)
    parameters = [t.detach().clone().requires_grad_() for t in single.inputs[1:]]
    if not parameters:
        pytest.skip("an op without parameters has nothing to step")
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**8)
    before = [p.detach().clone() for p in parameters]
    for scale, moves in ((1.0, True), (float("inf"), False)):
        optimizer.zero_grad()
        with torch.autocast(DEVICE, torch.float16):
            loss = half.function(half.inputs[0].detach(), *parameters).float().mean() * scale
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        moved = any(not torch.equal(p, b) for p, b in zip(parameters, before, strict=True))
        assert moved == moves
        before = [p.detach().clone() for p in parameters]


def test_squeeze_excite_of_more_than_2_to_the_31_elements(kernels: str) -> None:
    free, _ = torch.cuda.mem_get_info()
    shape = (2, 64, 4100, 4100)  # 2.15e9 elements
    if free < 4 * torch.Size(shape).numel() * 2:
        pytest.skip("needs 18 GiB of GPU memory")
    x = torch.ones(shape, dtype=torch.bfloat16, device=DEVICE)
    x[-1, -1, -1, -1] = 3
    weights = [torch.zeros(s, dtype=torch.bfloat16, device=DEVICE) for s in ((8, 64), (8,), (64, 8), (64,))]
    if kernels == "cuda":
        with pytest.raises(RuntimeError, match="does not fit"):
            sod_ops.squeeze_excite(x, *weights)
        return
    y = sod_ops.squeeze_excite(x, *weights)
    assert y[-1, -1, -1, -1] == 1.5
    assert y[0, 0, 0, 0] == 0.5
    assert y[1, 63, 4000, 17] == 0.5


def test_squeeze_excite_on_chip_of_every_cluster(kernels: str) -> None:
    """From one block to as many as there are, in both memory formats, against Triton; and more samples than clusters."""
    if kernels != "cuda":
        return
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

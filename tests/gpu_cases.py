"""What the tests of a GPU run (test_gpu.py, test_gpu_models.py): every public function on inputs of a size, and a model.

Nothing here needs a GPU: test_gpu_cases.py runs all of it on a CPU first, and holds the table to the public functions.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import sod_ops
from sod_ops.ops.copy_paste import paste as paste_instances
from sod_ops.ops.cutmix import _draw as draw_cutmix
from sod_ops.ops.cutmix import paste


class Size(NamedTuple):
    """Of a map; a mask has one channel, and there are as many boxes as pixels."""

    samples: int
    channels: int
    height: int
    width: int

    def __str__(self) -> str:
        return "x".join(map(str, self))

    @property
    def pixels(self) -> int:
        return self.height * self.width


MODEL = Size(4, 64, 56, 48)
# Rows that fill no vector, tiles that maps do not fill: for the sanitizer, which is slow.
SMALL = (Size(3, 5, 7, 11), Size(2, 19, 37, 67))


class Call(NamedTuple):
    """One op: ``function(*inputs)`` returns one tensor; inputs that get a gradient require one."""

    function: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    stores_gradient: bool = False  # of the first input, as the forward of a mean does

    def exactly(self) -> "Call":
        """The same values on the CPU, floating ones in float64."""
        inputs = (t.detach().cpu() for t in self.inputs)
        exact = (t.double() if t.is_floating_point() else t for t in inputs)
        wanted = (e.requires_grad_(t.requires_grad) for e, t in zip(exact, self.inputs, strict=True))
        return self._replace(inputs=tuple(wanted))


class Draw(NamedTuple):
    """Draws inputs on the CPU, so that they are the same everywhere."""

    size: Size
    dtype: torch.dtype
    device: str
    channels_last: bool = False

    def place(self, values: Tensor) -> Tensor:
        values = values.to(self.device)
        if self.channels_last and values.dim() == 4:
            values = values.contiguous(memory_format=torch.channels_last)
        return values

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return self.place((torch.randn(shape) * scale).to(self.dtype)).requires_grad_()

    def map(self, scale: float = 1.0) -> Tensor:
        return self.normal(*self.size, scale=scale)

    def mask(self) -> Tensor:
        n, _, h, w = self.size
        return self.place((torch.rand(n, 1, h, w) > 0.5).float())

    def head(self, values: Callable[..., Tensor]) -> Tensor:
        """[N, 1, H, W] of logits or probabilities: the first channel of two, a slice."""
        n, _, h, w = self.size
        return self.place(values(n, 2, h, w).to(self.dtype))[:, :1].requires_grad_()

    def boxes(self, count: int) -> Tensor:
        """[count, 4], in 100 x 100 pixels."""
        return self.place((torch.rand(count, 2, 2).sort(1).values * 100).view(-1, 4).to(self.dtype)).requires_grad_()


def squeeze_excite(draw: Draw) -> Call:
    channels = draw.size.channels
    reduced = max(1, channels // 4)
    shapes = ((reduced, channels, 1, 1), (reduced,), (channels, reduced, 1, 1), (channels,))
    return Call(sod_ops.squeeze_excite, (draw.map(0.3), *(draw.normal(*shape, scale=0.3) for shape in shapes)))


def scse(draw: Draw) -> Call:
    """The matrices of squeeze_excite, then those of one output channel."""
    inputs = squeeze_excite(draw).inputs
    return Call(sod_ops.scse, (*inputs, draw.normal(1, draw.size.channels, 1, 1, scale=0.3), draw.normal(1)))


def spatial_attention(draw: Draw) -> Call:
    return Call(sod_ops.spatial_attention, (draw.map(), draw.normal(1, 2, 7, 7, scale=0.1), draw.normal(1)))


def object_attention(draw: Draw) -> Call:
    n, _, h, w = draw.size
    return Call(sod_ops.object_attention, (draw.normal(n, 1, h, w, scale=3), draw.map()))


def pyramid_pool(draw: Draw) -> Call:
    """The levels as one tensor."""
    return Call(_pooled, (draw.map(),))


def _pooled(x: Tensor) -> Tensor:
    return torch.cat([level.flatten(2) for level in sod_ops.pyramid_pool(x)], 2)


def channel_pool(draw: Draw) -> Call:
    return Call(sod_ops.channel_pool, (draw.map(),))


def global_pool(draw: Draw) -> Call:
    """Mean and maximum as one tensor."""
    return Call(_both_pools, (draw.map(),))


def _both_pools(x: Tensor) -> Tensor:
    return torch.cat(sod_ops.global_pool(x), 1)


def gate(draw: Draw) -> Call:
    n, c, h, w = draw.size
    return Call(sod_ops.gate, (draw.map(), draw.normal(n, c, 1, 1), draw.normal(n, 1, h, w)))


def box_loss(function: Callable[..., Tensor], draw: Draw) -> Call:
    return Call(function, (draw.boxes(draw.size.pixels), draw.boxes(draw.size.pixels)))


def complete_box_iou(draw: Draw) -> Call:
    return Call(sod_ops.complete_box_iou, (draw.boxes(draw.size.pixels // 7), draw.boxes(draw.size.pixels // 5)))


def sigmoid_focal_loss(draw: Draw) -> Call:
    function = partial(sod_ops.sigmoid_focal_loss, reduction="mean")
    return Call(function, (draw.head(torch.randn), draw.mask()), stores_gradient=True)


def softmax_focal_loss(draw: Draw) -> Call:
    n, c, h, w = draw.size
    return Call(sod_ops.softmax_focal_loss, (draw.map(), draw.place(torch.randint(c, (n, h, w)))), stores_gradient=True)


def pyramid_conv2d(draw: Draw) -> Call:
    n, c, h, w = draw.size
    half = c // 2
    sizes = ((1, 1), (min(6, h), min(6, w)), (h // 2, w // 2))
    branches = [draw.normal(n, half, *size, scale=0.1) for size in sizes]
    weight, bias = draw.normal(c, c + 3 * half, 3, 3, scale=0.1), draw.normal(c)
    return Call(_convolved, (draw.map(0.1), weight, bias, *branches))


def _convolved(x: Tensor, weight: Tensor, bias: Tensor, *branches: Tensor) -> Tensor:
    return sod_ops.pyramid_conv2d(x, branches, weight, bias)


def pyramid_upsample_concat(draw: Draw) -> Call:
    n, c, h, w = draw.size
    branches = (draw.normal(n, c // 4 + 1, *size) for size in ((1, 1), (min(6, h), min(6, w))))
    return Call(_concatenated, (draw.map(), *branches))


def _concatenated(x: Tensor, *branches: Tensor) -> Tensor:
    return sod_ops.pyramid_upsample_concat(x, branches)


def box_filter(draw: Draw) -> Call:
    n, _, h, w = draw.size
    return Call(partial(sod_ops.box_filter, kernel_size=31), (draw.normal(n, 1, h, w),))


def loss_of_logits(function: Callable[..., Tensor], draw: Draw) -> Call:
    return Call(function, (draw.head(torch.randn), draw.mask()), stores_gradient=True)


def loss_of_probabilities(function: Callable[..., Tensor], draw: Draw) -> Call:
    """Not nearer to 0 and 1 than bfloat16 can say."""
    return Call(function, (draw.head(_probabilities), draw.mask()), stores_gradient=True)


def _probabilities(*shape: int) -> Tensor:
    return torch.rand(shape) * 0.98 + 0.01


def ssim(draw: Draw) -> Call:
    return Call(partial(sod_ops.ssim, reduction="none"), (draw.head(torch.rand), draw.head(torch.rand)))


def cutmix(draw: Draw) -> Call:
    """The pasting, which is what is differentiated; test_augmentations_draw_on_the_device has the rest."""
    images = draw.map()
    partner, boxes, _ = draw_cutmix(images.detach().cpu(), 1.0, True, None)
    return Call(paste, (images, partner.to(draw.device), boxes.to(draw.device)))


def copy_paste(draw: Draw) -> Call:
    """The images, with blended edges."""
    n, _, h, w = draw.size
    masks = (torch.rand(n, 4, h // 8 + 1, w // 8 + 1) > 0.6).repeat_interleave(8, 2).repeat_interleave(8, 3)
    masks = masks[:, :, :h, :w].contiguous()
    arguments = (masks, torch.arange(n).roll(1), torch.ones(n, 4, dtype=torch.bool))
    return Call(_pasted, (draw.map(), *(t.to(draw.device) for t in arguments)))


def _pasted(images: Tensor, masks: Tensor, partner: Tensor, chosen: Tensor) -> Tensor:
    return paste_instances(images, masks, partner, chosen, 1.5, 0.3)[0]


# By the public function's name: an op adds a line.
CALLS: dict[str, Callable[[Draw], Call]] = {
    "adaptive_pixel_intensity_loss": partial(loss_of_probabilities, sod_ops.adaptive_pixel_intensity_loss),
    "bce_ssim_iou_loss": partial(loss_of_probabilities, sod_ops.bce_ssim_iou_loss),
    "box_filter": box_filter,
    "channel_pool": channel_pool,
    "complete_box_iou": complete_box_iou,
    "complete_box_iou_loss": partial(box_loss, sod_ops.complete_box_iou_loss),
    "copy_paste": copy_paste,
    "cutmix": cutmix,
    "dice_loss": partial(loss_of_logits, sod_ops.dice_loss),
    "distance_box_iou_loss": partial(box_loss, sod_ops.distance_box_iou_loss),
    "gate": gate,
    "generalized_box_iou_loss": partial(box_loss, sod_ops.generalized_box_iou_loss),
    "global_pool": global_pool,
    "iou_loss": partial(loss_of_logits, sod_ops.iou_loss),
    "object_attention": object_attention,
    "pyramid_conv2d": pyramid_conv2d,
    "pyramid_pool": pyramid_pool,
    "pyramid_upsample_concat": pyramid_upsample_concat,
    "scse": scse,
    "sigmoid_focal_loss": sigmoid_focal_loss,
    "softmax_focal_loss": softmax_focal_loss,
    "spatial_attention": spatial_attention,
    "squeeze_excite": squeeze_excite,
    "ssim": ssim,
    "structure_loss": partial(loss_of_logits, sod_ops.structure_loss),
    "tversky_loss": partial(loss_of_logits, sod_ops.tversky_loss),
}


def stem(name: str) -> str:
    """The op that a public function belongs to."""
    return getattr(sod_ops, name).__module__.rpartition(".")[2]


def forward_and_backward(call: Call, gradient: Tensor | None = None) -> list[Tensor]:
    """The output and every gradient; of an incoming gradient of 1/2, so that one which is stored is scaled."""
    output = call.function(*call.inputs)
    wanted = [t for t in call.inputs if t.requires_grad]
    gradient = torch.full_like(output, 0.5) if gradient is None else gradient.to(output)
    return [output.detach(), *torch.autograd.grad(output, wanted, gradient)]


# The largest error against float64 as a fraction of the largest entry: enough to tell a wrong result from a right one.
# Each op's own tests have the tight bounds.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 2e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}


def assert_equals_the_reference(call: Call, dtype: torch.dtype) -> None:
    """Forward and backward against the reference on the CPU, so that a GPU runs no kernels but the op's own."""
    exact = call.exactly()
    with sod_ops.use_backend("reference"):
        shape = exact.function(*exact.inputs).shape
        gradient = torch.linspace(-1, 1, max(1, shape.numel()), dtype=torch.float64).view(shape)
        expected = forward_and_backward(exact, gradient)
    for a, e in zip(forward_and_backward(call, gradient), expected, strict=True):
        error = (a.double().cpu() - e).abs().max().item()
        assert error <= TOLERANCES[dtype] * max(e.abs().max().item(), 1e-3), (a.shape, error)


class LargeCall(NamedTuple):
    """An op on a tensor of more than 2^31 elements whose values are all alike, but for the last.

    ``run(x)`` gives a result that is the same everywhere, but where the last element of x has a part in it; ``first`` and
    ``last`` are what it must be there.
    """

    shape: tuple[int, ...]
    run: Callable[[Tensor], Tensor]
    first: float
    last: float
    dtype: torch.dtype = torch.bfloat16

    def check(self, device: str, shape: tuple[int, ...] | None = None) -> None:
        x = torch.ones(shape or self.shape, dtype=self.dtype, device=device)
        x.view(-1)[-1] = 3
        found = self.run(x).reshape(-1)
        for element, expected in ((found[0], self.first), (found[-1], self.last)):
            assert element.item() == pytest.approx(expected, rel=1e-2, abs=1e-5)


def _excited(x: Tensor) -> Tensor:
    """Zero weights: every gate is 1/2."""
    channels = x.shape[1]
    shapes = ((8, channels), (8,), (channels, 8), (channels,))
    return sod_ops.squeeze_excite(x, *(torch.zeros(s, dtype=x.dtype, device=x.device) for s in shapes))


def _gated(x: Tensor) -> Tensor:
    return sod_ops.gate(x, torch.zeros(*x.shape[:2], 1, 1, dtype=x.dtype, device=x.device))


def _focal_gradient(x: Tensor) -> Tensor:
    """Written by the forward of a sum, which is not looked at: alone, no term of it can be told from the others."""
    logits = (x - 1).mul_(8).requires_grad_()
    targets = torch.ones_like(x, dtype=torch.uint8)
    sod_ops.sigmoid_focal_loss(logits, targets, alpha=1, gamma=0, reduction="sum").backward()
    assert logits.grad is not None
    return logits.grad


# Of two bytes an element, so that 2^31 of them take 4 GiB. Shapes have no small factor in their last dimension.
LARGE = {
    "squeeze_excite": LargeCall((2, 64, 4100, 4100), _excited, 0.5, 1.5),
    "gate": LargeCall((2, 64, 4100, 4100), _gated, 0.5, 1.5),
    "channel_pool": LargeCall((2, 64, 4100, 4100), lambda x: sod_ops.channel_pool(x)[:, -1:], 1.0, 3.0),
    "global_pool": LargeCall((2, 64, 4100, 4100), lambda x: sod_ops.global_pool(x)[1], 1.0, 3.0),
    "box_filter": LargeCall((1, 1, 46400, 46400), lambda x: sod_ops.box_filter(x, 3), 4 / 9, 6 / 9),
    "sigmoid_focal_loss": LargeCall((1, 1, 46400, 46400), _focal_gradient, -0.5, 0.0),
    "cutmix": LargeCall(
        (2, 3, 19100, 19100),
        lambda x: paste(x, torch.tensor([1, 0], device=x.device), torch.zeros(2, 4, dtype=torch.int64, device=x.device)),
        1.0, 3.0, torch.uint8,
    ),
}  # fmt: skip


class Network(nn.Module):
    """A small salient object network in which the blocks stand between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.excite = sod_ops.nn.SqueezeExcitation(16, 4, activation="silu")
        self.deeper = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.pool = sod_ops.nn.PyramidPoolingHead(32, 16, norm=None)
        self.attend = sod_ops.nn.SCSE(16, 4)
        self.side = nn.Conv2d(16, 1, 3, padding=1)
        self.head = nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Logits of two heads in the images' size."""
        low = self.excite(torch.relu(self.stem(images)))
        high = self.attend(self.pool(torch.relu(self.deeper(low))))
        heads = (self.side(low), self.head(high))
        return [nn.functional.interpolate(logits, images.shape[2:], mode="bilinear") for logits in heads]


def loss_of(model: Callable[[Tensor], list[Tensor]], images: Tensor, masks: Tensor) -> Tensor:
    return sod_ops.structure_loss(model(images), masks, weights=[0.5, 1.0])


class Training(NamedTuple):
    """A network, a batch, and steps of mixed precision with a gradient scaler."""

    network: Network
    images: Tensor
    masks: Tensor

    @classmethod
    def on(cls, device: str, size: int = 64) -> "Training":
        torch.manual_seed(0)
        network = Network()
        masks = (torch.rand(4, 1, 4, 4) > 0.5).float().repeat_interleave(size // 4, 2).repeat_interleave(size // 4, 3)
        images = masks + 0.3 * torch.randn(4, 3, size, size)
        return cls(network.to(device), images.to(device), masks.to(device))

    def gradients(self, model: Any) -> list[Tensor]:
        """The loss and the gradient of every parameter."""
        parameters = list(self.network.parameters())
        loss = loss_of(model, self.images, self.masks)
        return [loss.detach(), *torch.autograd.grad(loss, parameters)]

    def train(self, steps: int, dtype: torch.dtype, channels_last: bool) -> list[float]:
        """The loss of each step; the scaler skips the one whose loss overflows on purpose."""
        device = self.images.device.type
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        network, images = self.network.to(memory_format=memory_format), self.images.to(memory_format=memory_format)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler(device, init_scale=2.0**8)
        losses = []
        for step in range(steps):
            before = [p.detach().clone() for p in network.parameters()]
            with torch.autocast(device, dtype):
                loss = loss_of(network, images, self.masks)
            overflows = step == steps // 2
            optimizer.zero_grad()
            scaler.scale(loss * torch.inf if overflows else loss).backward()
            scaler.step(optimizer)
            scaler.update()
            moved = any(not torch.equal(p, b) for p, b in zip(network.parameters(), before, strict=True))
            assert moved != overflows
            losses.append(loss.item())
        return losses

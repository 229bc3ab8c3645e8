"""cutmix on every backend: what it draws, what it pastes, what becomes of targets, and its gradient."""

import pickle
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import FLOATING, MAPS, MapCase
from conftest import Backend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import sod_ops
from sod_ops.ops import _draws
from sod_ops.ops.cutmix import _draw, _select, paste
from sod_ops.reference.cutmix import cutmix as reference

WITHOUT_KERNELS = ("cuda",)
# Pasting is blind to the dtype but for its size: one of each, and those that are special to a backend.
PASTED = (torch.bool, torch.uint8, torch.bfloat16, torch.float32, torch.int64)


def generator(device: str, seed: int = 0) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def some_boxes(images: Tensor) -> Tensor:
    """Among them one of the whole image, one without area, one at a corner."""
    samples, _, height, width = images.shape
    kinds = torch.tensor([[0, 0, width, height], [1, 1, 1, 1], [0, 0, width // 2, height // 2], [1, 0, width, 1]])
    boxes = kinds[torch.arange(samples) % 4].to(images.device)
    return torch.minimum(boxes, torch.tensor([width, height, width, height], device=images.device))


def by_hand(images: Tensor, partner: Tensor, boxes: Tensor) -> Tensor:
    pasted = images.clone()
    for n, (other, (x1, y1, x2, y2)) in enumerate(zip(partner.tolist(), boxes.tolist(), strict=True)):
        pasted[n, :, y1:y2, x1:x2] = images[other, :, y1:y2, x1:x2]
    return pasted


def check(images: Tensor, partner: Tensor, boxes: Tensor) -> None:
    before = images.clone()
    pasted = paste(images, partner, boxes)
    torch.testing.assert_close(pasted, by_hand(images, partner, boxes), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(images, before, rtol=0, atol=0, equal_nan=True)


# ---- What is drawn ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [1e-3, 0.2, 0.5, 1.0, 2.0, 30.0])
def test_lambda_has_the_moments_of_beta(alpha: float) -> None:
    count = 200_000
    u, v = _draws.uniform((2, count), torch.device("cpu"), generator("cpu"))
    drawn = _draws.symmetric_beta(alpha, u, v)
    assert drawn.isfinite().all()
    assert (drawn >= 0).all()
    assert (drawn <= 1).all()
    variance = 1 / (4 * (2 * alpha + 1))
    # Five standard errors; that of the variance by the fourth moment, at most a quarter of the variance here.
    assert abs(drawn.mean().item() - 0.5) <= 5 * (variance / count) ** 0.5
    assert abs(drawn.var().item() - variance) <= 5 * (variance / 4 / count) ** 0.5
    # The fourth central moment of Beta(a, a) is 3 / (16 (2a + 1) (2a + 3)).
    assert ((drawn - 0.5) ** 4).mean().item() == pytest.approx(3 / (16 * (2 * alpha + 1) * (2 * alpha + 3)), rel=0.02)


def test_one_is_the_uniform_distribution() -> None:
    u, v = _draws.uniform((2, 100_000), torch.device("cpu"), generator("cpu"))
    drawn = _draws.symmetric_beta(1.0, u, v).sort().values
    steps = torch.linspace(0, 1, 100_000, dtype=torch.float64)
    assert (drawn - steps).abs().max() < 1.95 / 100_000**0.5  # Kolmogorov and Smirnov, one in a thousand


def test_numbers_at_the_ends_of_their_range() -> None:
    ends = torch.tensor([0.0, 2.0**-53, 1 - 2.0**-53], dtype=torch.float64)
    for alpha in (1e-300, 1e-3, 1.0, 1e300):
        assert _draws.symmetric_beta(alpha, ends[:, None], torch.cat([ends, ends + 0.25])[None]).isfinite().all()


@pytest.mark.parametrize("samples", [0, 1, 2, 3, 17])
def test_partners_are_one_cycle(samples: int) -> None:
    for seed in range(5):
        partner = _draws.partners(_draws.uniform((samples,), torch.device("cpu"), generator("cpu", seed)))
        assert _draws.receivers(partner)[partner].tolist() == list(range(samples))
        seen, n = set(), 0
        while samples and n not in seen:
            seen.add(n)
            n = partner[n].item()
        assert len(seen) == samples


def test_all_cycles_are_drawn_alike() -> None:
    """Of four samples there are six."""
    counts: dict[tuple[int, ...], int] = {}
    random = generator("cpu")
    for _ in range(1200):
        key = tuple(_draws.partners(_draws.uniform((4,), torch.device("cpu"), random)).tolist())
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 6
    assert all(130 <= count <= 270 for count in counts.values())  # 200, and five standard deviations


def test_boxes_and_lambda() -> None:
    images = torch.zeros(5000, 1, 20, 30)
    _, boxes, kept = _draw(images, 1.0, True, generator("cpu"))
    x1, y1, x2, y2 = boxes.unbind(1)
    assert (x1 >= 0).all()
    assert (x1 <= x2).all()
    assert (x2 <= 30).all()
    assert (y1 >= 0).all()
    assert (y1 <= y2).all()
    assert (y2 <= 20).all()
    torch.testing.assert_close(kept, 1 - ((x2 - x1) * (y2 - y1)).double() / 600)
    assert len(boxes.unique(dim=0)) > 1000
    assert len(_draw(images, 1.0, False, generator("cpu"))[1].unique(dim=0)) == 1
    # Middles are uniform: a pixel is covered by a box that reaches it on either side.
    inner = boxes[(x1 > 0) & (x2 < 30)]
    assert ((inner[:, 0] + inner[:, 2]) / 2).mean().item() == pytest.approx(15, abs=0.5)


# ---- What is pasted ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", PASTED, ids=str)
@pytest.mark.parametrize("case", [case for case in MAPS if not case.large], ids=str)
def test_shapes_layouts_and_dtypes(backend: Backend, case: MapCase, dtype: torch.dtype) -> None:
    images = case.build(torch.float32, backend.device)
    if dtype in FLOATING:
        images = case.build(dtype, backend.device)
    else:
        images = (images.nan_to_num() * 40).to(dtype)
    partner = torch.arange(images.shape[0], device=backend.device).roll(1)
    check(images, partner, some_boxes(images))


@pytest.mark.parametrize("case", [case for case in MAPS if case.large], ids=str)
def test_large_maps(case: MapCase) -> None:
    images = case.build(torch.float32)
    with sod_ops.use_backend("cpu"):
        check(images, torch.arange(images.shape[0]).roll(1), _draw(images, 1.0, True, generator("cpu"))[1])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("width", [224, 221])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=str)
def test_past_the_caches(dtype: torch.dtype, width: int, layout: torch.memory_format) -> None:
    """So large an output that it is written past the caches, in lines that fill registers or don't."""
    images = (torch.rand(48, 3, 224, width) * 255).to(dtype).to(memory_format=layout)
    with sod_ops.use_backend("cpu"):
        check(images, torch.arange(48).roll(5), _draw(images, 1.0, True, generator("cpu"))[1])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    shape=st.tuples(st.integers(0, 5), st.integers(1, 4), st.integers(1, 40), st.integers(1, 90)),
    layout=st.sampled_from(["contiguous", "channels_last", "channel_slice", "channels_last_slice", "crop"]),
    dtype=st.sampled_from(FLOATING),
    seed=st.integers(0, 1000),
)
def test_any_shape(shape: tuple[int, int, int, int], layout: str, dtype: torch.dtype, seed: int) -> None:
    images = MapCase(shape, layout).build(dtype)
    partner, boxes, _ = _draw(images, 0.7, True, generator("cpu", seed))
    with sod_ops.use_backend("cpu"):
        check(images, partner, boxes)


@pytest.mark.parametrize("per_sample", [True, False])
def test_one_state_of_the_generator_gives_one_result(backend: Backend, per_sample: bool) -> None:
    images = torch.randn(3, 2, 9, 7, device=backend.device)
    targets = (torch.arange(3, device=backend.device), torch.rand(3, 9, 7, device=backend.device) > 0.5)

    def run() -> list[Tensor]:
        mixed, (labels, masks) = sod_ops.cutmix(
            images, targets, per_sample=per_sample, generator=generator(backend.device), num_classes=4
        )
        return [mixed, labels, masks]

    found = run()
    with sod_ops.use_backend("reference"):
        expected = run()
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)
    torch.manual_seed(7)
    first = sod_ops.cutmix(images, targets)[0]
    torch.manual_seed(7)
    assert torch.equal(sod_ops.cutmix(images, targets)[0], first)


@pytest.mark.parametrize("case", [case for case in MAPS if not case.large], ids=str)
def test_memory_format_is_kept(kernel_backend: Backend, case: MapCase) -> None:
    images = case.build(torch.float32, kernel_backend.device)
    pasted = sod_ops.cutmix(images, torch.zeros(images.shape[0], dtype=torch.long, device=images.device))[0]
    if case.layout in ("contiguous", "channels_last"):
        assert pasted.stride() == torch.empty_like(images).stride()
    assert pasted.is_contiguous() or pasted.is_contiguous(memory_format=torch.channels_last)


def test_a_batch_of_one_is_left_as_it_is(backend: Backend) -> None:
    images = torch.randn(1, 3, 8, 9, device=backend.device)
    labels = torch.rand(1, 4, device=backend.device)
    mixed, mixed_labels = sod_ops.cutmix(images, labels)
    assert torch.equal(mixed, images)
    torch.testing.assert_close(mixed_labels, labels)


def test_empty_batch(backend: Backend) -> None:
    images = torch.empty(0, 3, 8, 9, device=backend.device)
    labels = torch.empty(0, dtype=torch.long, device=backend.device)
    for per_sample in (True, False):
        mixed, soft = sod_ops.cutmix(images, labels, per_sample=per_sample, num_classes=5)
        assert mixed.shape == images.shape
        assert soft.shape == (0, 5)


# ---- Targets ----------------------------------------------------------------------------------------------------------


def test_labels_mix_by_what_is_left_of_the_sample(backend: Backend) -> None:
    """Each image is all its label, so that the labels' mixture can be counted in pixels."""
    labels = torch.arange(4, device=backend.device)
    images = labels[:, None, None, None].expand(4, 1, 10, 12).float().contiguous()
    mixed, (soft, indices, masks) = sod_ops.cutmix(
        images,
        (F.one_hot(labels, 4).double(), labels, images[:, 0].long()),
        generator=generator(backend.device, 3),
    )
    counted = torch.stack([(mixed == k).double().mean((1, 2, 3)) for k in range(4)], 1)
    torch.testing.assert_close(soft, counted)
    assert torch.equal(masks, mixed[:, 0].long())
    own, others, kept = indices
    assert torch.equal(own, labels)
    assert kept.dtype == torch.float32
    torch.testing.assert_close(
        kept[:, None] * F.one_hot(own, 4) + (1 - kept[:, None]) * F.one_hot(others, 4), counted.float()
    )
    with_classes = sod_ops.cutmix(images, labels, generator=generator(backend.device, 3), num_classes=4)[1]
    torch.testing.assert_close(with_classes, counted.float())


def test_structures_and_dtypes_come_back(backend: Backend) -> None:
    images = torch.zeros(2, 3, 5, 6, dtype=torch.uint8, device=backend.device)
    soft = torch.rand(2, 3, device=backend.device).bfloat16()
    mask = torch.zeros(2, 2, 5, 6, dtype=torch.int16, device=backend.device)
    for container in (tuple, list):
        mixed, targets = sod_ops.cutmix(images, container((soft, mask)))
        assert mixed.dtype == torch.uint8
        assert type(targets) is container
        assert [t.dtype for t in targets] == [torch.bfloat16, torch.int16]
        assert targets[1].shape == mask.shape


@pytest.mark.parametrize(
    "dtype", [*FLOATING, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
)
def test_masks_of_every_dtype(backend: Backend, dtype: torch.dtype) -> None:
    images = torch.zeros(3, 1, 6, 5, device=backend.device)
    masks = (torch.rand(3, 6, 5, device=backend.device) * 3).to(dtype)
    partner, boxes, _ = _draw(images, 1.0, True, generator(backend.device, 1))
    found = sod_ops.cutmix(images, masks, generator=generator(backend.device, 1))[1]
    assert found.dtype == dtype
    assert torch.equal(found, by_hand(masks[:, None], partner, boxes)[:, 0])


# ---- Gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradcheck(backend: Backend, layout: str) -> None:
    images = MapCase((4, 2, 4, 5), layout).build(torch.float64, backend.device).requires_grad_()
    partner = torch.tensor([2, 0, 3, 1], device=backend.device)
    boxes = torch.tensor([[0, 0, 3, 2], [1, 1, 4, 4], [2, 2, 2, 2], [0, 0, 5, 4]], device=backend.device)
    function = partial(paste, partner=partner, boxes=boxes)
    assert torch.autograd.gradcheck(function, images, fast_mode=backend.interpreted)
    assert torch.autograd.gradgradcheck(function, images, fast_mode=backend.interpreted)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "channels_last_slice", "crop"])
def test_gradients(kernel_backend: Backend, layout: str, dtype: torch.dtype) -> None:
    """The largest sum has two terms: plain PyTorch, which adds the same two, gives the same bits."""
    images = MapCase((4, 3, 7, 21), layout).build(dtype, kernel_backend.device)
    partner, boxes, _ = _draw(images, 1.0, True, generator(kernel_backend.device, 2))
    grad = torch.randn(images.shape, device=images.device).to(dtype)
    leaves = [images.detach().requires_grad_() for _ in range(2)]
    for function, leaf in zip((paste, reference), leaves, strict=True):
        function(leaf, partner, boxes).backward(grad)
    # Triton's interpreter cuts bfloat16 off where others round.
    cut_off = kernel_backend.interpreted and dtype == torch.bfloat16
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=2**-7 if cut_off else 0, atol=0)


def test_masks_and_soft_labels_are_differentiable(backend: Backend) -> None:
    images = torch.zeros(3, 1, 6, 5, dtype=torch.float64, device=backend.device)
    soft, mask = (torch.rand(s, dtype=torch.float64, device=backend.device) for s in ((3, 4), (3, 6, 5)))

    def function(soft: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return sod_ops.cutmix(images, (soft, mask), generator=generator(backend.device))[1]

    assert torch.autograd.gradcheck(function, (soft.requires_grad_(), mask.requires_grad_()), fast_mode=True)


def test_func_transforms(backend: Backend) -> None:
    images = torch.rand(3, 2, 6, 5, dtype=torch.float64, device=backend.device)
    partner, boxes, _ = _draw(images, 1.0, True, generator(backend.device))

    def total(images: Tensor) -> Tensor:
        return paste(images, partner, boxes).square().sum()

    leaf = images.clone().requires_grad_()
    (expected,) = torch.autograd.grad(total(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(total)(images), expected)


# ---- PyTorch's other parts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "channel_slice"])
def test_operators_pass_opcheck(kernel_backend: Backend, layout: str) -> None:
    kernels = _select(kernel_backend.device)
    images = MapCase((2, 3, 5, 4), layout).build(torch.float32, kernel_backend.device)
    partner, boxes = torch.tensor([1, 0], device=images.device), some_boxes(images)
    torch.library.opcheck(kernels.forward, (images.requires_grad_(), partner, boxes))
    torch.library.opcheck(kernels.backward, (images.detach(), partner, boxes))


def test_compile(backend: Backend) -> None:
    """With PyTorch's default generator, which torch.compile knows: what is drawn is that of eager mode."""
    torch._dynamo.reset()
    function = partial(sod_ops.cutmix, num_classes=5)
    compiled = torch.compile(function, fullgraph=True, dynamic=False, backend="aot_eager")
    images = torch.rand(2, 3, 8, 7, device=backend.device, requires_grad=True)
    targets = (torch.arange(2, device=backend.device), torch.rand(2, 8, 7, device=backend.device))
    results = []
    for call in (compiled, function):
        torch.manual_seed(0)
        mixed, (labels, masks) = call(images, targets)
        results.append((mixed.detach(), labels, masks, *torch.autograd.grad(mixed.square().sum(), images)))
    for a, e in zip(*results, strict=True):
        torch.testing.assert_close(a, e)


def test_deterministic(backend: Backend) -> None:
    images = torch.rand(3, 2, 9, 8, device=backend.device, requires_grad=True)
    torch.use_deterministic_algorithms(True)
    try:
        mixed = sod_ops.cutmix(images, torch.arange(3, device=backend.device), num_classes=3)[0]
        mixed.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


# ---- The class --------------------------------------------------------------------------------------------------------


class Samples(torch.utils.data.Dataset[tuple[Tensor, int]]):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return torch.full((1, 12, 10), i, dtype=torch.uint8), i


class Collate:
    def __init__(self) -> None:
        self.mix = sod_ops.CutMix(num_classes=16)

    def __call__(self, samples: list[Any]) -> tuple[Tensor, Tensor]:
        mixed: tuple[Tensor, Tensor] = self.mix(*torch.utils.data.default_collate(samples))
        return mixed


def test_in_a_data_loader() -> None:
    loader = torch.utils.data.DataLoader(Samples(), 4, num_workers=1, collate_fn=Collate())
    epochs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        epochs.append(list(loader))
    for images, labels in epochs[0]:
        counted = torch.stack([(images == k).float().mean((1, 2, 3)) for k in range(16)], 1)
        torch.testing.assert_close(labels, counted)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(epochs[0], epochs[1], strict=True))
    assert not all(torch.equal(a[0], b[0]) for a, b in zip(epochs[0], epochs[2], strict=True))


def test_class_keeps_its_options() -> None:
    mix = pickle.loads(pickle.dumps(sod_ops.CutMix(0.5, per_sample=False, num_classes=3)))
    assert repr(mix) == "CutMix(alpha=0.5, per_sample=False, num_classes=3)"
    images, labels = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    found = mix(images, labels, generator("cpu"))
    expected = sod_ops.cutmix(images, labels, 0.5, False, generator("cpu"), 3)
    assert all(torch.equal(a, e) for a, e in zip(found, expected, strict=True))
    assert sod_ops.CutMix is sod_ops.nn.CutMix
    with pytest.raises(ValueError, match="CutMix: alpha must be finite and above 0, got 0"):
        sod_ops.CutMix(0)


# ---- Bad input --------------------------------------------------------------------------------------------------------

X, Y = torch.zeros(2, 3, 4, 5), torch.zeros(2, dtype=torch.long)
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"images": None}, TypeError, "images must be a Tensor, got NoneType"),
    ({"images": X[0]}, ValueError, r"images must be of shape \[B, C, H, W\].*got \[3, 4, 5\]"),
    ({"images": X[:, :0]}, ValueError, r"images must be of shape .* at least 1, got \[2, 0, 4, 5\]"),
    ({"images": X.long()}, TypeError, "images must be uint8, float32, .*got torch.int64"),
    ({"targets": None}, TypeError, "targets must be a Tensor, got NoneType"),
    ({"targets": (Y, None)}, TypeError, r"targets\[1\] must be a Tensor, got NoneType"),
    ({"targets": Y[:1]}, ValueError, r"targets must be of as many samples as images, 2, got \[1\]"),
    ({"targets": Y.float()}, TypeError, r"targets must be of an integer dtype where it is \[B\]"),
    (
        {"targets": Y[:, None]},
        TypeError,
        r"targets must be floating where it is \[B, K\], soft labels, got torch.int64",
    ),
    ({"targets": X[:, 0, 1:]}, ValueError, r"targets must be masks \[2, 4, 5\] or .*got \[2, 3, 5\]"),
    ({"targets": [Y, X[..., 1:]]}, ValueError, r"targets\[1\] must be masks .*got \[2, 3, 4, 4\]"),
    ({"targets": X.to(torch.complex64)}, TypeError, "targets must be floating, bool, uint8 or a signed integer"),
    ({"targets": Y[0]}, ValueError, r"targets must be class indices \[B\], .*got \[\]"),
    ({"targets": X[..., None]}, ValueError, r"targets must be class indices \[B\], .*got \[2, 3, 4, 5, 1\]"),
    ({"targets": Y.to("meta")}, ValueError, r"targets must be on the device of images \((cpu|cuda:0)\), got meta"),
    ({"alpha": 0}, ValueError, "alpha must be finite and above 0, got 0"),
    ({"alpha": -1.0}, ValueError, "alpha must be finite and above 0, got -1.0"),
    ({"alpha": float("inf")}, ValueError, "alpha must be finite and above 0, got inf"),
    ({"alpha": "1"}, TypeError, r"alpha must be a number, got '1' \(str\)"),
    ({"per_sample": 1}, TypeError, r"per_sample must be a bool, got 1 \(int\)"),
    ({"num_classes": 0}, ValueError, "num_classes must be at least 1, got 0"),
    ({"num_classes": 2.0}, TypeError, r"num_classes must be an integer, got 2.0 \(float\)"),
    ({"generator": 3}, TypeError, "generator must be a torch.Generator or None, got int"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD, ids=[m for *_, m in BAD])
def test_bad_input_is_named(backend: Backend, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"images": X, "targets": Y} | changes
    for name, value in arguments.items():
        if isinstance(value, Tensor) and not value.is_meta:
            arguments[name] = value.to(backend.device)
        elif isinstance(value, (list, tuple)):
            arguments[name] = type(value)(v.to(backend.device) if isinstance(v, Tensor) else v for v in value)
    with pytest.raises(error, match=f"cutmix: {message}"):
        sod_ops.cutmix(**arguments)


def test_generator_on_another_device() -> None:
    with pytest.raises(ValueError, match=r"generator must be on the device of images \(meta\), got cpu"):
        sod_ops.cutmix(X.to("meta"), Y.to("meta"), generator=torch.Generator())


def test_class_indices_out_of_range() -> None:
    for labels in ([0, 3], [-1, 0]):
        with pytest.raises(ValueError, match="cutmix: targets must be class indices from 0 to 2"):
            sod_ops.cutmix(X, torch.tensor(labels), num_classes=3)


def test_operators_refuse_what_would_read_out_of_bounds() -> None:
    partner, boxes = torch.tensor([1, 0]), torch.tensor([[0, 0, 5, 4]] * 2)
    for operator in (torch.ops.sod_ops.cutmix, torch.ops.sod_ops.cutmix_backward):
        for arguments in (
            (X[0], partner, boxes),
            (X, partner + 1, boxes),
            (X, partner.int(), boxes),
            (X, partner[:1], boxes),
            (X, partner, boxes + 1),
            (X, partner, boxes - 1),
            (X, partner, boxes[:, :3]),
            (X[..., 1:-1], partner, boxes * 0),
        ):
            with pytest.raises(RuntimeError, match="cutmix"):
                operator(*arguments)

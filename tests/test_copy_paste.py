"""copy_paste on every backend: what is pasted, trimmed and dropped, in both forms, and its gradient."""

import pickle
from functools import partial
from typing import Any

import pytest
import torch
from cases import FLOATING, MAPS, MapCase
from conftest import Backend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import sod_ops
from sod_ops.ops.copy_paste import _select, copy_paste, paste
from sod_ops.reference.copy_paste import UNIT, blend_alpha, blend_weights, boxes_of, copy_paste_backward
from sod_ops.reference.copy_paste import copy_paste as reference

WITHOUT_KERNELS = ("cuda",)


def rectangles(samples: int, slots: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Masks of random rectangles, the last slot of each sample unused."""
    random = torch.Generator().manual_seed(seed)
    masks = torch.zeros(samples, slots, height, width, dtype=torch.bool)
    for n in range(samples):
        for i in range(slots - 1):
            y, x = (int(torch.randint(s - 3, (), generator=random)) for s in (height, width))
            h, w = (int(torch.randint(2, s // 2 + 2, (), generator=random)) for s in (height, width))
            masks[n, i, y : y + h, x : x + w] = True
    return masks


def loop(
    images: Tensor, masks: Tensor, partner: Tensor, chosen: Tensor, min_visible: float
) -> tuple[Tensor, list[list[Tensor]]]:
    """As public versions do it: a mask at a time."""
    pasted, kept = images.clone(), []
    for n in range(len(images)):
        other = int(partner[n])
        arrived = [masks[other, i] for i in range(masks.shape[1]) if chosen[n, i] and masks[other, i].any()]
        own = []
        for mask in masks[n]:
            trimmed = mask.clone()
            for new in arrived:
                trimmed &= ~new
            if trimmed.any() and trimmed.sum().item() >= min_visible * mask.sum().item():
                own.append(trimmed)
        for new in arrived:
            pasted[n][:, new] = images[other][:, new]
        kept.append(own + arrived)
    return pasted, kept


@pytest.mark.parametrize("min_visible", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16], ids=str)
def test_against_a_loop_over_masks(dtype: torch.dtype, min_visible: float) -> None:
    images, masks = (torch.rand(4, 3, 17, 23) * 255).to(dtype), rectangles(4, 6, 17, 23)
    partner, chosen = torch.tensor([2, 0, 3, 1]), torch.rand(4, 6) < 0.5
    pasted, together, boxes, visible, _ = reference(images, masks, partner, chosen, 0, min_visible)
    expected, kept = loop(images, masks, partner, chosen, min_visible)
    assert torch.equal(pasted, expected)
    for n in range(4):
        assert torch.equal(together[n][visible[n]], torch.stack(kept[n]))
        for mask, box in zip(kept[n], boxes[n][visible[n]].tolist(), strict=True):
            y, x = mask.nonzero(as_tuple=True)
            assert box == [x.min(), y.min(), x.max(), y.max()]
    assert not together[~visible].any()
    assert not boxes[~visible].any()


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 3.7, 50.0, 2000.0])
def test_weights_are_a_gaussian_in_whole_units(sigma: float) -> None:
    half = blend_weights(sigma)
    assert half[0] + 2 * sum(half[1:]) == UNIT
    assert min(half) >= 0
    t = torch.arange(len(half), dtype=torch.float64)
    exact = torch.exp(-0.5 * (t / sigma) ** 2)
    exact = exact / (2 * exact.sum() - 1)
    tails = torch.tensor(half).flip(0).cumsum(0).flip(0)[1:] / UNIT
    if len(half) > 1:
        torch.testing.assert_close(
            tails, exact.flip(0).cumsum(0).flip(0)[1:], rtol=0, atol=0.5 / UNIT, check_dtype=False
        )


def test_alpha_is_exact_in_float32() -> None:
    alpha = blend_alpha(rectangles(2, 3, 31, 29).any(1), 2.5)
    assert torch.equal(alpha.float().double(), alpha)
    assert torch.equal((alpha * UNIT**2).round(), alpha * UNIT**2)


def test_blended_bytes_are_rounded() -> None:
    images = torch.randint(256, (3, 3, 15, 14), dtype=torch.uint8)
    masks, partner = rectangles(3, 3, 15, 14), torch.tensor([1, 2, 0])
    mixed, *_, pasted = reference(images, masks, partner, torch.ones(3, 3, dtype=torch.bool), 1.5, 0.3)
    alpha = blend_alpha(pasted, 1.5)[:, None]
    exact = (1 - alpha) * images + alpha * images[partner]
    assert (mixed.double() - exact).abs().max() <= 0.5


def test_no_instance_to_paste_leaves_everything() -> None:
    images, masks = torch.rand(3, 2, 9, 8), rectangles(3, 4, 9, 8)
    images[0, 0, 0, 0] = float("nan")
    for blend in (0, 2):
        for some, probability in ((masks, 0.0), (torch.zeros_like(masks), 1.0)):
            found, together = copy_paste(images, some, probability=probability, blend_sigma=blend)
            torch.testing.assert_close(found, images, rtol=0, atol=0, equal_nan=True)
            assert torch.equal(together[:, :4], some)
            assert not together[:, 4:].any()
    one = copy_paste(images[:1], masks[:1], probability=1.0)
    assert torch.equal(one[1][:, :4], masks[:1])


def test_both_forms_agree() -> None:
    images, masks = torch.rand(3, 2, 12, 13), rectangles(3, 5, 12, 13)
    boxes, labels = boxes_of(masks)[0].float(), torch.arange(15).view(3, 5)
    counts = (4, 2, 4)
    for n, count in enumerate(counts):
        masks[n, count:] = False
    lists = [[value[n, :count] for n, count in enumerate(counts)] for value in (masks, boxes, labels)]
    lists[0] = tuple(lists[0])
    random = [torch.Generator().manual_seed(4) for _ in range(2)]
    padded = copy_paste(images, masks[:, :4], boxes[:, :4], labels[:, :4], generator=random[0])
    found = copy_paste(images, *lists, generator=random[1])
    assert torch.equal(found[0], padded[0])
    assert type(found[1]) is tuple
    assert type(found[2]) is list
    visible = padded[1].flatten(2).any(2)
    for listed, whole in zip(found[1:], padded[1:], strict=True):
        for n in range(3):
            assert torch.equal(listed[n], whole[n][visible[n]])
    assert (padded[3][~visible] == -1).all()
    assert len(copy_paste(images, masks, labels=labels)) == 3


def test_empty_lists_and_batches() -> None:
    images = torch.rand(2, 3, 6, 5)
    found = copy_paste(
        images, [torch.zeros(0, 6, 5, dtype=torch.bool)] * 2, labels=[torch.zeros(0, dtype=torch.long)] * 2
    )
    assert torch.equal(found[0], images)
    assert [len(m) for m in found[1]] == [0, 0]
    assert copy_paste(images, torch.zeros(2, 0, 6, 5, dtype=torch.bool))[1].shape == (2, 0, 6, 5)
    assert copy_paste(images[:0], torch.zeros(0, 3, 6, 5, dtype=torch.bool))[1].shape == (0, 6, 6, 5)
    nothing = copy_paste(images[:0], [], boxes=(), labels=[])
    assert nothing[0].shape == (0, 3, 6, 5)
    assert nothing[1:] == ([], (), [])


@pytest.mark.parametrize("sigma", [0.0, 0.8])
def test_backward_is_the_gradient(sigma: float) -> None:
    images = torch.rand(3, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    partner = torch.tensor([1, 2, 0])
    outputs = reference(images, rectangles(3, 3, 6, 7), partner, torch.ones(3, 3, dtype=torch.bool), sigma, 0.3)
    grad = torch.randn(3, 2, 6, 7, dtype=torch.float64)
    (expected,) = torch.autograd.grad(outputs[0], images, grad)
    torch.testing.assert_close(copy_paste_backward(grad, outputs[4], partner.argsort(), sigma), expected)


# ---- Kernels ----------------------------------------------------------------------------------------------------------


def specks(samples: int, slots: int, height: int, width: int) -> Tensor:
    """Masks of single pixels, of rectangles with holes, and in the last slot of nothing."""
    masks = torch.rand(samples, slots, height, width) < 0.1
    masks[:, ::2] = torch.rand(samples, (slots + 1) // 2, height, width) < 0.9
    masks[:, ::2, : height // 3] = False
    masks[:, -1:] = False
    return masks


def images_of(case: MapCase, dtype: torch.dtype, device: str) -> Tensor:
    if dtype in FLOATING:
        return case.build(dtype, device)
    return (case.build(torch.float32, device).nan_to_num() * 40).to(dtype)


def check(images: Tensor, masks: Tensor, sigma: float, min_visible: float, rtol: float = 0) -> None:
    """The definition's bits, whatever was pasted on whom; a mask's bytes may be any but 0."""
    samples, slots = masks.shape[:2]
    partner = torch.arange(samples, device=images.device).roll(1)
    chosen = (torch.rand(samples, slots) < 0.5).to(images.device)
    before = images.clone(), masks.clone()
    found = paste(images, masks, partner, chosen, sigma, min_visible)
    expected = reference(images, masks, partner, chosen, sigma, min_visible)
    torch.testing.assert_close(found[0], expected[0], rtol=rtol, atol=0, equal_nan=True)
    for a, e in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)
    torch.testing.assert_close(images, before[0], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(masks, before[1])


def cut_off(backend: Backend, dtype: torch.dtype) -> float:
    """Triton's interpreter cuts bfloat16 off where others round."""
    return 2**-7 if backend.interpreted and dtype == torch.bfloat16 else 0


@pytest.mark.parametrize("case", [case for case in MAPS if not case.large], ids=str)
def test_shapes_and_layouts(kernel_backend: Backend, case: MapCase) -> None:
    samples, _, height, width = case.shape
    masks = specks(samples, 2, height, width).to(kernel_backend.device)
    check(images_of(case, torch.float32, kernel_backend.device), masks, 0, 0.5)
    check(images_of(case, torch.uint8, kernel_backend.device), masks, 1.2, 0.5)


@pytest.mark.parametrize("sigma", [0, 1.2])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [*FLOATING, torch.uint8], ids=str)
def test_dtypes(kernel_backend: Backend, dtype: torch.dtype, layout: str, sigma: float) -> None:
    images = images_of(MapCase((2, 3, 11, 21), layout), dtype, kernel_backend.device)
    check(images, rectangles(2, 2, 11, 21).to(images.device), sigma, 0.7, cut_off(kernel_backend, dtype))


@pytest.mark.parametrize("min_visible", [0, 0.3, 1])
def test_what_is_hidden_is_dropped(kernel_backend: Backend, min_visible: float) -> None:
    """In masks of several runs and blocks, of which some are hidden."""
    images = torch.rand(2, 1, 40, 41, device=kernel_backend.device)
    check(images, rectangles(2, 4, 40, 41, seed=5).to(images.device), 0, min_visible)


def test_exactly_at_the_threshold(backend: Backend) -> None:
    """3 of 10 pixels are not below 0.3 of them, as they would be in float32."""
    masks = torch.zeros(2, 1, 1, 10, dtype=torch.bool, device=backend.device)
    masks[0], masks[1, ..., :7] = True, True
    images = torch.zeros(2, 1, 1, 10, device=backend.device)
    together, boxes = copy_paste(images, masks, torch.zeros(2, 1, 4), probability=1.0, min_visible=0.3)[1:]
    assert together[0, 0].sum() == 3
    assert boxes[0, 0].tolist() == [7, 0, 9, 0]


@pytest.mark.parametrize("layout", ["slots", "samples", "expanded", "crop", "transposed", "channels_last"])
def test_masks_in_slices(backend: Backend, layout: str) -> None:
    whole = specks(6, 4, 14, 12)
    masks = {
        "slots": whole[:3, 1:3],
        "samples": whole[::2, 2:],
        "expanded": whole[:1, :2].expand(3, -1, -1, -1),
        "crop": whole[:3, :2, 1:-1, 2:],
        "transposed": whole[:3, :2].transpose(2, 3),
        "channels_last": whole[:3, :2].contiguous(memory_format=torch.channels_last),
    }[layout]
    images = torch.rand(3, 2, *masks.shape[2:], device=backend.device)
    check(images, masks.to(backend.device), 0, 0.5)


def test_any_byte_but_zero_is_true(kernel_backend: Backend) -> None:
    masks = rectangles(2, 3, 9, 10)
    odd = (masks.byte() * 254).view(torch.bool).to(kernel_backend.device)
    images = torch.rand(2, 1, 9, 10, device=kernel_backend.device)
    arguments = torch.tensor([1, 0], device=images.device), torch.ones(2, 3, dtype=torch.bool, device=images.device)
    for a, e in zip(
        paste(images, odd, *arguments, 0.8, 0.5),
        paste(images, masks.to(images.device), *arguments, 0.8, 0.5),
        strict=True,
    ):
        assert torch.equal(a, e)


@pytest.mark.parametrize("sigma", [0, 2.0])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("width", [224, 221])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=str)
def test_past_the_caches(dtype: torch.dtype, width: int, layout: torch.memory_format, sigma: float) -> None:
    """So large outputs that they are written past the caches, in runs that fill registers or don't."""
    images = (torch.rand(12, 3, 224, width) * 255).to(dtype).to(memory_format=layout)
    masks = specks(12, 8, 224, width)
    masks[:, 2, :, 50:] = False
    with sod_ops.use_backend("cpu"):
        check(images, masks, sigma, 0.5)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    shape=st.tuples(st.integers(0, 4), st.integers(1, 4), st.integers(1, 40), st.integers(1, 90)),
    slots=st.integers(0, 5),
    layout=st.sampled_from(["contiguous", "channels_last", "channel_slice", "channels_last_slice", "crop"]),
    dtype=st.sampled_from([*FLOATING, torch.uint8]),
    sigma=st.sampled_from([0, 0.1, 1, 4.7, 60]),
    min_visible=st.sampled_from([0, 0.4, 1]),
)
def test_any_shape(
    shape: tuple[int, int, int, int], slots: int, layout: str, dtype: torch.dtype, sigma: float, min_visible: float
) -> None:
    images = images_of(MapCase(shape, layout), dtype, "cpu")
    with sod_ops.use_backend("cpu"):
        check(images, specks(shape[0], slots, *shape[2:]), sigma, min_visible)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "channel_slice", "channels_last_slice"])
def test_memory_format_is_kept(kernel_backend: Backend, layout: str) -> None:
    images = MapCase((2, 3, 5, 6), layout).build(torch.float32, kernel_backend.device)
    masks = rectangles(2, 2, 5, 6).to(images.device)
    pasted, together = copy_paste(images, masks)
    assert pasted.is_contiguous() or pasted.is_contiguous(memory_format=torch.channels_last)
    assert together.is_contiguous()
    if layout in ("contiguous", "channels_last"):
        assert pasted.stride() == images.stride()


def test_infinities_stay_where_they_are(backend: Backend) -> None:
    images = torch.rand(2, 1, 3, 30, device=backend.device)
    images[0, ..., 2], images[1, ..., 3], images[0, ..., 25], images[1, ..., 26] = 4 * [float("inf")]
    masks = torch.zeros(2, 1, 3, 30, dtype=torch.bool, device=backend.device)
    masks[1, ..., 20:] = True
    mixed = copy_paste(images, masks, probability=1.0, blend_sigma=0.6)[0]
    assert mixed[0].isinf().nonzero()[:, 2].unique().tolist() == [2, 26]
    assert torch.equal(mixed[1], images[1])


def test_one_state_of_the_generator_gives_one_result(backend: Backend) -> None:
    images, masks = torch.rand(3, 2, 9, 7, device=backend.device), rectangles(3, 3, 9, 7).to(backend.device)
    boxes, labels = boxes_of(masks)[0].float(), torch.arange(9, device=backend.device).view(3, 3)

    def run(*given: Any) -> list[Tensor]:
        random = torch.Generator(backend.device).manual_seed(0)
        results = copy_paste(images, *given, blend_sigma=0.7, generator=random)
        return [t for result in results for t in (result if isinstance(result, list) else [result])]

    forms = (masks, boxes, labels), tuple(map(list, (masks, boxes, labels)))
    found = [run(*form) for form in forms]
    with sod_ops.use_backend("reference"):
        expected = [run(*form) for form in forms]
    for a, e in zip(found, expected, strict=True):
        for tensors in zip(a, e, strict=True):
            torch.testing.assert_close(*tensors, rtol=0, atol=0)
    torch.manual_seed(7)
    first = copy_paste(images, masks)
    torch.manual_seed(7)
    assert all(torch.equal(a, e) for a, e in zip(copy_paste(images, masks), first, strict=True))


def test_batches_of_one_or_none(backend: Backend) -> None:
    images, masks = torch.rand(1, 2, 9, 8, device=backend.device), rectangles(1, 3, 9, 8).to(backend.device)
    for blend in (0, 1):
        pasted, together, labels = copy_paste(
            images, masks, labels=masks[:, :, 0, 0].long(), probability=1.0, blend_sigma=blend
        )
        assert torch.equal(pasted, images)
        assert torch.equal(together, torch.cat([masks, torch.zeros_like(masks)], 1))
        assert (labels[:, 2:] == -1).all()
        assert copy_paste(images[:0], masks[:0], blend_sigma=blend)[1].shape == (0, 6, 9, 8)
        pasted, together, boxes = copy_paste(
            images, masks[:, :0], torch.zeros(1, 0, 4, device=images.device), blend_sigma=blend
        )
        assert torch.equal(pasted, images)
        assert together.shape == (1, 0, 9, 8)
        assert boxes.shape == (1, 0, 4)


# ---- Gradients --------------------------------------------------------------------------------------------------------


def given_instances(device: str, samples: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    masks, chosen = rectangles(samples, 2, height, width), torch.rand(samples, 2) < 0.9
    return masks.to(device), torch.arange(samples, device=device).roll(1), chosen.to(device)


@pytest.mark.parametrize(("layout", "sigma"), [("contiguous", 0), ("contiguous", 0.8), ("channels_last", 0.8)])
def test_gradcheck(backend: Backend, layout: str, sigma: float) -> None:
    images = MapCase((2, 2, 4, 5), layout).build(torch.float64, backend.device).requires_grad_()
    masks, partner, chosen = given_instances(backend.device, 2, 4, 5)

    def function(images: Tensor) -> Tensor:
        return paste(images, masks, partner, chosen, sigma, 0.3)[0]

    assert torch.autograd.gradcheck(function, images, fast_mode=backend.interpreted)
    assert torch.autograd.gradgradcheck(function, images, fast_mode=backend.interpreted)


@pytest.mark.parametrize("sigma", [0, 1.1])
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last_slice"])
def test_gradients(kernel_backend: Backend, layout: str, dtype: torch.dtype, sigma: float) -> None:
    """The largest sum has two terms: plain PyTorch, which adds the same two, gives the same bits."""
    images = MapCase((3, 3, 7, 21), layout).build(dtype, kernel_backend.device)
    masks, partner, chosen = given_instances(kernel_backend.device, 3, 7, 21)
    grad = torch.randn(images.shape, device=images.device).to(dtype)
    leaf = images.detach().requires_grad_()
    outputs = paste(leaf, masks, partner, chosen, sigma, 0.3)
    outputs[0].backward(grad)
    assert not any(output.requires_grad for output in outputs[1:])
    expected = copy_paste_backward(grad, outputs[4], partner.argsort(), sigma)
    torch.testing.assert_close(leaf.grad, expected, rtol=cut_off(kernel_backend, dtype), atol=0)


def test_func_transforms(backend: Backend) -> None:
    images = torch.rand(3, 2, 6, 5, dtype=torch.float64, device=backend.device)
    masks, partner, chosen = given_instances(backend.device, 3, 6, 5)

    def total(images: Tensor) -> Tensor:
        return paste(images, masks, partner, chosen, 0.5, 0.3)[0].square().sum()

    leaf = images.clone().requires_grad_()
    (expected,) = torch.autograd.grad(total(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(total)(images), expected)


# ---- PyTorch's other parts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["channels_last", "channel_slice"])
def test_operators_pass_opcheck(kernel_backend: Backend, layout: str) -> None:
    kernels = _select(kernel_backend.device)
    images = MapCase((2, 3, 5, 4), layout).build(torch.float32, kernel_backend.device)
    masks, partner, chosen = given_instances(kernel_backend.device, 2, 5, 4)
    torch.library.opcheck(kernels.forward, (images.requires_grad_(), masks, partner, chosen, 0.5, 0.3))
    torch.library.opcheck(kernels.backward, (images.detach(), masks.any(1), partner, 0.5))


def test_compile(backend: Backend) -> None:
    """The padded form, with PyTorch's default generator: what is drawn is that of eager mode."""
    torch._dynamo.reset()
    function = partial(copy_paste, blend_sigma=0.6)
    compiled = torch.compile(function, fullgraph=True, dynamic=False, backend="aot_eager")
    images = torch.rand(2, 3, 8, 7, device=backend.device, requires_grad=True)
    masks = rectangles(2, 3, 8, 7).to(backend.device)
    boxes, labels = boxes_of(masks)[0], torch.ones(2, 3, device=backend.device)
    results = []
    for call in (compiled, function):
        torch.manual_seed(0)
        pasted, *rest = call(images, masks, boxes, labels)
        results.append((pasted.detach(), *rest, *torch.autograd.grad(pasted.square().sum(), images)))
    for a, e in zip(*results, strict=True):
        torch.testing.assert_close(a, e)


def test_deterministic(backend: Backend) -> None:
    images = torch.rand(3, 2, 9, 8, device=backend.device, requires_grad=True)
    masks = rectangles(3, 4, 9, 8).to(backend.device)
    torch.use_deterministic_algorithms(True)
    try:
        found = [copy_paste(images, masks, blend_sigma=1, generator=torch.Generator(images.device)) for _ in range(2)]
        gradients = [torch.autograd.grad(f[0].square().sum(), images)[0] for f in found]
    finally:
        torch.use_deterministic_algorithms(False)
    for pair in (*zip(*found, strict=True), gradients):
        assert torch.equal(*pair)


# ---- The class --------------------------------------------------------------------------------------------------------


class Samples(torch.utils.data.Dataset[tuple[Tensor, ...]]):
    """Sample i has i % 3 instances: rows of the image, which is i all over; the label is i."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> tuple[Tensor, ...]:
        masks = torch.zeros(i % 3, 12, 10, dtype=torch.bool)
        for k in range(i % 3):
            masks[k, 3 * k : 3 * k + 2] = True
        return torch.full((1, 12, 10), i, dtype=torch.uint8), masks, torch.full((i % 3,), i)


class Collate:
    def __init__(self) -> None:
        self.paste = sod_ops.CopyPaste(probability=1.0)

    def __call__(self, samples: list[Any]) -> tuple[Any, ...]:
        images, masks, labels = zip(*samples, strict=True)
        results: tuple[Any, ...] = self.paste(torch.stack(images), masks, labels=labels)
        return results


def test_in_a_data_loader() -> None:
    loader = torch.utils.data.DataLoader(Samples(), 4, num_workers=1, collate_fn=Collate())
    epochs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        epochs.append(list(loader))
    for images, masks, labels in epochs[0]:
        for image, some, label in zip(images, masks, labels, strict=True):
            for mask, k in zip(some, label.tolist(), strict=True):
                assert (image[0][mask] == k).all()
    assert all(torch.equal(a[0], b[0]) for a, b in zip(epochs[0], epochs[1], strict=True))
    assert not all(torch.equal(a[0], b[0]) for a, b in zip(epochs[0], epochs[2], strict=True))


def test_class_keeps_its_options() -> None:
    paster = pickle.loads(pickle.dumps(sod_ops.CopyPaste(0.7, blend_sigma=1.5, min_visible=0.6)))
    assert repr(paster) == "CopyPaste(probability=0.7, blend_sigma=1.5, min_visible=0.6)"
    images, masks, boxes, labels = (
        torch.rand(4, 3, 8, 8),
        rectangles(4, 3, 8, 8),
        torch.zeros(4, 3, 4),
        torch.ones(4, 3),
    )
    found = paster(images, masks, boxes, labels, torch.Generator().manual_seed(3))
    options = {"probability": 0.7, "blend_sigma": 1.5, "min_visible": 0.6}
    expected = copy_paste(images, masks, boxes, labels, **options, generator=torch.Generator().manual_seed(3))
    assert all(torch.equal(a, e) for a, e in zip(found, expected, strict=True))
    assert sod_ops.CopyPaste is sod_ops.nn.CopyPaste
    with pytest.raises(ValueError, match=r"CopyPaste: probability must be in \[0, 1\], got 2"):
        sod_ops.CopyPaste(2)


# ---- Bad input --------------------------------------------------------------------------------------------------------

X, M = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 4, 5, dtype=torch.bool)
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"images": X[0]}, ValueError, r"images must be of shape \[B, C, H, W\]"),
    ({"masks": M.byte()}, TypeError, "masks must be bool, got torch.uint8"),
    ({"masks": M[0]}, ValueError, r"masks must be of shape \[2, M, 4, 5\], got \[3, 4, 5\]"),
    ({"masks": M[..., 1:]}, ValueError, r"masks must be of shape \[2, M, 4, 5\], got \[2, 3, 4, 4\]"),
    ({"masks": None}, TypeError, "masks must be a Tensor, got NoneType"),
    ({"masks": [M[0]]}, ValueError, "masks must be a list of as many tensors as images, 2, got 1"),
    ({"masks": [M[0], M[0, 0]]}, ValueError, r"masks\[1\] must be of shape \[M, 4, 5\], got \[4, 5\]"),
    ({"masks": [M[0], None]}, TypeError, r"masks\[1\] must be a Tensor, got NoneType"),
    ({"boxes": torch.zeros(2, 2, 4)}, ValueError, r"boxes must be of shape \[2, 3, 4\] as masks are, got \[2, 2, 4\]"),
    ({"boxes": [torch.zeros(3, 4)] * 2}, TypeError, "boxes must be a Tensor, as masks are, got list"),
    ({"labels": torch.zeros(2, 3, dtype=torch.uint8)}, TypeError, "labels must be floating or a signed integer"),
    ({"labels": torch.zeros(6)}, ValueError, r"labels must be of shape \[2, 3\] as masks are, got \[6\]"),
    ({"masks": list(M), "labels": torch.zeros(2, 3)}, TypeError, "labels must be a list of tensors, as masks are"),
    (
        {"masks": list(M), "labels": [torch.zeros(3), torch.zeros(3).long()]},
        TypeError,
        r"labels\[1\] must be of one dtype",
    ),
    ({"probability": 1.5}, ValueError, r"probability must be in \[0, 1\], got 1.5"),
    ({"probability": "1"}, TypeError, "probability must be a number"),
    ({"min_visible": -0.1}, ValueError, r"min_visible must be in \[0, 1\], got -0.1"),
    ({"blend_sigma": -1}, ValueError, "blend_sigma must be finite and 0 or more, got -1"),
    ({"blend_sigma": 1001}, ValueError, "blend_sigma must be at most 1000 pixels, got 1001"),
    ({"masks": M.to("meta")}, ValueError, r"masks must be on the device of images \(cpu\), got meta"),
    ({"generator": 1}, TypeError, "generator must be a torch.Generator or None, got int"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD, ids=[m for *_, m in BAD])
def test_bad_input_is_named(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"copy_paste: {message}"):
        copy_paste(**({"images": X, "masks": M} | changes))


def test_operators_refuse_what_would_read_out_of_bounds() -> None:
    partner, chosen = torch.tensor([1, 0]), torch.zeros(2, 3, dtype=torch.bool)
    for arguments in (
        (X[0], M, partner, chosen, 0.0, 0.3),
        (X.long(), M, partner, chosen, 0.0, 0.3),
        (X, M.byte(), partner, chosen, 0.0, 0.3),
        (X, M[..., 1:].contiguous(), partner, chosen, 0.0, 0.3),
        (X, M[:1], partner, chosen, 0.0, 0.3),
        (X, M.transpose(2, 3).contiguous().transpose(2, 3), partner, chosen, 0.0, 0.3),
        (X, M, partner + 1, chosen, 0.0, 0.3),
        (X, M, partner.int(), chosen, 0.0, 0.3),
        (X, M, partner, chosen[:, :2], 0.0, 0.3),
        (X, M, partner, chosen.byte(), 0.0, 0.3),
        (X, M, partner, chosen, -1.0, 0.3),
        (X, M, partner, chosen, float("inf"), 0.3),
        (X, M, partner, chosen, 0.0, 2.0),
        (X[..., 1:-1], M[..., 1:-1].contiguous(), partner, chosen, 0.0, 0.3),
    ):
        with pytest.raises(RuntimeError, match="copy_paste"):
            torch.ops.sod_ops.copy_paste(*arguments)
    for arguments in (
        (X, M, partner, 0.0),
        (X, M[:, 0, 1:], partner, 0.0),
        (X, M[:, 0], partner, 0.0),  # not contiguous
        (X, M[:, 0].contiguous(), partner - 1, 0.0),
        (X.byte(), M[:, 0].contiguous(), partner, 0.0),
    ):
        with pytest.raises(RuntimeError, match="copy_paste"):
            torch.ops.sod_ops.copy_paste_backward(*arguments)

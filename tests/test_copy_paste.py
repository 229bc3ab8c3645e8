"""copy_paste: what is pasted, trimmed and dropped, in both forms."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sod_ops.ops.copy_paste import copy_paste
from sod_ops.reference.copy_paste import UNIT, blend_alpha, blend_weights, boxes_of, copy_paste_backward
from sod_ops.reference.copy_paste import copy_paste as reference


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
        for given, probability in ((masks, 0.0), (torch.zeros_like(masks), 1.0)):
            found, together = copy_paste(images, given, probability=probability, blend_sigma=blend)
            torch.testing.assert_close(found, images, rtol=0, atol=0, equal_nan=True)
            assert torch.equal(together[:, :4], given)
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


@pytest.mark.parametrize("sigma", [0.0, 0.8])
def test_backward_is_the_gradient(sigma: float) -> None:
    images = torch.rand(3, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    partner = torch.tensor([1, 2, 0])
    outputs = reference(images, rectangles(3, 3, 6, 7), partner, torch.ones(3, 3, dtype=torch.bool), sigma, 0.3)
    grad = torch.randn(3, 2, 6, 7, dtype=torch.float64)
    (expected,) = torch.autograd.grad(outputs[0], images, grad)
    torch.testing.assert_close(copy_paste_backward(grad, outputs[4], partner.argsort(), sigma), expected)


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
    ({"generator": 1}, TypeError, "generator must be a torch.Generator or None, got int"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD, ids=[m for *_, m in BAD])
def test_bad_input_is_named(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"copy_paste: {message}"):
        copy_paste(**({"images": X, "masks": M} | changes))

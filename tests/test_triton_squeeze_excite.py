"""The launches of sod_ops.triton.squeeze_excite: blocks that sizes do not fill, sums in parts, both ways to z2, dm."""

import math

import pytest
import torch
from torch import Tensor

from sod_ops.reference.squeeze_excite import ACTIVATIONS, GATES
from sod_ops.reference.squeeze_excite import squeeze_excite as reference
from sod_ops.triton import squeeze_excite as op
from sod_ops.triton._planes import plan_walk

pytestmark = pytest.mark.gpu  # its kernels run on a GPU where there is one

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LAYOUTS = {"planar": torch.contiguous_format, "interleaved": torch.channels_last}
ACTIVATION, GATE = "silu", "sigmoid"

# N, C, H, W and R; None: no reduction.
SHAPES = {
    "one element": ((1, 1, 1, 1), 1),
    "two tiles of channels, the last not full": ((3, 70, 5, 5), 9),
    "pixels in parts, the last not full": ((1, 3, 70, 75), 2),
    "more channels than one product takes at a time": ((5, 130, 2, 2), 9),
    "more samples and hidden units than a tile of weights takes at a time": ((17, 40, 2, 2), 33),
    "no reduction": ((3, 40, 3, 3), None),
    "no reduction, pixels in parts": ((1, 5, 40, 40), None),
    "nothing to squeeze to": ((2, 4, 3, 3), 0),
}


def arguments(shape: tuple[int, int, int, int], reduced: int | None, layout: str) -> tuple[Tensor | None, ...]:
    generator = torch.Generator().manual_seed(0)
    channels, hidden = shape[1], shape[1] if reduced is None else reduced

    def random(*size: int) -> Tensor:
        return torch.randn(*size, dtype=torch.float64, generator=generator).to(DEVICE)

    x = random(*shape).contiguous(memory_format=LAYOUTS[layout])
    expand_weight, expand_bias = random(channels, hidden) / max(hidden, 1) ** 0.5, random(channels)
    if reduced is None:
        return x, None, None, expand_weight, expand_bias
    return x, random(reduced, channels), random(reduced), expand_weight, expand_bias


def check(inputs: tuple[Tensor | None, ...]) -> None:
    """Forward, statistics and backward against the reference."""
    indices = list(ACTIVATIONS).index(ACTIVATION), list(GATES).index(GATE)
    y, statistics = op.squeeze_excite(*inputs, *indices)
    leaves = [None if tensor is None else tensor.clone().requires_grad_() for tensor in inputs]
    expected = reference(*leaves, activation=ACTIVATION, gate=GATE)
    tolerance = {"rtol": 1e-11, "atol": 1e-13}  # sums of a few thousand terms of size 1 in another order
    torch.testing.assert_close(y, expected.detach(), **tolerance)
    assert y.stride() == torch.empty_like(inputs[0]).stride()

    x, reduce_weight, reduce_bias, expand_weight, expand_bias = inputs
    m = x.mean((2, 3))
    z1 = m[:, :0] if reduce_weight is None else m @ reduce_weight.T + reduce_bias
    h = m if reduce_weight is None else ACTIVATIONS[ACTIVATION](z1)
    torch.testing.assert_close(statistics, torch.cat([m, z1, h @ expand_weight.T + expand_bias], 1), **tolerance)

    grad_output = torch.empty_like(x).copy_(torch.linspace(-1, 2, x.numel(), dtype=x.dtype).view(x.shape))
    gradients = op.squeeze_excite_backward(grad_output, x, reduce_weight, expand_weight, statistics, *indices)
    wanted = [i for i, leaf in enumerate(leaves) if leaf is not None]
    for i, gradient in zip(
        wanted, torch.autograd.grad(expected, [leaves[i] for i in wanted], grad_output), strict=True
    ):
        torch.testing.assert_close(gradients[i], gradient, **tolerance)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", SHAPES)
def test_against_reference(name: str, layout: str) -> None:
    shape, reduced = SHAPES[name]
    inputs = arguments(shape, reduced, layout)
    if "parts" in name:
        assert plan_walk(inputs[0].shape, (inputs[0].stride(),), 8).parts > 1
    check(inputs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_separate_launches(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large weights: z2 and dm by launches of their own. Small ones here, with the limit lowered."""
    monkeypatch.setattr(op, "_REREAD_LIMIT", 0)
    op._plan.cache_clear()
    try:
        inputs = arguments((5, 20, 3, 3), 9, layout)
        check(inputs)
        stride = inputs[0].stride()
        assert op._plan(inputs[0].shape, (stride, stride), 8, 9, True).excite is not None
    finally:
        op._plan.cache_clear()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("item_size", [2, 4, 8])
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 1), (8, 256, 56, 56), (32, 2048, 7, 7), (8, 3, 320, 320), (1, 1, 4096, 4096), (2, 5, 1 << 16, 1 << 15)],
    ids=str,
)
def test_walk_covers_the_map_once(shape: tuple[int, int, int, int], item_size: int, layout: str) -> None:
    samples, channels, height, width = shape
    pixels = height * width
    x = torch.empty(shape, device="meta").to(memory_format=LAYOUTS[layout])
    walk = plan_walk(x.shape, (x.stride(),), item_size)
    block_c, block_p, alignment = (walk.constants[name] for name in ("BLOCK_C", "BLOCK_P", "ALIGNMENT"))
    assert walk.grid == (samples * math.ceil(channels / block_c) * walk.parts,)
    part_pixels = walk.part_blocks * block_p
    assert (walk.parts - 1) * part_pixels < pixels <= walk.parts * part_pixels
    assert all(step % alignment == 0 for step in walk.steps)
    assert (channels if walk.constants["INTERLEAVED"] else pixels) % alignment == 0


@pytest.mark.parametrize("strides", [(60, 20, 4, 2), (60, 1, 12, 1), (60, 2, 15, 3)], ids=str)
def test_walk_refuses_other_layouts(strides: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="is not planar"):
        plan_walk(torch.Size((2, 3, 4, 5)), ((60, 20, 5, 1), strides), 4)

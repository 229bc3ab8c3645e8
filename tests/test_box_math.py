"""csrc/math on plain numbers, which is what a CUDA kernel runs, against the vectorised CPU operators and PyTorch."""

from collections.abc import Sequence

import pytest
import torch
from box_cases import DEGENERATE, PAIRS, pairs_of, random_boxes
from plain_math import Ask, compile_program
from torch import Tensor

import sod_ops
from sod_ops.reference.box_iou_loss import LOSSES


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Ask:
    return compile_program("box_math", tmp_path_factory.mktemp("box_math"))


def dense_boxes(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """One box moved and stretched over another in small steps, from far apart to nested, and all special cases."""
    steps = torch.linspace(-30, 30, 31, dtype=torch.float64)
    dx, dy, dw = (
        t.flatten() for t in torch.meshgrid(steps, steps, torch.tensor([-19.5, -7, 0, 11, 300]).double(), indexing="ij")
    )
    moved = torch.stack([dx, dy, dx + 20 + dw, dy + 20 + dw / 3], 1)
    fixed = torch.tensor([0.0, 0.0, 20.0, 20.0], dtype=torch.float64).expand(len(moved), 4)
    tables = [pairs_of(table, torch.float64) for table in (PAIRS, DEGENERATE)]
    many = random_boxes(2000, torch.float64), random_boxes(2000, torch.float64)
    first, second = (torch.cat(parts).to(dtype) for parts in zip((moved, fixed), *tables, many, strict=True))
    return first, second


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_plain_numbers_give_what_vectors_give(ask: Ask, loss: str, dtype: torch.dtype) -> None:
    boxes = dense_boxes(dtype)
    grad = torch.linspace(0.5, 1.5, len(boxes[0]), dtype=dtype)
    leaves = [b.requires_grad_() for b in boxes]
    with sod_ops.use_backend("cpu"):
        value = getattr(sod_ops, loss)(*leaves)
    gradients = torch.autograd.grad(value, leaves, grad)
    vectors = torch.cat([value.detach()[:, None], *gradients], 1)

    assert_plain_numbers_give(ask, vectors, str(list(LOSSES).index(loss)), leaves, grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_plain_numbers_give_what_vectors_give_for_all_pairs(ask: Ask, dtype: torch.dtype) -> None:
    """Each pair as a matrix of one row and one column: gradients by one box, without a sum over others."""
    boxes = [b[::7] for b in dense_boxes(dtype)]
    grad = torch.linspace(0.5, 1.5, len(boxes[0]), dtype=dtype)
    rows = []
    for first, second, weight in zip(*boxes, grad, strict=True):
        leaves = [b[None].requires_grad_() for b in (first, second)]
        with sod_ops.use_backend("cpu"):
            value = sod_ops.complete_box_iou(*leaves)
        rows.append(torch.cat([value.detach(), *torch.autograd.grad(value, leaves, weight.view(1, 1))], 1))
    assert_plain_numbers_give(ask, torch.cat(rows), "p", boxes, grad)


def assert_plain_numbers_give(ask: Ask, vectors: Tensor, what: str, boxes: Sequence[Tensor], grad: Tensor) -> None:
    eps = torch.full_like(grad, 1e-7)
    rows = torch.cat([*(b.detach() for b in boxes), eps[:, None], grad[:, None]], 1).double().tolist()
    plain = ask(grad.dtype, what, rows)
    # Vectors fuse products with sums in the arctangent's polynomial and in gradients, plain numbers here do not: some units
    # in the last place of the terms that a number is the sum of, of which the row's largest is one.
    scale = plain.abs().amax(1, keepdim=True).clamp_min(1)
    assert ((plain - vectors).abs() / scale).max() <= 8 * torch.finfo(grad.dtype).eps


@pytest.mark.parametrize(("dtype", "units"), [(torch.float32, 1.5), (torch.float64, 2.0)], ids=str)
def test_arctangent(ask: Ask, dtype: torch.dtype, units: float) -> None:
    """Within two units in the last place of atan, over all magnitudes and signs; at its ends exactly."""
    spread = torch.cat([torch.linspace(0, 3, 3001), torch.logspace(-30, 30, 1201)]).to(dtype)
    y = torch.cat([spread, -spread])
    x = torch.ones_like(y)
    x[::2] = -3.0
    found = ask(dtype, "a", torch.stack([y, x], 1).double().tolist())[:, 0].double()
    exact = torch.atan(y.double() / x.double())
    # float64 is held to PyTorch's arctangent, which is itself off by up to one unit.
    assert ((found - exact).abs() <= units * torch.finfo(dtype).eps * exact.abs()).all()
    ends = ask(dtype, "a", [(1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (float("inf"), 2.0), (2.0, float("inf")), (0.0, 0.0)])[
        :, 0
    ]
    half_pi = torch.tensor(torch.pi / 2, dtype=dtype)
    assert ends[:5].tolist() == [half_pi, -half_pi, 0.0, half_pi, 0.0]
    assert ends[5].isnan()

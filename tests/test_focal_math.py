"""csrc/math/focal_loss.h on plain numbers, which is what a CUDA kernel runs, against the CPU's vectors and float64."""

import pytest
import torch
from plain_math import Ask, compile_program
from torch import Tensor

import sod_ops
from sod_ops.reference.sigmoid_focal_loss import sigmoid_focal_loss as reference

GAMMAS = [0.0, 0.5, 1.0, 1.7, 2.0, 5.0]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Ask:
    return compile_program("focal_math", tmp_path_factory.mktemp("focal_math"))


@pytest.mark.parametrize(("dtype", "units"), [(torch.float32, 1.5), (torch.float64, 1.5)], ids=str)
def test_logarithm(ask: Ask, dtype: torch.dtype, units: float) -> None:
    """log(1 + e) over the whole of [0, 1], down to subnormal numbers, relative to itself."""
    e = torch.cat([torch.linspace(0, 1, 20001), torch.logspace(-40, 0, 2001)]).double().clamp(0, 1).to(dtype)
    found = ask(dtype, "l", e[:, None].double().tolist())[:, 0].double()
    exact = torch.log1p(e.double())  # itself off by up to one unit of float64
    assert ((found - exact).abs() <= units * torch.finfo(dtype).eps * exact + torch.finfo(dtype).tiny).all()


def grid(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Logits from -110 to 110, closely around 0, and targets hard and soft, all with all."""
    fine = torch.linspace(-20, 20, 1601)
    logits = torch.cat([fine, torch.linspace(-110, 110, 441), torch.logspace(-30, 0, 61), -torch.logspace(-30, 0, 61)])
    targets = torch.tensor([0.0, 1.0, 0.5, 0.1, 0.95])
    x, y = torch.meshgrid(logits.to(dtype), targets.to(dtype), indexing="ij")
    return x.flatten(), y.flatten()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_sigmoid_on_plain_numbers_gives_what_vectors_give(ask: Ask, gamma: float, dtype: torch.dtype) -> None:
    x, y = grid(dtype)
    leaf = x.clone().requires_grad_()
    with sod_ops.use_backend("cpu"):
        loss = sod_ops.sigmoid_focal_loss(leaf, y, 0.25, gamma)
    vectors = torch.stack([loss.detach(), *torch.autograd.grad(loss.sum(), leaf)], 1).double()
    options = torch.tensor([0.25, 0.75, gamma], dtype=torch.float64).expand(len(x), 3)
    plain = ask(dtype, "s", torch.cat([x[:, None], y[:, None], options], 1).double().tolist()).double()

    exact_leaf = x.double().requires_grad_()
    exact_loss = reference(exact_leaf, y.double(), 0.25, gamma)
    exact = torch.stack([exact_loss.detach(), *torch.autograd.grad(exact_loss.sum(), exact_leaf)], 1)
    # Each number relative to itself, and the derivative also to the loss: its two terms cancel at soft targets. The power's
    # error is that of its logarithm times gamma.
    scale = torch.stack([exact[:, 0], exact.abs().amax(1)], 1)
    allowed = torch.finfo(dtype).eps * (8 + (90 * gamma if gamma not in (0, 1, 2) else 0)) * scale
    allowed += torch.finfo(dtype).tiny
    assert ((plain - vectors).abs() <= allowed).all()
    if dtype == torch.float32:  # the reference in float64 is no better than ours in float64
        assert ((plain - exact).abs() <= allowed).all()
        assert ((vectors - exact).abs() <= allowed).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_softmax_on_plain_numbers_gives_what_vectors_give(ask: Ask, gamma: float, dtype: torch.dtype) -> None:
    """Two classes: the target's logit from far below the other to far above it."""
    fine, small = torch.linspace(-20, 20, 1601), torch.logspace(-30, 0, 61)
    z = torch.cat([fine, torch.linspace(-110, 85, 391), small, -small]).to(dtype)
    leaf = torch.stack([z, torch.zeros_like(z)], 1).requires_grad_()
    targets = torch.zeros(len(z), dtype=torch.int64)
    with sod_ops.use_backend("cpu"):
        loss = sod_ops.softmax_focal_loss(leaf, targets, 0.25, gamma, reduction="none")
    vectors = torch.stack([loss.detach(), -torch.autograd.grad(loss.sum(), leaf)[0][:, 0]], 1).double()
    largest = z.clamp_min(0)
    options = torch.tensor([0.25, gamma], dtype=torch.float64).expand(len(z), 2)
    others = torch.exp(-largest.double())
    numbers = torch.cat([largest.double()[:, None], z.double()[:, None], others[:, None], options], 1)
    plain = ask(dtype, "m", numbers.tolist()).double()

    # Two classes are the sigmoid form, whose reference keeps the digits of a small loss.
    exact_leaf = z.double().requires_grad_()
    exact_loss = reference(exact_leaf, torch.ones(len(z), dtype=torch.float64), 0.25, gamma)
    exact = torch.stack([exact_loss.detach(), -torch.autograd.grad(exact_loss.sum(), exact_leaf)[0]], 1)
    # Each number relative to itself; the power's error is that of its logarithm times gamma.
    allowed = torch.finfo(dtype).eps * (8 + (90 * gamma if gamma not in (0, 1, 2) else 0)) * exact.abs()
    allowed += torch.finfo(dtype).tiny
    assert ((plain - vectors).abs() <= allowed).all()
    if dtype == torch.float32:  # the reference in float64 is no better than ours in float64
        assert ((plain - exact).abs() <= allowed).all()
        assert ((vectors - exact).abs() <= allowed).all()

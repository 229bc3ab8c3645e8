"""The Triton arctangent against PyTorch's, over all magnitudes and signs."""
# ruff: noqa: N803 (compile-time constants in capitals, as everywhere in Triton)

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from sod_ops.triton.arctangent import arctangent

pytestmark = pytest.mark.gpu  # its kernels run on a GPU where there is one

BLOCK = 1024


@triton.jit
def arctangent_kernel(y, x, angle, count, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    value = arctangent(tl.load(y + i, mask=inside, other=1.0), tl.load(x + i, mask=inside, other=1.0))
    tl.store(angle + i, value, mask=inside)


def run(y: Tensor, x: Tensor) -> Tensor:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    y, x = y.to(device), x.to(device)
    angle = torch.empty_like(y)
    arctangent_kernel[(triton.cdiv(y.numel(), BLOCK),)](y, x, angle, y.numel(), BLOCK=BLOCK)
    return angle.cpu()


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1.8e-7), (torch.float64, 4.5e-16)], ids=str)
def test_dense_grid(dtype: torch.dtype, allowed: float) -> None:
    """Relative to the angle: a unit and a half in the last place of float32, two of float64."""
    spread = torch.cat([torch.linspace(0, 3, 3001), torch.logspace(-30, 30, 1201)]).to(dtype)
    y = torch.cat([spread, -spread])
    for divisor in (1.0, -1.0, 3.0, 1e-3):
        x = torch.full_like(y, divisor)
        exact = torch.atan(y.double() / x.double())
        assert ((run(y, x).double() - exact).abs() <= allowed * exact.abs()).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_ends(dtype: torch.dtype) -> None:
    inf, nan = float("inf"), float("nan")
    y = torch.tensor([1, -1, 1, -1, 0, inf, -inf, inf, 2, 0, inf, nan], dtype=dtype)
    x = torch.tensor([0, 0, 1e-30, 1e-30, 1, 2, 2, -2, inf, 0, inf, 1], dtype=dtype)
    right = torch.pi / 2
    expected = torch.tensor([right, -right, right, -right, 0, right, -right, -right, 0, nan, nan, nan], dtype=dtype)
    torch.testing.assert_close(run(y, x), expected, rtol=0, atol=0, equal_nan=True)

"""The Triton activation functions against PyTorch's: values, derivatives, kinks, NaN and extremes."""
# ruff: noqa: N803 (compile-time constants in capitals, as everywhere in Triton)

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from sod_ops.reference.squeeze_excite import ACTIVATIONS, GATES
from sod_ops.triton import activation as functions
from sod_ops.triton.activation import (
    activation,
    activation_derivative,
    activation_gradient,
    gate,
    gate_derivative,
    gate_gradient,
)

pytestmark = pytest.mark.gpu  # its kernels run on a GPU where there is one

NAMES = [*ACTIVATIONS, *GATES]
# PyTorch's own functions for the two that the reference writes out (for the sake of float64).
FUNCTIONS = {**ACTIVATIONS, **GATES, "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid}
KINKS = (-3.0, -2.5, 0.0, 2.5, 3.0, 6.0)
# A few units in the last place of exp and erf. In PyTorch's derivatives 1 - tanh^2, and in its GELUs' negative tails
# 1 + erf and 1 + tanh, cancel: there its own error is relative to z, which is below 8 wherever the tail is not zero.
TOLERANCES = {torch.float32: {"rtol": 2e-6, "atol": 2e-6}, torch.float64: {"rtol": 1e-14, "atol": 8e-15}}
# PyTorch's float64 kernel of this gate's gradient multiplies by 1/6 rounded to float32.
FLOAT64_HARDSIGMOID = {"rtol": 3e-8, "atol": 8e-15}


@triton.jit
def elementwise_kernel(
    z, gradient, value, derivative, product, count, KIND: tl.constexpr, IS_GATE: tl.constexpr, BLOCK: tl.constexpr
):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < count
    at = tl.load(z + offsets, mask=mask)
    upper = tl.load(gradient + offsets, mask=mask)
    if IS_GATE:
        tl.store(value + offsets, gate(at, KIND), mask=mask)
        tl.store(derivative + offsets, gate_derivative(at, KIND), mask=mask)
        tl.store(product + offsets, gate_gradient(upper, at, KIND), mask=mask)
    else:
        tl.store(value + offsets, activation(at, KIND), mask=mask)
        tl.store(derivative + offsets, activation_derivative(at, KIND), mask=mask)
        tl.store(product + offsets, activation_gradient(upper, at, KIND), mask=mask)


def run_kernel(name: str, z: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value, derivative, and the gradient carried over, by the kernel."""
    table = GATES if name in GATES else ACTIVATIONS
    device = "cuda" if torch.cuda.is_available() else "cpu"
    z, gradient = z.to(device), gradient.to(device)
    outputs = torch.empty_like(z), torch.empty_like(z), torch.empty_like(z)
    elementwise_kernel[(triton.cdiv(z.numel(), 4096),)](
        z, gradient, *outputs, z.numel(), KIND=list(table).index(name), IS_GATE=name in GATES, BLOCK=4096
    )
    return tuple(output.cpu() for output in outputs)


def run_torch(name: str, z: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same by PyTorch's autograd."""
    function = FUNCTIONS[name]
    z = z.clone().requires_grad_()
    value = function(z) + 0.0  # the identity would hand back its input
    (derivative,) = torch.autograd.grad(value, z, torch.ones_like(z), retain_graph=True)
    (product,) = torch.autograd.grad(value, z, gradient)
    return value.detach(), derivative, product


def test_numbering_is_that_of_the_reference() -> None:
    for table in (ACTIVATIONS, GATES):
        assert [getattr(functions, name.upper()).value for name in table] == list(range(len(table)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_dense_grid(name: str, dtype: torch.dtype) -> None:
    """Values and derivatives from -12 to 12, closely around every kink and out to 1e4."""
    kinks = torch.tensor(KINKS, dtype=dtype)
    outside, inside = torch.full_like(kinks, -torch.inf), torch.full_like(kinks, torch.inf)
    z = torch.cat([
        torch.linspace(-12, 12, 4001, dtype=dtype),
        kinks,
        torch.nextafter(kinks, outside),
        torch.nextafter(kinks, inside),
        torch.logspace(-30, 4, 35, dtype=dtype),
        -torch.logspace(-30, 4, 35, dtype=dtype),
    ])  # fmt: skip
    gradient = torch.linspace(-2, 3, z.numel(), dtype=dtype)
    tolerance = FLOAT64_HARDSIGMOID if (name, dtype) == ("hardsigmoid", torch.float64) else TOLERANCES[dtype]
    for actual, expected in zip(run_kernel(name, z, gradient), run_torch(name, z, gradient), strict=True):
        torch.testing.assert_close(actual, expected, **tolerance)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy's, in Triton's interpreter
@pytest.mark.parametrize("name", NAMES)
def test_special_values(name: str) -> None:
    """NaN and infinities, in the argument and in the gradient, give what they give in PyTorch."""
    special = torch.tensor(
        [torch.nan, torch.inf, -torch.inf, 1e4, -1e4, 0.0, 1.0, -1.0, 6.5, -3.5], dtype=torch.float64
    )
    z, gradient = (t.flatten() for t in torch.meshgrid(special, special, indexing="ij"))
    # One by one: on a CPU, PyTorch's vectorised kernels answer NaN otherwise than its scalar (and its CUDA) kernels.
    one_by_one = [run_torch(name, z[i : i + 1], gradient[i : i + 1]) for i in range(z.numel())]
    expected = [torch.cat(parts) for parts in zip(*one_by_one, strict=True)]
    for actual, wanted in zip(run_kernel(name, z, gradient), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-7, atol=1e-9, equal_nan=True)

"""What the tests of accelerate share: a peer's block by class, a small model, and how close is the same."""

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import torch
from peers import import_peer
from torch import Tensor, nn

import sod_ops

# In float64, two ways of summing a few thousand terms differ by some 1e-15 of the largest. PyTorch's own hardsigmoid
# knows the 1/6 of its gradient in float32 only, which is off by 3e-8. A whole model multiplies either by some ten to a
# thousand. Anything that is computed otherwise is off by far more.
MODULE_TOLERANCE = 1e-12
HARDSIGMOID_TOLERANCE = 1e-7
MODEL_TOLERANCE = 1e-6

# In the shorter dtypes, both ways are held to float64: the fused one may be off by FACTOR times what the plain one is
# (two draws of the same rounding), or by UNITS in the last place of the largest value. A kernel may sum up to 500 terms
# one after another where PyTorch sums in a tree: a few units in float32, and nothing in the half precisions, whose sums
# are taken in float32.
FACTOR = 4
UNITS = {torch.float32: 16, torch.bfloat16: 2, torch.float16: 2}

torchvision = import_peer("torchvision")
timm = import_peer("timm")
smp = import_peer("segmentation_models_pytorch")


def peer_class(path: str) -> Any:
    """The class at an import path."""
    module, _, name = path.rpartition(".")
    return getattr(import_peer(module), name)


def block(path: str, *args: Any, **kwargs: Any) -> nn.Module:
    """A peer's block in evaluation mode, with weights and statistics that leave no part of it without effect."""
    module: nn.Module = peer_class(path)(*args, **kwargs).eval()
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.is_floating_point():
                tensor.copy_(
                    torch.rand_like(tensor) + 0.5 if name.endswith("running_var") else torch.randn_like(tensor)
                )
    return module


class Net(nn.Module):
    """Two convolutions around a block."""

    def __init__(self, se: nn.Module, channels: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.se = se
        self.head = nn.Conv2d(channels, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.se(self.stem(x)))


def count_fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What reaches the fused op, so that no test of equality passes by running the block's own forward."""
    calls: list[Any] = []

    def counting(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Any, **kwargs: Any) -> Tensor:
            calls.append((args, kwargs))
            return function(*args, **kwargs)

        return call

    # By sys.modules: the name sod_ops.accelerate is the function.
    for name, op in (("squeeze_excite", sod_ops.squeeze_excite), ("smp", sod_ops.gate), ("smp", sod_ops.scse)):
        monkeypatch.setattr(sys.modules[f"sod_ops.accelerate.{name}"], op.__name__, counting(op))
    return calls


def output_and_gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The output for ``x``, and the gradients of its squares' sum; a parameter that it does not depend on has zeros."""
    x = x.detach().clone().requires_grad_()
    leaves = {"x": x, **dict(model.named_parameters())}
    output = model(x)
    gradients = torch.autograd.grad(
        output.float().square().sum(), list(leaves.values()), allow_unused=True, materialize_grads=True
    )
    return {"output": output.detach(), **dict(zip(leaves, gradients, strict=True))}


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float) -> None:
    """Equal to ``tolerance`` times each tensor's largest value.

    A gradient that cancels to next to nothing (a bias before batch norm) counts as a thousandth of the largest.
    """
    assert found.keys() == expected.keys()
    largest = max(map(largest_of, expected.values()))
    for name, value in expected.items():
        scale = max(largest_of(value), 1e-3 * largest)
        torch.testing.assert_close(
            found[name], value, rtol=0, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


def assert_as_accurate(
    found: Mapping[str, Tensor],
    plain: Mapping[str, Tensor],
    exact: Mapping[str, Tensor],
    names: Iterable[str] | None = None,
) -> None:
    """No further from ``exact`` (float64) than :data:`FACTOR` and :data:`UNITS` allow beside ``plain``."""
    for name in names or exact:
        assert found[name].dtype == plain[name].dtype, name
        unit = torch.finfo(plain[name].dtype).eps * largest_of(exact[name])
        allowed = max(FACTOR * _distance(plain[name], exact[name]), UNITS[plain[name].dtype] * unit)
        assert _distance(found[name], exact[name]) <= allowed, name


def largest_of(value: Tensor) -> float:
    """The largest magnitude in ``value``; 0 where it is empty."""
    return float(value.abs().max()) if value.numel() else 0.0


def _distance(value: Tensor, exact: Tensor) -> float:
    return largest_of(value.double() - exact)

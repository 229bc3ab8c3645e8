"""nn.UpsampleConcatConv2d against interpolate, cat and torch.nn.Conv2d with the same state_dict."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import sod_ops


@pytest.mark.parametrize("skip", [True, False], ids=["skip", "no skip"])
@pytest.mark.parametrize("kernel_size", [3, 1])
@pytest.mark.parametrize(
    "options", [{}, {"align_corners": True}, {"mode": "nearest", "x_first": False}, {"bias": False}], ids=str
)
def test_same_as_the_convolution_over_the_concatenation(options: dict[str, Any], kernel_size: int, skip: bool) -> None:
    channels = 40 + (6 if skip else 0)
    module = sod_ops.nn.UpsampleConcatConv2d(channels, 7, kernel_size, **options, dtype=torch.float64)
    plain = nn.Conv2d(channels, 7, kernel_size, padding=kernel_size // 2, bias=module.bias is not None).double()
    plain.load_state_dict(module.state_dict())
    x = torch.randn(2, 6, 14, 10, dtype=torch.float64, requires_grad=True) if skip else None
    branches = [torch.randn(2, 20, *size, dtype=torch.float64, requires_grad=True) for size in ((7, 5), (3, 4))]
    leaves = [*branches, *([x] if x is not None else [])]

    y = module(x, branches, None if skip else (14, 10))
    align = {} if module.mode == "nearest" else {"align_corners": module.align_corners}
    maps = [functional.interpolate(b, (14, 10), mode=module.mode, **align) for b in branches]
    expected = plain(torch.cat(([x, *maps] if module.x_first else [*maps, x]) if x is not None else maps, 1))
    torch.testing.assert_close(y, expected)
    found = torch.autograd.grad(y.square().sum(), [*leaves, *module.parameters()])
    wanted = torch.autograd.grad(expected.square().sum(), [*leaves, *plain.parameters()])
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_initialised_and_named_like_a_convolution() -> None:
    torch.manual_seed(0)
    module = sod_ops.nn.UpsampleConcatConv2d(12, 5)
    torch.manual_seed(0)
    plain = nn.Conv2d(12, 5, 3)
    for a, b in zip(module.state_dict().items(), plain.state_dict().items(), strict=True):
        assert a[0] == b[0]
        assert torch.equal(a[1], b[1])
    assert "12, 5, kernel_size=3, bias=True, mode='bilinear', align_corners=False, x_first=True" in repr(module)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"in_channels": 0}, ValueError, "in_channels must be at least 1, got 0"),
        ({"out_channels": 2.0}, TypeError, "out_channels must be an integer, got 2.0"),
        ({"kernel_size": 5}, ValueError, "kernel_size must be 1 or 3, got 5"),
        ({"bias": None}, TypeError, "bias must be"),
        ({"mode": "bicubic"}, ValueError, "mode must be"),
        ({"mode": "nearest", "align_corners": True}, ValueError, "align_corners must be False with mode 'nearest'"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"UpsampleConcatConv2d: {message}"):
        sod_ops.nn.UpsampleConcatConv2d(**{"in_channels": 4, "out_channels": 4, **arguments})


def test_maps_of_other_channels_are_named() -> None:
    with pytest.raises(ValueError, match="weight must be of shape"):
        sod_ops.nn.UpsampleConcatConv2d(12, 5)(torch.ones(1, 4, 4, 4), [torch.ones(1, 4, 2, 2)])

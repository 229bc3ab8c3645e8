"""What pyramid_conv2d refuses, in a call and in a module that keeps its options."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sod_ops.ops import _checks
from sod_ops.reference.pyramid_conv2d import MODES

_OP = "pyramid_conv2d"


def check_call(
    x: Any,
    branches: Any,
    weight: Any,
    bias: Any,
    padding: Any,
    align_corners: Any,
    x_first: Any,
    mode: Any,
    size: Any,
) -> None:
    _checks.check_tensor(_OP, "x", x, optional=True)
    if isinstance(branches, Tensor) or not isinstance(branches, Sequence):
        _checks.bad_type(_OP, "branches", "a sequence of tensors", type(branches).__name__)
    named = [(f"branches[{i}]", branch) for i, branch in enumerate(branches)]
    for argument, value in [*named, ("weight", weight)]:
        _checks.check_tensor(_OP, argument, value)
    _checks.check_tensor(_OP, "bias", bias, optional=True)
    check_options(_OP, align_corners, x_first, mode)
    _check_size(x, branches, size)

    if weight.dim() != 4 or not weight.shape[0] or weight.shape[2] not in (1, 3) or weight.shape[3] != weight.shape[2]:
        expected = "of shape [C_out, C_in, K, K] with C_out above 0 and K 1 or 3"
        _checks.bad_value(_OP, "weight", expected, _checks.shape_of(weight))
    if type(padding) is not int:
        _checks.bad_type(_OP, "padding", "an int", f"{padding!r} ({type(padding).__name__})")
    if padding != weight.shape[2] // 2:
        kernel = weight.shape[2]
        _checks.bad_value(_OP, "padding", f"{kernel // 2} for a {kernel}x{kernel} kernel", padding)

    maps = ([] if x is None else [("x", x)]) + named
    for argument, value in maps:
        if value.dim() != 4:
            _checks.bad_value(_OP, argument, "of shape [N, C, H, W]", _checks.shape_of(value))
        if value.shape[2] == 0 or value.shape[3] == 0:
            _checks.bad_value(_OP, argument, "at least one row and column", _checks.shape_of(value))
        if value.shape[0] != maps[0][1].shape[0]:
            expected = f"{maps[0][1].shape[0]} samples as {maps[0][0]} has"
            _checks.bad_value(_OP, argument, expected, _checks.shape_of(value))
    given = " + ".join(str(value.shape[1]) for _, value in maps)
    total = sum(value.shape[1] for _, value in maps)
    if weight.shape[1] != total:
        names = "x and branches" if x is not None else "branches"
        expected = f"of shape [C_out, {total}, K, K] for the channels of {names} ({given})"
        _checks.bad_value(_OP, "weight", expected, _checks.shape_of(weight))
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != weight.shape[0]):
        _checks.bad_value(_OP, "bias", f"of shape [{weight.shape[0]}]", _checks.shape_of(bias))

    _checks.check_floating(_OP, "weight", weight)
    tensors = [*maps, ("bias", bias)]
    _checks.check_same_device(_OP, "weight", weight.device, tensors)
    if torch.is_autocast_enabled(weight.device.type):
        return
    for argument, value in tensors:
        if value is not None and value.dtype != weight.dtype:
            _checks.bad_type(_OP, argument, f"{weight.dtype} as weight is", value.dtype)


def check_options(op: str, align_corners: Any, x_first: Any, mode: Any) -> None:
    """What :func:`pyramid_conv2d` says of these of its arguments."""
    for flag, value in (("align_corners", align_corners), ("x_first", x_first)):
        _checks.check_bool(op, flag, value)
    _checks.check_choice(op, "mode", mode, MODES)
    if mode == "nearest" and align_corners:
        _checks.bad_value(op, "align_corners", "False with mode 'nearest'", True)


def _check_size(x: Tensor | None, branches: Sequence[Tensor], size: Any) -> None:
    if x is not None:
        if size is not None:
            _checks.bad_value(_OP, "size", "None beside x, whose size the output has", size)
        return
    if not branches:
        _checks.bad_value(_OP, "branches", "at least one tensor without x", "none")
    if not isinstance(size, (tuple, list)) or len(size) != 2 or any(type(n) is not int or n < 1 for n in size):
        _checks.bad_value(_OP, "size", "(H, W), two positive ints, without x", size)

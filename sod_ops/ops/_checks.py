"""Errors for bad arguments. Each names the op, the argument, what was expected and what came."""

import math
from collections.abc import Iterable
from typing import Any, NoReturn

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# What kernels read masks and targets in.
READABLE = (*FLOATING, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def shape_of(tensor: Tensor) -> str:
    """A shape as people write it: [2, 3, 8, 8]."""
    return str(list(tensor.shape))


def bad_value(op: str, argument: str, expected: str, got: object) -> NoReturn:
    raise ValueError(f"{op}: {argument} must be {expected}, got {got}")


def bad_type(op: str, argument: str, expected: str, got: object) -> NoReturn:
    raise TypeError(f"{op}: {argument} must be {expected}, got {got}")


def check_tensor(op: str, argument: str, value: Any, *, optional: bool = False) -> None:
    """TypeError unless ``value`` is a dense tensor (or, where it is optional, None)."""
    if optional and value is None:
        return
    if not isinstance(value, Tensor):
        bad_type(op, argument, "a Tensor or None" if optional else "a Tensor", type(value).__name__)
    if value.layout != torch.strided or value.is_quantized:
        bad_type(op, argument, "a dense tensor", f"a {value.layout} tensor of {value.dtype}")


def check_floating(op: str, argument: str, value: Tensor) -> None:
    """TypeError unless ``value`` has one of the four floating dtypes."""
    if value.dtype not in FLOATING:
        bad_type(op, argument, "float32, float64, bfloat16 or float16", value.dtype)


def check_same_device(
    op: str, reference: str, device: torch.device, tensors: Iterable[tuple[str, Tensor | None]]
) -> None:
    """ValueError unless every tensor is on the device of the argument named ``reference``."""
    for argument, value in tensors:
        if value is not None and value.device != device:
            bad_value(op, argument, f"on the device of {reference} ({device})", value.device)


def check_choice(op: str, argument: str, value: object, choices: Iterable[str]) -> None:
    """ValueError (TypeError for what is not a string) unless ``value`` is one of ``choices``."""
    names = ", ".join(repr(name) for name in choices)
    if not isinstance(value, str):
        bad_type(op, argument, f"a string, one of {names}", f"{value!r} ({type(value).__name__})")
    if value not in choices:
        bad_value(op, argument, f"one of {names}", repr(value))


def check_bool(op: str, argument: str, value: object) -> None:
    """TypeError for what is not a bool."""
    if not isinstance(value, bool):
        bad_type(op, argument, "a bool", f"{value!r} ({type(value).__name__})")


def check_count(op: str, argument: str, value: Any) -> None:
    """ValueError (TypeError for what is not an integer) unless ``value`` is at least 1."""
    if not isinstance(value, int) or isinstance(value, bool):
        bad_type(op, argument, "an integer", f"{value!r} ({type(value).__name__})")
    if value < 1:
        bad_value(op, argument, "at least 1", value)


def check_number(op: str, argument: str, value: Any) -> float:
    """``value`` as a float; TypeError for what is not a real number (a tensor's value would have to be read back)."""
    if isinstance(value, float):
        return value
    if isinstance(value, (str, bytes, Tensor)) or not hasattr(value, "__float__"):
        bad_type(op, argument, "a number", f"{value!r} ({type(value).__name__})")
    return float(value)


def check_loss_shapes(op: str, prediction: str, predicted: Tensor, argument: str, target: Tensor) -> None:
    """ValueError unless both tensors have one shape. Where a channel is the difference, it says how to take it."""
    if predicted.shape == target.shape:
        return
    long, short = sorted((list(predicted.shape), list(target.shape)), key=len, reverse=True)
    hint = ""
    if len(long) == len(short) > 1 and long[:1] + long[2:] == short[:1] + short[2:] and target.shape[1] == 1:
        hint = f": take the channel that {argument} is for with a slice, out[:, :1]"
    elif len(long) == len(short) + 1 > 1 and long[:1] + long[2:] == short:
        hint = ": take a channel with a slice, out[:, :1], not with an index, out[:, 0], to keep its dimension"
        if len(target.shape) < len(predicted.shape):
            hint += f" ({argument}.unsqueeze(1) adds it)"
    expected = f"of the shape of {prediction}, {shape_of(predicted)}"
    bad_value(op, argument, expected, f"{shape_of(target)}; a loss never broadcasts{hint}")


def check_window(op: str, argument: str, value: Any) -> None:
    """ValueError (TypeError for what is not an integer) unless ``value`` is odd and above 0."""
    if not isinstance(value, (int, torch.SymInt)) or isinstance(value, bool):
        bad_type(op, argument, "an integer", f"{value!r} ({type(value).__name__})")
    if value < 1 or value % 2 == 0:
        bad_value(op, argument, "odd and above 0", value)


def check_positive(op: str, argument: str, value: object) -> None:
    """ValueError (TypeError for what is not a number) unless ``value`` is finite and above 0."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        bad_type(op, argument, "a number", f"{value!r} ({type(value).__name__})")
    if not 0 < value < math.inf:
        bad_value(op, argument, "finite and above 0", value)


def check_not_negative(op: str, argument: str, value: object) -> None:
    """ValueError (TypeError for what is not a number) unless ``value`` is finite and 0 or more."""
    if not 0 <= check_number(op, argument, value) < math.inf:
        bad_value(op, argument, "finite and 0 or more", value)


def check_map(op: str, argument: str, value: Any, *, not_empty: str = "C, H and W") -> None:
    """Raises unless ``value`` is a floating tensor [N, C, H, W], of which the dimensions ``not_empty`` are at least 1."""
    check_tensor(op, argument, value)
    if value.dim() != 4:
        bad_value(op, argument, "of shape [N, C, H, W]", shape_of(value))
    if any(value.shape[dimension] == 0 for dimension in range(1, 4) if "NCHW"[dimension] in not_empty):
        bad_value(op, argument, f"of shape [N, C, H, W] with {not_empty} at least 1", shape_of(value))
    check_floating(op, argument, value)


def check_boxes(op: str, argument: str, value: Any, *, single: bool) -> None:
    """Raises unless ``value`` is a floating tensor [N, 4] or, where a ``single`` box may stand alone, [4]."""
    check_tensor(op, argument, value)
    if value.dim() not in ((1, 2) if single else (2,)) or value.shape[-1] != 4:
        bad_value(op, argument, "of shape [N, 4] or [4]" if single else "of shape [N, 4]", shape_of(value))
    check_floating(op, argument, value)


def check_parameter(
    op: str, argument: str, value: Any, shape: tuple[int, ...], x: Tensor, *, optional: bool = False
) -> None:
    """Raises unless ``value`` has this shape, and the dtype and the device of ``x``; under autocast any floating dtype."""
    check_tensor(op, argument, value, optional=optional)
    if value is None:
        return
    check_floating(op, argument, value)
    if value.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
        bad_type(op, argument, f"{x.dtype} as x is", value.dtype)
    if tuple(value.shape) != shape:
        bad_value(op, argument, f"of shape {list(shape)}", shape_of(value))
    check_same_device(op, "x", x.device, ((argument, value),))

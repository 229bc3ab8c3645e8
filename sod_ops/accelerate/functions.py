"""Which activation and gate modules are which functions of :func:`sod_ops.squeeze_excite`.

A table maps a class, by import path, to the function's name; where an attribute of the module decides, to that
attribute and to the name that each of its values stands for.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from sod_ops.accelerate.swap import NotServedError

Table: TypeAlias = Mapping[str, str | tuple[str, Mapping[Any, str]]]

ACTIVATIONS: Table = {
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.ReLU6": "relu6",
    "torch.nn.modules.activation.LeakyReLU": ("negative_slope", {0.01: "leaky_relu"}),
    "torch.nn.modules.activation.SiLU": "silu",
    "torch.nn.modules.activation.GELU": ("approximate", {"none": "gelu", "tanh": "gelu_tanh"}),
    "torch.nn.modules.activation.Hardswish": "hardswish",
    "torch.nn.modules.activation.Mish": "mish",
}
GATES: Table = {
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
    "torch.nn.modules.activation.Hardsigmoid": "hardsigmoid",
}


class Function(NamedTuple):
    """A function of squeeze_excite, and what must hold of a block's child for the child to compute it."""

    name: str
    condition: tuple[str, str, Any] | None = None  # child, attribute, value: where its class alone does not decide


def path_of(what: type | Callable[..., Any]) -> str:
    """The import path of a class or function, which tells apart the many of one name."""
    return f"{what.__module__}.{what.__qualname__}"


def function_of(children: Mapping[str, Any], child: str, table: Table, role: str) -> Function:
    """The function that a block's child computes.

    Args:
        children: the block's children.
        child: the name of the one in question.
        table: the functions that are known.
        role: what the reason calls it.

    Raises:
        NotServedError: it is none of the table's.
    """
    module = children[child]
    path = path_of(type(module))
    entry = table.get(path)
    if entry is None:
        raise NotServedError(f"its {role} is {path}, which has no fused form")
    if isinstance(entry, str):
        return Function(entry)
    attribute, names = entry
    value = getattr(module, attribute)
    if value not in names:
        raise NotServedError(f"its {role} is {path} with {attribute}={value!r}, which has no fused form")
    return Function(names[value], (child, attribute, value))

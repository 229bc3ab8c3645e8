"""The operators as PyTorch's dispatcher sees them."""

import importlib
import pkgutil

import pytest
import torch

import sod_ops.ops

OPS = [m.name for m in pkgutil.iter_modules(sod_ops.ops.__path__) if not m.name.startswith("_")]
SHARED = ["scale_gradient_"]  # what several ops call beside their own pairs
# Of PyTorch's operators and other ops: they have no kernels, and no operators of their own.
COMPOSITES = ["object_attention", "spatial_attention"]
# What nn and accelerate compute on a CPU in the place of PyTorch's own operators: there are no Triton kernels.
ON_CPU = [f"{stem}{way}" for stem in ("pointwise_conv2d", "pyramid_conv2d_branches") for way in ("", "_backward")]
OPERATORS = [name for op in OPS if op not in COMPOSITES for name in (op, f"{op}_backward")] + SHARED


def public_functions(op: str) -> list[str]:
    """What users call: mostly one function of the op's name, but one stem may hold variants of one formula."""
    module = importlib.import_module(f"sod_ops.ops.{op}")
    return [name for name in sod_ops.__all__ if getattr(sod_ops, name) is getattr(module, name, None)]


def schema(namespace: str, operator: str) -> str:
    return str(getattr(getattr(torch.ops, namespace), operator).default._schema).partition("::")[2]


@pytest.mark.parametrize("operator", OPERATORS)
def test_native_and_triton_operators_have_one_schema(operator: str) -> None:
    """csrc/schemas.cpp against the annotations in sod_ops/ops."""
    assert schema("sod_ops", operator) == schema("sod_ops_triton", operator)


@pytest.mark.parametrize("operator", OPERATORS + ON_CPU)
def test_every_operator_has_a_cpu_and_a_fake_kernel(operator: str) -> None:
    for namespace in ("sod_ops",) if operator in ON_CPU else ("sod_ops", "sod_ops_triton"):
        name = f"{namespace}::{operator}"
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU")
        assert torch._library.simple_registry.singleton.find(name).fake_impl.kernel is not None


def test_the_table_of_contents_is_complete() -> None:
    """No native operator but those of the ops, and what they share."""
    defined = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("sod_ops::")}
    assert defined == {f"sod_ops::{operator}" for operator in OPERATORS + ON_CPU}


@pytest.mark.parametrize("op", OPS)
def test_public_functions_say_what_they_take(op: str) -> None:
    assert public_functions(op)
    for name in public_functions(op):
        for part in ("Args:", "Returns:", "Raises:", "Source:"):
            assert part in getattr(sod_ops, name).__doc__, part

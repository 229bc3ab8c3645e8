"""Holding each swap to the module that it replaces, on what reaches that module when the model runs.

The judge is the module's own forward in float64, where rounding hides nothing: there the fused forward has the same outputs
and gradients. In the dtype at hand it may be no further from them, at its worst and in the mean, than rounding explains:
:data:`_FACTOR` times what the module's own forward is away, or :data:`_ROUNDING` times the size of the value, whichever is
more. Sums in another order differ by a fraction of that; another function, slope or operand differs by far more.

Gradients in that dtype have a second chance. Of a million values before a ReLU, about one lies within float32's rounding of
0; where one form has it on this side and the other on that, the gradient goes another way, by far more than rounding, and
nothing is wrong with either. So the forms are compared again on inputs near by, where other values lie so close: what is
wrong stays wrong, and a value on the other side does not stay there.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from sod_ops.accelerate.fused_call import proving
from sod_ops.accelerate.swap import Swap
from sod_ops.accelerate.trace import other_mode

_FACTOR = 8
# 64 units in the last place in float32, 4 where PyTorch itself sums in float32 and rounds the results. In float64 as in
# float32: PyTorch's own hardsigmoid knows the 1/6 of its gradient in float32 only.
_ROUNDING = {torch.float64: 8e-6, torch.float32: 8e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}

# A gradient that is smaller than this beside the largest may be one that cancels, as that of a bias before batch norm in
# training does: what is left of it is the rounding of what it is a sum of.
_CANCELLED = 1e-3
_GRADIENT = "gradient of "

# Where some values lie within rounding of a kink, at worst about half of all inputs have one on another side in the fused
# form alone: with few such values, both forms mostly have none, with many, both have some. Of 256 modules, one is left so.
_MORE_INPUTS = 7

Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
Candidates: TypeAlias = Mapping[str, tuple[torch.nn.Module, Swap]]


def call_arguments(example_inputs: Any) -> Arguments:
    """The positional and keyword arguments that ``example_inputs`` stands for."""
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, tuple):
        return example_inputs, {}
    if isinstance(example_inputs, Mapping) and all(isinstance(name, str) for name in example_inputs):
        return (), dict(example_inputs)
    raise TypeError(
        "accelerate: example_inputs must be a Tensor, a tuple of positional arguments or a dictionary of keyword "
        f"arguments, got {type(example_inputs).__name__}"
    )


def deviations(model: torch.nn.Module, candidates: Candidates, arguments: Arguments) -> dict[str, str]:
    """Runs ``model`` once and compares each candidate's swap with its own forward, on its first input.

    Returns:
        The names of those that are not proven equal, with the reason.
    """
    reasons = dict.fromkeys(candidates, "example_inputs do not reach it")
    waiting = dict(candidates)
    handles: list[Any] = []

    def watch() -> None:
        for name, (module, _) in waiting.items():
            handles.append(module.register_forward_pre_hook(partial(compare, name), with_kwargs=True))

    def unwatch() -> None:
        while handles:
            handles.pop().remove()

    def compare(name: str, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Without these hooks, also on the modules within: a fused forward gives way to hooks, and a copy has them too.
        unwatch()
        _, swap = waiting.pop(name)
        reason = _why_it_deviates(module, swap, args, kwargs)
        if reason is None:
            del reasons[name]
        else:
            reasons[name] = reason
        watch()

    with state_preserved(model):
        try:
            watch()
            run(model, arguments)
        finally:
            unwatch()
    return reasons


def run(model: torch.nn.Module, arguments: Arguments) -> None:
    """Calls ``model``, without gradients."""
    positional, keywords = arguments
    with torch.inference_mode(False), torch.no_grad():
        model(*positional, **keywords)


@contextlib.contextmanager
def state_preserved(model: torch.nn.Module) -> Iterator[None]:
    """Gives buffers (running statistics, counters) and PyTorch's random state back as they were."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    with _random_state_preserved(model):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


@contextlib.contextmanager
def _random_state_preserved(model: torch.nn.Module) -> Iterator[None]:
    devices = {tensor.device for tensor in model.parameters() if tensor.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        yield


def _why_it_deviates(module: torch.nn.Module, swap: Swap, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    reason = _why_it_deviates_on(module, swap, args, kwargs, "on example_inputs")
    if reason is not None or swap.probes is None:
        return reason
    # Batch norm in training takes no batch of one.
    inputs = [(_twice(args), _twice(kwargs)), *((probe, {}) for probe in swap.probes(*args, **kwargs))]
    for mode in (contextlib.nullcontext(), other_mode(module)):
        with mode:
            where = f"on inputs made from example_inputs, in {'training' if module.training else 'evaluation'}"
            for each in inputs:
                reason = _why_it_deviates_on(module, swap, *each, where)
                if reason is not None:
                    return reason
    return None


def _twice(inputs: Any) -> Any:
    """All maps once more, turned round."""
    return tree_map(lambda x: torch.cat([x, x.flip(-1)]) if isinstance(x, Tensor) and x.dim() == 4 else x, inputs)


def _why_it_deviates_on(
    module: torch.nn.Module, swap: Swap, args: tuple[Any, ...], kwargs: dict[str, Any], where: str
) -> str | None:
    generator = torch.Generator().manual_seed(0)
    first = found = _compare(module, swap, args, kwargs, where)
    for _ in range(_MORE_INPUTS):
        if found is None:
            return None
        if not found.may_be_a_kink:
            break
        near_args, near_kwargs = _near((args, kwargs), generator)
        found = _compare(module, swap, near_args, near_kwargs, where)
    return None if first is None or found is None else first.reason


def _near(inputs: Any, generator: torch.Generator) -> Any:
    """Inputs of the same signs and no larger, where every sum of some values is another."""

    def near(x: Any) -> Any:
        if not (isinstance(x, Tensor) and x.is_floating_point()):
            return x
        return x.detach() * (1 - torch.rand(x.shape, generator=generator, dtype=torch.float64) / 2).to(x)

    return tree_map(near, inputs)


class _Deviation(NamedTuple):
    """Of what, and whether a value that rounding puts on the other side of a kink could explain it."""

    reason: str
    may_be_a_kink: bool


def _compare(
    module: torch.nn.Module, swap: Swap, args: tuple[Any, ...], kwargs: dict[str, Any], where: str
) -> _Deviation | None:
    def own(module: Any, *args: Any, **kwargs: Any) -> Any:
        return type(module).forward(module, *args, **kwargs)

    def fused(module: Any, *args: Any, **kwargs: Any) -> Any:
        with proving():
            return swap.forward(module, swap.spec, *args, **kwargs)

    exact = copy.deepcopy(module).double()
    try:
        expected = _output_and_gradients(own, exact, args, kwargs, torch.float64)
        plain = _output_and_gradients(own, module, args, kwargs)
    except Exception as error:  # of a module that serves some dtypes alone, say, or has no gradients
        reason = f"its own gradients, or those in float64, can't be had {where}: {type(error).__name__}: {error}"
        return _Deviation(reason, False)
    try:
        found = _output_and_gradients(fused, module, args, kwargs)
        found_exact = _output_and_gradients(fused, exact, args, kwargs, torch.float64)
    except Exception as error:  # whatever it is, the module itself did not raise it
        return _Deviation(f"{where} it raises {type(error).__name__}: {error}", False)
    outputs = {name: value for name, value in expected.items() if not name.startswith(_GRADIENT)}
    differs = _why_they_differ(found_exact, expected, expected, where) or _why_they_differ(found, plain, outputs, where)
    if differs is not None:
        return _Deviation(differs, False)
    differs = _why_they_differ(found, plain, expected, where)
    return None if differs is None else _Deviation(differs, True)


def _why_they_differ(
    found: Mapping[str, Tensor], plain: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str
) -> str | None:
    """Why ``found`` is not as close to ``expected`` as ``plain`` would let it be."""
    gradients = [value for name, value in expected.items() if name.startswith(_GRADIENT)]
    cancelled = {how: _CANCELLED * max(map(size, gradients), default=0.0) for how, size in _SIZES.items()}
    for what, reference in expected.items():
        if found[what].shape != reference.shape or found[what].dtype != plain[what].dtype:
            return f"{where} the {what} has another shape or dtype"
        for how, size in _SIZES.items():
            scale = size(reference)
            if what.startswith(_GRADIENT):
                scale = max(scale, cancelled[how])
            dtype = plain[what].dtype
            rounding = max(_FACTOR * size(plain[what].double() - reference), _ROUNDING[dtype] * scale)
            deviation = size(found[what].double() - reference)
            if not deviation <= rounding:
                return (
                    f"{where} the {what} deviates by {deviation:.1e}{how} where rounding explains {rounding:.1e} "
                    f"(of {scale:.1e}, in {str(dtype).removeprefix('torch.')})"
                )
    return None


def _output_and_gradients(
    forward: Callable[..., Any],
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """The output, or each of several, and the gradients of every floating input (in ``dtype``, if given) and every trained
    parameter."""
    leaves: dict[str, Tensor] = {}

    def leaf(name: str, value: Any) -> Any:
        if type(value) in (list, tuple):
            return type(value)(leaf(f"{name}[{index}]", item) for index, item in enumerate(value))
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            return value
        value = value.detach().to(dtype or value.dtype, copy=True).requires_grad_()
        leaves[f"{_GRADIENT}{name}"] = value
        return value

    with state_preserved(module), torch.inference_mode(False), torch.enable_grad():
        output = forward(
            module,
            *(leaf(f"input {index}", value) for index, value in enumerate(args)),
            **{name: leaf(f"input {name}", value) for name, value in kwargs.items()},
        )
        trained = ((name, value) for name, value in module.named_parameters() if value.requires_grad)
        leaves |= {f"{_GRADIENT}{name}": value for name, value in trained}
        # The same at every run, and not drawn from the random state of the model's owner.
        generator = torch.Generator().manual_seed(0)
        outputs = {"output": output} if isinstance(output, Tensor) else _tensors_of(output)
        grad_outputs = [
            torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.device, y.dtype)
            for y in outputs.values()
        ]
        gradients = torch.autograd.grad(list(outputs.values()), list(leaves.values()), grad_outputs, allow_unused=True)
    results = {name: y.detach() for name, y in outputs.items()}
    for (name, value), gradient in zip(leaves.items(), gradients, strict=True):
        results[name] = torch.zeros_like(value) if gradient is None else gradient
    return results


def _tensors_of(output: Any) -> dict[str, Tensor]:
    tensors = (y for y in tree_leaves(output) if isinstance(y, Tensor) and y.is_floating_point())
    return {f"output {i}": y for i, y in enumerate(tensors)}


def _largest(value: Tensor) -> float:
    return float(value.abs().max()) if value.numel() else 0.0


def _mean(value: Tensor) -> float:
    return float(value.double().square().mean().sqrt()) if value.numel() else 0.0


_SIZES: Mapping[str, Callable[[Tensor], float]] = {"": _largest, " in the mean": _mean}

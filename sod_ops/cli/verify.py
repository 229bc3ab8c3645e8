"""Whether an accelerated model still computes what the untouched one does: outputs, and every gradient.

Two questions, because rounding hides the first one. A network amplifies it: a unit in the last place of the input moves
the gradients of an untouched regnet_y_400mf in float32 by 5 %, where a ReLU's input happens to lie next to zero.

1. Is it the same function? Both run in float64, where rounding shows at 1e-10 at most (measured on the models of
   `make run`) and a wrong constant, a missing bias or another gate at 1e-4 and above. The limit lies between (see
   _SAME_FUNCTION).
2. Is it as accurate in the dtype that was asked for? Its outputs must be no further from the untouched model's float64
   outputs than twice what the untouched model's own are; so must its gradients, unless they are within 0.25 (_FLIPS).

A deviation is the root mean square of a tensor's difference over that of the tensor, the largest over all tensors.
"""

import contextlib
import copy
import dataclasses
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sod_ops.cli.errors import UsageError, one_line

# Not lower, because PyTorch itself is not exact there: its hardsigmoid takes 1/6 in float32 when it computes a gradient
# in float64, which is 3e-8 off, and it is the gate of every block of mobilenetv3.
_SAME_FUNCTION = 1e-6

# A gradient that is smaller than this beside the largest is zero but for rounding, such as that of a bias before a batch
# norm, and has no digits to compare.
_ZERO = math.sqrt(torch.finfo(torch.float64).eps)

# Where a ReLU's input rounds to the other side of zero, one element of the gradient is switched on or off. Whether that
# happens in the accelerated model, in the untouched one, in both or in neither is chance: over the models of `make run`
# and several seeds, the untouched model's gradients deviated by 1e-5 without and by up to 0.07 with such a switch. A
# gradient that is zero, of the wrong sign, doubled or unrelated deviates by 1 and more.
_FLIPS = 0.25

Tensors = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The deviations that were found, and what is wrong, if anything.

    Attributes:
        function: of the accelerated model from the untouched one, outputs and gradients, both in float64.
        output, gradient: of the accelerated model in its dtype from the untouched one in float64.
        own_output, own_gradient: of the untouched model in that dtype from itself in float64.
        fault: None, or what is beyond its limit.
    """

    function: float
    output: float
    own_output: float
    gradient: float
    own_gradient: float
    fault: str | None

    def as_json(self) -> dict[str, float | None]:
        """The deviations; None stands for one that is not finite, which JSON cannot hold."""
        deviations = dataclasses.asdict(self)
        del deviations["fault"]
        return {name: value if math.isfinite(value) else None for name, value in deviations.items()}


class SwapError(Exception):
    """The accelerated model raises where the untouched one does not."""


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A model and how to call it: itself, or what torch.compile made of it."""

    model: nn.Module
    call: Callable[[Tensor], Any]


def verify(
    untouched: Contestant, accelerated: Contestant, x: Tensor, swap: Callable[[nn.Module], object], *, compiled: bool
) -> Verdict:
    """Compares an accelerated model with the untouched one that it was made from.

    Args:
        untouched, accelerated: two copies with the same weights.
        x: the input, ``[N, C, H, W]``, in the models' dtype and on their device.
        swap: accelerates a model in place.
        compiled: whether the calls are compiled. A compiler draws its own random numbers, so then the gradients are
            those in eval mode.

    Raises:
        UsageError: the untouched model does not run, or gives no finite numbers.
        SwapError: the accelerated model raises.
    """
    exact_model = copy.deepcopy(untouched.model).double()
    exact_swapped_model = copy.deepcopy(exact_model)
    training = not compiled
    # The same input but for its last digit: a second sample of the untouched model's own error.
    nudged = x + x * torch.finfo(x.dtype).eps * torch.randint_like(x, -1, 2)

    with raising(UsageError, "the untouched model"):
        truth = _results(Contestant(exact_model, exact_model), x.double(), training)
    if not all(bool(value.isfinite().all()) for value in truth.values()):
        raise UsageError("its outputs or gradients are not finite, so there is nothing to compare")
    with raising(SwapError, "the accelerated model"):
        swap(exact_swapped_model)
        exact = _results(Contestant(exact_swapped_model, exact_swapped_model), x.double(), training)
    function, worst = _largest(_deviations(exact, truth))
    fault = _beyond(_SAME_FUNCTION, function, worst, "float64")

    with raising(UsageError, "the untouched model"):
        own = [_deviations(_results(untouched, value, training), truth) for value in (x, nudged)]
    own_output, own_gradient = (max(_largest(part(each))[0] for each in own) for part in (_outputs, _gradients))
    dtype = str(x.dtype).removeprefix("torch.")
    if not math.isfinite(max(own_output, own_gradient)):
        raise UsageError(f"its outputs or gradients in {dtype} are not finite, so there is nothing to compare")
    with raising(SwapError, "the accelerated model"):
        ours = _deviations(_results(accelerated, x, training), truth)
    output, worst_output = _largest(_outputs(ours))
    gradient, worst_gradient = _largest(_gradients(ours))
    output_limit = _SAME_FUNCTION if x.dtype == torch.float64 else 2 * own_output + torch.finfo(x.dtype).eps
    fault = fault or _beyond(output_limit, output, worst_output, dtype)
    fault = fault or _beyond(max(2 * own_gradient, _FLIPS), gradient, worst_gradient, dtype)
    return Verdict(function, output, own_output, gradient, own_gradient, fault)


def floating_outputs(output: Any) -> list[Tensor]:
    """The floating-point tensors in what a model returned: a tensor, or any nesting of lists, tuples and dicts."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def cotangents(outputs: list[Tensor]) -> list[Tensor]:
    """For each output a fixed random gradient, the same for every dtype and device."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(output.shape, generator=generator).to(output) for output in outputs]


class _SameDraws(TorchDispatchMode):
    """Dropout and stochastic depth draw the same numbers in every dtype and on every device: on the CPU, in float32."""

    def __init__(self) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.bernoulli_.float:
            tensor, *rest = args
            return tensor.copy_(self._draw(tensor, *rest))
        if func is torch.ops.aten.native_dropout.default:
            tensor, p, train = args
            if train is not False:
                mask = self._draw(tensor, 1 - p).to(tensor.device, torch.bool)
                return tensor * mask / (1 - p) if p < 1 else tensor * mask, mask
        return func(*args, **(kwargs or {}))

    def _draw(self, like: Tensor, p: float = 0.5) -> Tensor:
        return torch.empty(like.shape).bernoulli_(p, generator=self._generator)


def _results(contestant: Contestant, x: Tensor, training: bool) -> Tensors:
    """Outputs in eval mode, then outputs and gradients of one step, by name. The model's state stays as it was."""
    model = contestant.model
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    results: Tensors = {}
    model.eval()
    with torch.no_grad():
        for i, output in enumerate(floating_outputs(contestant.call(x))):
            results[f"output {i} in eval mode"] = output
    model.train(training)
    x = x.detach().clone().requires_grad_()
    torch.manual_seed(0)
    random.seed(0)
    with _SameDraws() if training else contextlib.nullcontext():
        outputs = floating_outputs(contestant.call(x))
        differentiable = [output for output in outputs if output.requires_grad]
        if not differentiable:
            raise UsageError("it returns no tensor that a gradient could start from")
        torch.autograd.backward(differentiable, cotangents(differentiable))
    for i, output in enumerate(outputs):
        results[f"output {i}"] = output.detach()
    gradients = {"the input": x.grad, **{name: parameter.grad for name, parameter in model.named_parameters()}}
    results.update({f"the gradient of {name}": value for name, value in gradients.items() if value is not None})
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, value in buffers:
            buffer.copy_(value)
    return results


def _deviations(got: Tensors, truth: Tensors) -> dict[str, float]:
    """The deviation of each tensor; infinite where it is missing, surplus, of another shape or not finite."""
    sizes = {name: _rms(value) for name, value in truth.items()}
    largest = max((size for name, size in sizes.items() if _is_gradient(name)), default=0.0)
    deviations = dict.fromkeys(got.keys() - truth.keys(), math.inf)
    for name, expected in truth.items():
        value = got.get(name)
        if value is None or value.shape != expected.shape:
            deviations[name] = math.inf
            continue
        size = sizes[name]
        if _is_gradient(name) and size <= _ZERO * largest:
            size = largest
        difference = _rms(value.double() - expected)
        if difference == 0.0:
            deviations[name] = 0.0
        else:
            deviations[name] = difference / size if size and math.isfinite(difference) else math.inf
    return deviations


def _rms(tensor: Tensor) -> float:
    return tensor.double().square().mean().sqrt().item() if tensor.numel() else 0.0


def _is_gradient(name: str) -> bool:
    return name.startswith("the gradient of ")


def _outputs(deviations: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in deviations.items() if not _is_gradient(name)}


def _gradients(deviations: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in deviations.items() if _is_gradient(name)}


def _largest(deviations: dict[str, float]) -> tuple[float, str]:
    return max(((value, name) for name, value in deviations.items()), default=(0.0, ""))


def _beyond(limit: float, deviation: float, tensor: str, dtype: str) -> str | None:
    if deviation <= limit:
        return None
    return f"{tensor} deviates by {deviation:.1e} in {dtype}, where {limit:.1e} is the limit"


@contextlib.contextmanager
def raising(kind: type[Exception], whose: str) -> Iterator[None]:
    """Turns whatever a model raises into an exception that says whose fault it is."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except UsageError as error:
        raise kind(f"{whose}: {error}") from error
    except Exception as error:
        raise kind(f"{whose} raises {one_line(error)}") from error

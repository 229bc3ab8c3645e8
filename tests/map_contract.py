"""What the contract asks of an op on maps, as checks that the op's test file runs on its own cases.

An op is a function of tensors, of which every floating one gets a gradient; its result is a tensor or several.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from cases import MapCase
from conftest import Backend
from tolerances import assert_accurate
from torch import Tensor

import sod_ops

Function = Callable[..., Tensor | tuple[Tensor, ...]]


def as_tuple(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def leaves_of(inputs: Sequence[Tensor]) -> list[Tensor]:
    return [t.detach().requires_grad_() for t in inputs]


def make_grads(function: Function, inputs: Sequence[Tensor]) -> list[Tensor]:
    """A random gradient for each result."""
    with torch.no_grad(), sod_ops.use_backend("reference"):
        results = as_tuple(function(*inputs))
    return [torch.randn(y.shape, dtype=torch.float64).to(y) for y in results]


def run(backend: str, function: Function, inputs: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor]:
    """The results and the gradients of all inputs."""
    leaves = leaves_of(inputs)
    with sod_ops.use_backend(backend):
        results = as_tuple(function(*leaves))
        found = torch.autograd.grad(results, leaves, [g.to(y) for g, y in zip(grads, results, strict=True)])
    return [*(y.detach() for y in results), *found]


def check_numbers(backend: Backend, function: Function, inputs: Sequence[Tensor], terms: float = 0.0) -> None:
    """Results and gradients against those of the reference in float64; ``terms`` as in assert_accurate."""
    grads = make_grads(function, inputs)
    before = [t.detach().clone() for t in inputs]
    actual = run(backend.name, function, inputs, grads)
    plain = run("reference", function, inputs, grads)
    exact = run("reference", function, [t.double() for t in inputs], grads)
    for i, (a, p, e) in enumerate(zip(actual, plain, exact, strict=True)):
        assert_accurate(a, p, e, "forward" if i < len(grads) else f"input {i - len(grads)}", terms)
    for tensor, old in zip(inputs, before, strict=True):
        assert torch.equal(tensor.nan_to_num(), old.nan_to_num()), "an input was changed"


def check_gradients(backend: Backend, function: Function, inputs: Sequence[Tensor]) -> None:
    """gradcheck and gradgradcheck; the inputs are float64."""
    leaves = tuple(leaves_of(inputs))
    assert torch.autograd.gradcheck(function, leaves, fast_mode=backend.interpreted)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


def check_gradients_only_where_wanted(backend: Backend, function: Function, inputs: Sequence[Tensor]) -> None:
    grads = make_grads(function, inputs)
    full = run(backend.name, function, inputs, grads)[len(grads) :]
    for i, expected in enumerate(full):
        leaves = [t.detach().requires_grad_(i == j) for j, t in enumerate(inputs)]
        torch.autograd.backward(as_tuple(function(*leaves)), grads)
        assert [leaf.grad is not None for leaf in leaves] == [i == j for j in range(len(leaves))]
        torch.testing.assert_close(leaves[i].grad, expected, rtol=0, atol=0)


def check_incoming_gradients(backend: Backend, function: Function, inputs: Sequence[Tensor]) -> None:
    """sum() sends an expanded gradient, a permuted loss one of the other memory format: the kernels see one layout."""
    tolerance = {} if backend.name == "reference" else {"rtol": 0, "atol": 0}
    grads = make_grads(function, inputs)
    expected = run(backend.name, function, inputs, grads)
    for changed in (
        [g.contiguous(memory_format=torch.channels_last) for g in grads],
        [g.transpose(2, 3).contiguous().transpose(2, 3) for g in grads],
    ):
        for a, e in zip(run(backend.name, function, inputs, changed), expected, strict=True):
            torch.testing.assert_close(a, e, **tolerance)
    ones = [torch.ones((), device=g.device, dtype=g.dtype).expand(g.shape) for g in grads]
    expected = run(backend.name, function, inputs, [g.contiguous() for g in ones])
    for a, e in zip(run(backend.name, function, inputs, ones), expected, strict=True):
        torch.testing.assert_close(a, e, **tolerance)


PassOn = Callable[[Tensor], tuple[Tensor, ...]]  # x, then the results for it


def check_gradient_of_passed_on(
    backend: Backend, pass_on: PassOn, layout: str, of_other: str, dtype: torch.dtype
) -> None:
    """A gradient for x and for each result: that of x in either format, or in channels behind others' ("slice"), as a
    concatenation has it."""
    x = MapCase((2, 3, 3, 4), layout).build(dtype, backend.device)
    wider = MapCase((2, 8, 3, 4), layout if of_other == "slice" else of_other).build(dtype, backend.device)
    other = wider[:, 5:] if of_other == "slice" else torch.empty_like(wider[:, :3]).copy_(wider[:, :3])
    grads = [other, *make_grads(lambda x: pass_on(x)[1:], [x])]

    def gradient(name: str, dtype: torch.dtype) -> Tensor:
        leaf = x.detach().to(dtype).requires_grad_()
        with sod_ops.use_backend(name):
            outputs = pass_on(leaf)
        assert torch.equal(outputs[0], leaf)
        (found,) = torch.autograd.grad(outputs, leaf, [g.to(dtype) for g in grads])
        return found

    actual = gradient(backend.name, dtype)
    assert_accurate(actual, gradient("reference", dtype), gradient("reference", torch.float64), "x")
    if backend.name != "reference":
        memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        assert actual.is_contiguous(memory_format=memory_format)


def check_passed_on_needs_no_gradient_from_each(backend: Backend, pass_on: PassOn) -> None:
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64, device=backend.device, requires_grad=True)
    with sod_ops.use_backend(backend.name):
        again, *results = pass_on(x)
        (only_x,) = torch.autograd.grad(again.sum(), x, retain_graph=True)
        assert torch.equal(only_x, torch.ones_like(x))
        (only_a_result,) = torch.autograd.grad(results[-1].sum(), x)
        leaf = x.detach().requires_grad_()
        with sod_ops.use_backend("reference"):
            expected = torch.autograd.grad(pass_on(leaf)[-1].sum(), leaf)[0]
        torch.testing.assert_close(only_a_result, expected)

        def both(x: Tensor) -> Tensor:
            again, *results = pass_on(x)
            return (again.square().sum((1, 2, 3)) * results[-1].square().sum((1, 2, 3))).sum()

        few = x[:1, :2, :3, :2].detach().requires_grad_()
        assert torch.autograd.gradcheck(both, few)
        assert torch.autograd.gradgradcheck(both, few)
        assert not pass_on(x.detach())[0].requires_grad


def check_deterministic(backend: Backend, function: Function, inputs: Sequence[Tensor], threads: bool = True) -> None:
    """From run to run and, on the CPU, for any number of threads."""
    grads = make_grads(function, inputs)
    before = torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    try:
        first = run(backend.name, function, inputs, grads)
        for count in (1, 3, 8) if backend.name == "cpu" and threads else (before,):
            torch.set_num_threads(count)
            for a, b in zip(run(backend.name, function, inputs, grads), first, strict=True):
                assert torch.equal(a, b)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(before)


def allocated_bytes(backend: Backend, function: Function, inputs: Sequence[Tensor]) -> int:
    """What a call without gradients allocates in all."""
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profile:
        function(*inputs)
    kind = "self_device_memory_usage" if backend.device == "cuda" else "self_cpu_memory_usage"
    return sum(max(0, getattr(event, kind)) for event in profile.events())


def check_func_transforms(function: Function, inputs: Sequence[Tensor]) -> None:
    """grad, vmap over samples and jvp; the first dimension of every input is that of the samples, in float64."""

    def loss(*tensors: Tensor) -> Tensor:
        return torch.stack([y.square().sum() for y in as_tuple(function(*tensors))]).sum()

    leaves = leaves_of(inputs)
    expected = torch.autograd.grad(loss(*leaves), leaves)
    every = tuple(range(len(inputs)))
    gradient = torch.func.grad(loss, argnums=every)
    per_sample = torch.func.vmap(lambda *samples: gradient(*(s[None] for s in samples)))
    for found in (gradient(*inputs), [g[:, 0] for g in per_sample(*inputs)]):
        for a, e in zip(found, expected, strict=True):
            torch.testing.assert_close(a, e)
    _, tangent = torch.func.jvp(loss, tuple(inputs), tuple(map(torch.ones_like, inputs)))
    torch.testing.assert_close(tangent, sum(e.sum() for e in expected))


def check_compile(
    backend: Backend, function: Function, inputs: Sequence[Tensor], operators: Sequence[str]
) -> list[Tensor]:
    """One graph, with the fused ``operators`` of this backend in it, forward and backward; returns what it gave."""
    from torch._dynamo.backends.common import aot_autograd

    grads = make_grads(function, inputs)
    expected = run(backend.name, function, inputs, grads)
    called: list[str] = []

    def collect(graph: torch.fx.GraphModule, _: Any) -> Any:
        called.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend=aot_autograd(fw_compiler=collect, bw_compiler=collect))
    found = run(backend.name, compiled, inputs, grads)
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a, e)
    namespace = {"cpu": "sod_ops.", "cuda": "sod_ops.", "triton": "sod_ops_triton."}.get(backend.name)
    ours = {name for name in called if name.startswith("sod_ops")}
    wanted = {f"{namespace}{name}{way}.default" for name in operators for way in ("", "_backward")}
    assert ours == (wanted if namespace else set())
    return found


def check_inductor_and_any_size(function: Function, *sizes: Sequence[Tensor]) -> None:
    """Compiled by inductor for dynamic shapes, between other operators."""
    torch._dynamo.reset()

    def model(*tensors: Tensor) -> Tensor:
        results = as_tuple(function(*(torch.relu(t + 1) for t in tensors)))
        return torch.stack([y.mul(2).square().sum() for y in results]).sum()

    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for inputs in sizes:
        found = [torch.autograd.grad(f(*leaves), leaves) for f in (model, compiled) for leaves in [leaves_of(inputs)]]
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b)


def check_export(function: Function, inputs: Sequence[Tensor]) -> None:
    class Module(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Any:
            return function(*tensors)

    program = torch.export.export(Module(), tuple(inputs))
    for a, e in zip(as_tuple(program.module()(*inputs)), as_tuple(function(*inputs)), strict=True):
        torch.testing.assert_close(a, e)

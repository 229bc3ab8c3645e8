"""Choosing a backend: context over environment over auto, and never a silent substitute for an explicit request."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import sod_ops
from sod_ops import _extension, backends

ROOT = Path(__file__).resolve().parent.parent

CALL = """
{before}
import torch, warnings
import sod_ops
x, reduce, expand = torch.randn(2, 8, 4, 4), torch.randn(2, 8), torch.randn(8, 2)
{body}
"""


def python(body: str, before: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs ``body`` in a process of its own, without this one's TRITON_INTERPRET."""
    clean = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "SOD_OPS_BACKEND")}
    clean.update(environment, PYTHONPATH=str(ROOT))
    return subprocess.run(
        [sys.executable, "-c", CALL.format(before=before, body=body)],
        env=clean,
        capture_output=True,
        text=True,
        timeout=300,
    )


def squeeze_excite() -> torch.Tensor:
    return sod_ops.squeeze_excite(torch.ones(2, 8, 4, 4), torch.ones(2, 8), None, torch.ones(8, 2), None)


def chosen() -> str:
    """The backend that a call on CPU tensors takes now."""
    kernels = sod_ops.ops.squeeze_excite._select("cpu")
    if kernels is None:
        return "reference"
    return {"sod_ops": "cpu", "sod_ops_triton": "triton"}[kernels.forward.namespace]


def test_the_same_four_names_everywhere() -> None:
    assert set(sod_ops.available_backends()) == {"reference", "cpu", "triton", "cuda"}
    assert set(sod_ops.available_backends("cuda")) == set(backends.NAMES)


def test_the_reference_is_always_there() -> None:
    for device in ("cpu", "cuda", "meta", "mps", torch.device("cpu")):
        assert sod_ops.available_backends(device)["reference"] is None


def test_each_missing_backend_says_why() -> None:
    for device in ("cpu", "cuda", "meta"):
        for name, why in sod_ops.available_backends(device).items():
            assert why is None or len(why) > 10, (device, name)
    assert "cpu tensors" in str(sod_ops.available_backends("cuda")["cpu"])
    assert "cuda tensors" in str(sod_ops.available_backends("cpu")["cuda"])


@pytest.mark.parametrize("device", ["nosuch", 3.5, None, "cuda:x"])
def test_a_device_that_is_none(device: object) -> None:
    with pytest.raises(ValueError, match="available_backends: device must be"):
        sod_ops.available_backends(device)  # type: ignore[arg-type]


def test_auto_takes_the_fastest() -> None:
    assert chosen() == "cpu"


def test_context() -> None:
    with sod_ops.use_backend("reference"):
        assert chosen() == "reference"
        with sod_ops.use_backend("cpu"):
            assert chosen() == "cpu"
        assert chosen() == "reference"
    assert chosen() == "cpu"


def test_context_ends_with_an_exception() -> None:
    with pytest.raises(KeyError), sod_ops.use_backend("reference"):
        raise KeyError
    assert chosen() == "cpu"


def test_context_belongs_to_its_thread() -> None:
    seen: list[str] = []
    with sod_ops.use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(chosen()))
        thread.start()
        thread.join()
        assert chosen() == "reference"
    assert seen == ["cpu"]


def test_environment_and_context_over_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOD_OPS_BACKEND", "reference")
    assert chosen() == "reference"
    with sod_ops.use_backend("cpu"):
        assert chosen() == "cpu"
    monkeypatch.setenv("SOD_OPS_BACKEND", "")
    assert chosen() == "cpu"


def test_environment_that_names_no_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOD_OPS_BACKEND", "fastest")
    with pytest.raises(ValueError, match="SOD_OPS_BACKEND must be one of reference, cpu, triton, cuda, got 'fastest'"):
        squeeze_excite()


@pytest.mark.parametrize("name", ["fastest", "", None, 3, ["cpu"]])
def test_a_name_that_is_none(name: object) -> None:
    with pytest.raises(ValueError, match="use_backend: name must be one of reference, cpu, triton, cuda, got"):
        sod_ops.use_backend(name).__enter__()  # type: ignore[arg-type]


def test_an_explicit_request_never_falls_back() -> None:
    with sod_ops.use_backend("cuda"), pytest.raises(RuntimeError) as error:
        squeeze_excite()
    message = str(error.value)
    assert "squeeze_excite: backend 'cuda' was requested and cannot serve cpu tensors" in message
    assert "Available: reference, cpu" in message
    assert "serves cuda tensors" in message


def test_triton_on_cpu_tensors_needs_the_interpreter() -> None:
    run = python("sod_ops.squeeze_excite(x, reduce, None, expand, None)", SOD_OPS_BACKEND="triton")
    assert run.returncode != 0
    assert "TRITON_INTERPRET=1" in run.stderr


def test_without_the_compiled_part_the_reference_serves_and_says_so_once() -> None:
    run = python(
        """
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        sod_ops.squeeze_excite(x, reduce, None, expand, None)
print(len(caught), caught[0].message, sod_ops.available_backends()["cpu"])
""",
        before="import sys; sys.modules['sod_ops._C'] = None",
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("1 sod_ops runs its plain PyTorch reference on cpu tensors")
    assert "the compiled part is not there" in run.stdout


def test_import_is_light() -> None:
    """No peer library, no Triton, and none of torch's compiler is imported with the package."""
    run = python(
        "import sys\n"
        "heavy = ('torchvision', 'timm', 'segmentation_models_pytorch', 'triton', 'torch._dynamo', 'torch._inductor',"
        " 'matplotlib', 'rich')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    assert run.stdout.strip() == "[]", run.stdout + run.stderr


# Kernels that serve a part of the calls: squeeze_excite's CUDA kernel, whose place Triton takes beyond. Here CPU tensors'
# kernels play its part.


class Beyond(NamedTuple):
    """What stands for a device that holds so many pixels of a sample on chip, and what it was asked."""

    pixels: int
    asked: list[tuple[int, ...]]


@pytest.fixture
def beyond(monkeypatch: pytest.MonkeyPatch) -> Iterator[Beyond]:
    op = sod_ops.ops.squeeze_excite
    device = Beyond(64, [])

    def fits(_: int, channels: int, pixels: int, reduces: bool, reduced: int, item_size: int) -> bool:
        device.asked.append((channels, pixels, reduces, reduced, item_size))
        return pixels <= device.pixels

    limited = op._select._kernels["cpu"]._replace(serves=op._fits_on_chip)
    monkeypatch.setitem(op._select._kernels, "cpu", limited)
    monkeypatch.setattr(op._select, "_chosen", {})
    monkeypatch.setitem(backends._AUTO_ORDER, "cpu", ("cpu", "triton", "reference"))
    monkeypatch.setattr(_extension, "squeeze_excite_fits", fits)
    op._is_for_chip.cache_clear()
    yield device
    op._is_for_chip.cache_clear()


def taken(x: torch.Tensor, reduced: int | None = 2) -> str:
    """The namespace of the operator that a call takes."""
    channels = x.shape[1]
    hidden = channels if reduced is None else reduced
    parameters = (None if reduced is None else torch.ones(hidden, channels), None, torch.ones(channels, hidden), None)
    with torch.profiler.profile() as profile:
        sod_ops.squeeze_excite(x, *parameters)
    (name,) = {event.name for event in profile.events() if event.name.startswith("sod_ops")}
    return name.partition("::")[0]


def test_auto_takes_the_next_backend_beyond_what_the_first_serves(beyond: Beyond) -> None:
    for _ in range(2):
        assert taken(torch.ones(2, 8, 8, 8)) == "sod_ops"
        assert taken(torch.ones(2, 8, 8, 9)) == "sod_ops_triton"
        assert taken(torch.ones(7, 8, 8, 8)) == "sod_ops"
    # Once for each shape of a sample.
    assert beyond.asked == [(8, 64, True, 2, 4), (8, 72, True, 2, 4)]
    assert taken(torch.ones(2, 8, 4, 4), reduced=None) == "sod_ops"
    assert beyond.asked[2:] == [(8, 16, False, 0, 4)]


def test_weights_that_outweigh_a_sample_are_read_once_for_several(beyond: Beyond) -> None:
    assert taken(torch.ones(1, 300, 1, 1), reduced=None) == "sod_ops_triton"  # 360 KB for 1.2 KB
    assert beyond.asked == []


@pytest.mark.usefixtures("beyond")
def test_an_explicit_request_stays_beyond() -> None:
    """The operator itself refuses what it can't serve: tests/test_cuda_on_cpu.py."""
    with sod_ops.use_backend("cpu"):
        assert taken(torch.ones(2, 8, 8, 9)) == "sod_ops"
    with sod_ops.use_backend("triton"):
        assert taken(torch.ones(2, 8, 4, 4)) == "sod_ops_triton"


@pytest.mark.usefixtures("beyond")
def test_bad_input_is_named_where_sizes_are_looked_at_first() -> None:
    for x, weight, message in (
        (torch.ones(2, 8, 8), torch.ones(2, 8), "x must be of shape"),
        (torch.ones(2, 8, 8, 8), torch.ones(3), "reduce_weight must be of shape"),
        (None, torch.ones(2, 8), "x must be a Tensor"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"squeeze_excite: {message}"):
            sod_ops.squeeze_excite(x, weight, None, torch.ones(8, 2), None)
    with pytest.raises(TypeError, match="squeeze_excite: expand_weight must be a Tensor"):
        sod_ops.squeeze_excite(torch.ones(2, 8, 8, 8), None, None, None, None)


@pytest.mark.usefixtures("beyond")
def test_compiled_code_takes_the_backend_for_its_size() -> None:
    """A known size decides; one that is left open is not asked for, and whatever serves all sizes takes the call."""
    graphs: list[list[str]] = []

    def collect(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append([str(n.target) for n in graph.graph.nodes if str(n.target).startswith("sod_ops")])
        return graph.forward

    parameters = (torch.ones(2, 8), None, torch.ones(8, 2), None)
    for dynamic, sizes in ((False, (8, 9)), (True, (8,))):
        torch._dynamo.reset()
        compiled = torch.compile(sod_ops.squeeze_excite, fullgraph=True, dynamic=dynamic, backend=collect)
        for size in sizes:
            x = torch.randn(2, 8, 8, size)
            torch.testing.assert_close(compiled(x, *parameters), sod_ops.squeeze_excite(x, *parameters))
    names = ["sod_ops.squeeze_excite.default", "sod_ops_triton.squeeze_excite.default"]
    assert graphs == [[names[0]], [names[1]], [names[1]]]
    with sod_ops.use_backend("cpu"):
        torch._dynamo.reset()
        torch.compile(sod_ops.squeeze_excite, fullgraph=True, backend=collect)(torch.randn(2, 8, 8, 9), *parameters)
    assert graphs[3] == [names[0]]


@pytest.mark.usefixtures("beyond")
@pytest.mark.parametrize("dynamic", [{0: "N"}, {2: "H", 3: "W"}])
def test_exported_programs_take_any_size(dynamic: dict[int, str]) -> None:
    """What is left open gets no bound from where a sample is held."""

    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return sod_ops.squeeze_excite(x, torch.ones(2, 8), None, torch.ones(8, 2), None)

    dims = {d: torch.export.Dim(name, min=2, max=64) for d, name in dynamic.items()}
    program = torch.export.export(Module(), (torch.randn(3, 8, 7, 6),), dynamic_shapes={"x": dims})
    for shape in ((5, 8, 7, 6),) if 0 in dynamic else ((3, 8, 20, 30), (3, 8, 2, 3)):
        x = torch.randn(shape)
        torch.testing.assert_close(program.module()(x), Module()(x))

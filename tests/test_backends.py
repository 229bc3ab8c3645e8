"""Choosing a backend: context over environment over auto, and never a silent substitute for an explicit request."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import sod_ops
from sod_ops import backends

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

"""Which backends the tests run on: all that this machine can have. On a machine without a GPU none of them is skipped."""

import importlib.util
import os
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
import vector_math

if not torch.cuda.is_available():
    # Before anything imports Triton: its kernels run in the interpreter, on CPU tensors.
    os.environ.setdefault("TRITON_INTERPRET", "1")

import sod_ops

ON_GPU = torch.cuda.is_available()
GPU_ONLY = ("test_gpu.py", "test_gpu_models.py")
collect_ignore = [] if ON_GPU else list(GPU_ONLY)
# PyTorch's convolutions of float32 would otherwise round their factors to ten bits.
torch.backends.cudnn.allow_tf32 = False

vector_math.settle()


class Backend(NamedTuple):
    name: str
    device: str

    @property
    def interpreted(self) -> bool:
        """Triton's interpreter takes 0.1 ms for each operation of each program: it gets the small cases only."""
        return self.name == "triton" and self.device == "cpu"


BACKENDS = [Backend("reference", "cpu"), Backend("cpu", "cpu")]
if ON_GPU:
    BACKENDS += [Backend("reference", "cuda"), Backend("triton", "cuda"), Backend("cuda", "cuda")]
else:
    BACKENDS += [Backend("triton", "cpu")]


@pytest.fixture(params=BACKENDS, ids=lambda b: f"{b.name}-{b.device}")
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each backend in turn, made the one that every op takes."""
    chosen: Backend = request.param
    with sod_ops.use_backend(chosen.name):
        yield chosen


@pytest.fixture(params=[b for b in BACKENDS if b.name != "reference"], ids=lambda b: f"{b.name}-{b.device}")
def kernel_backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """The same without the reference: for what only kernels promise."""
    chosen: Backend = request.param
    with sod_ops.use_backend(chosen.name):
        yield chosen


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what a GPU adds (``-m gpu``), and leaves out what has nothing to test.

    On a GPU an op without a CUDA C++ kernel has no test there: the op's module says which backends have kernels.
    """
    without_opcheck = importlib.util.find_spec("expecttest") is None
    for item in list(items):
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        chosen = parameters.get("backend") or parameters.get("kernel_backend")
        without = getattr(item.module, "WITHOUT_KERNELS", ())
        if isinstance(chosen, Backend) and chosen.name in without:
            items.remove(item)
        if item.path.name in GPU_ONLY or (isinstance(chosen, Backend) and chosen.device == "cuda"):
            item.add_marker("gpu")
        if without_opcheck and "opcheck" in item.name:
            item.add_marker(pytest.mark.skip(reason="torch.library.opcheck needs expecttest, which is not installed"))

"""One stem per op, the same in every layer: whoever knows an op's name knows its files."""

from pathlib import Path

import pytest
from test_operators import COMPOSITES, OPS, public_functions

ROOT = Path(__file__).resolve().parent.parent

KERNELS = ("sod_ops/triton/{op}.py", "csrc/cpu/{op}.cpp", "csrc/simd/{op}.cpp")
FILES = (
    "sod_ops/ops/{op}.py",
    "sod_ops/reference/{op}.py",
    "tests/test_{op}.py",
    "benchmarks/bench_{op}.py",
)


# Where two ops are the same arithmetic, one file holds it.
SHARED = {f"csrc/simd/{op}.cpp": "csrc/simd/mean_maximum.cpp" for op in ("channel_pool", "global_pool")}


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_all_its_files(op: str) -> None:
    files = FILES if op in COMPOSITES else FILES + KERNELS
    names = [SHARED.get(name, name) for name in (f.format(op=op) for f in files)]
    missing = [name for name in names if not (ROOT / name).is_file()]
    assert not missing
    readme = (ROOT / "README.md").read_text()
    for name in public_functions(op):
        assert f"`{name}`" in readme


def test_no_file_holds_two_things() -> None:
    """About 400 lines is where a source file starts to."""
    sources = [
        *ROOT.glob("sod_ops/**/*.py"),
        *ROOT.glob("csrc/**/*.*"),
        *ROOT.glob("benchmarks/*.py"),
        *ROOT.glob("examples/*.py"),
    ]
    assert {str(f.relative_to(ROOT)): n for f in sources if (n := len(f.read_text().splitlines())) > 420} == {}

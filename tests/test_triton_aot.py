"""Every Triton kernel compiles for every architecture that we name, without spilling registers (tests/aot.py)."""

import os
import subprocess
import sys
from pathlib import Path

import sod_ops

SCRIPT = Path(__file__).parent / "aot.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in a process where Triton compiles: this one may have imported its interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = [str(Path(sod_ops.__file__).parents[1]), str(SCRIPT.parent), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)


def test_kernels_compile_without_spilling() -> None:
    result = run(str(SCRIPT))
    assert result.returncode == 0, result.stderr


def test_spills_are_found() -> None:
    """With 24 registers a thread the pooling kernel cannot but spill."""
    result = run(str(SCRIPT), "--architectures", "90", "--kernels", "pool_kernel", "--max-registers", "24")
    assert result.returncode == 1
    assert "pool_kernel" in result.stderr
    assert "spills" in result.stderr


def test_kernels_without_cases_are_found() -> None:
    code = """
import aot, torch, sod_ops.triton.squeeze_excite as op
op.ahead_of_time_cases = lambda: [op._Case((2, 8, 8, 8), 4, torch.float32).forward()]
print(aot.record()[1])
"""
    result = run("-c", code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "['scale_backward_kernel', 'weight_gradient_kernel']"

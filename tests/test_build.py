"""The compiled part: what it says of itself, its instruction sets, and what is left where it can't be built."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton

from sod_ops import _extension

ROOT = Path(__file__).resolve().parent.parent
INFO = _extension.build_info()
# Triton's wheel brings it; the compiler's package alone does not.
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def run(*command: str, cwd: Path = ROOT, **environment: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(cwd), **environment}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_build_info() -> None:
    assert INFO is not None, _extension.why_missing()
    assert re.match(r"(GCC|Clang) \d+", INFO["compiler"])
    assert INFO["torch"] == torch.__version__ or torch.cuda.is_available()
    assert INFO["instruction_set"] in INFO["instruction_sets"]
    assert INFO["instruction_sets"][0] == "default"
    assert all(architecture.isdigit() for architecture in INFO["cuda_architectures"])


def test_setup_is_short() -> None:
    assert len((ROOT / "setup.py").read_text().splitlines()) < 100


def test_instruction_sets_share_no_symbol() -> None:
    """A weak symbol common to two builds of a file may be linked from the one that an older machine can't run."""
    objects = list(ROOT.glob("build/temp*/simd/*.o"))
    assert len(objects) >= len(INFO["instruction_sets"])
    for path in objects:
        symbols = run("nm", "-C", str(path)).splitlines()
        weak = [line for line in symbols if re.search(r" [WVu] ", line)]
        assert [line for line in weak if not re.search(r"\b(DEFAULT|AVX2|AVX512)\b", line)] == [], path


# Where CHECK finds the package and vector_math.
SEARCH = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
CHECK = """
import torch, sod_ops
from sod_ops import _extension
from sod_ops.ops.copy_paste import paste
import vector_math
vector_math.settle()
torch.manual_seed(0)

def compare(function, leaves):
    found = []
    for backend in ("cpu", "reference"):
        with sod_ops.use_backend(backend):
            y = function()
            found.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    for a, b in zip(*found):
        # The builds differ in rounding alone; each op's tests hold one of them to the contract.
        unit = torch.finfo(leaves[0].dtype).eps
        torch.testing.assert_close(a, b, rtol=16 * unit, atol=16 * unit * b.abs().max().item())

instances = (torch.rand(3, 4, 13, 17) > 0.8, torch.tensor([1, 2, 0]), torch.rand(3, 4) > 0.3, 1.5, 0.7)
for layout in (torch.contiguous_format, torch.channels_last):
    images, found = torch.randint(256, (3, 37, 13, 17), dtype=torch.uint8).contiguous(memory_format=layout), []
    for backend in ("cpu", "reference"):
        with sod_ops.use_backend(backend):
            found.append(paste(images, *instances))
    assert all(torch.equal(*pair) for pair in zip(*found))
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        x = torch.randn(3, 37, 13, 17).to(dtype).contiguous(memory_format=layout).requires_grad_()
        p = [torch.randn(s).mul(0.2).to(dtype).requires_grad_() for s in ((9, 37), (9,), (37, 9), (37,))]
        for activation in ("identity", "relu", "relu6", "leaky_relu", "silu", "gelu", "gelu_tanh", "hardswish", "mish"):
            compare(lambda: sod_ops.squeeze_excite(x, *p, activation=activation, gate="hardsigmoid"), [x, *p])
        compare(lambda: paste(x, *instances)[0], [x])
        branches = [torch.randn(3, c, h, 5).to(dtype).requires_grad_() for c, h in ((19, 1), (5, 6))]
        compare(lambda: sod_ops.pyramid_upsample_concat(x, branches), [x, *branches])
        targets = torch.rand(x.shape).to(dtype)
        classes = torch.randint(x.shape[1], (3, 13, 17))
        for gamma in (0.0, 1.0, 1.5, 2.0):
            compare(lambda: sod_ops.sigmoid_focal_loss(4 * x, targets, gamma=gamma, reduction="none"), [x])
            compare(lambda: sod_ops.softmax_focal_loss(4 * x, classes, gamma=gamma, reduction="none"), [x])
    for dtype in (torch.float32, torch.float64):
        like = {"memory_format": layout}
        maps = [torch.randn(2, 5, n, n + 2).to(dtype).contiguous(**like).requires_grad_() for n in (37, 18, 5)]
        weight = torch.randn(35, 15, 3, 3).to(dtype).requires_grad_()
        for mode in ("bilinear", "nearest"):
            compare(lambda: sod_ops.pyramid_conv2d(maps[0], maps[1:], weight, mode=mode), [*maps, weight])
for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    maps = [torch.rand(2, 1, 45, 37).to(dtype).requires_grad_() for _ in range(2)]
    mask = torch.rand(2, 1, 45, 37) > 0.5
    compare(lambda: sod_ops.box_filter(maps[0], 15), maps[:1])
    # Maps of which one is like the other: with nothing in common, the similarity would be what is left of a difference.
    compare(lambda: sod_ops.ssim(maps[0], (maps[0] + maps[1]) / 2, reduction="none"), maps)
    chances = [m.detach().clamp(0.1, 0.9).requires_grad_() for m in maps]
    compare(lambda: sod_ops.bce_ssim_iou_loss(chances, mask.float(), reduction="none"), chances)
    for published in (False, True):
        compare(lambda: sod_ops.structure_loss(maps, mask.float(), as_published=published, reduction="none"), maps)
        options = {"as_published": published, "reduction": "none"}
        compare(lambda: sod_ops.adaptive_pixel_intensity_loss(chances, mask.float(), **options), chances)
    compare(lambda: sod_ops.tversky_loss(maps, mask.float(), reduction="none"), maps)
print(_extension.build_info()["instruction_set"])
"""


@pytest.mark.parametrize("name", INFO["instruction_sets"])
def test_every_instruction_set_gives_the_same(name: str) -> None:
    best = INFO["instruction_sets"].index(INFO["instruction_set"])
    expected = INFO["instruction_sets"][min(best, INFO["instruction_sets"].index(name))]
    assert run(sys.executable, "-c", CHECK, SOD_OPS_CPU_CAPABILITY=name, PYTHONPATH=SEARCH).strip() == expected


@pytest.mark.parametrize("source", sorted(path.name for path in ROOT.glob("csrc/cuda/*.cu")))
def test_cuda_sources_compile_without_spills(source: str, tmp_path: Path) -> None:
    """Every .cu for every architecture that is supported, where nvcc is there; no GPU is needed."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        assert "CI" not in os.environ, "CI has nvcc"
        return
    include = Path(torch.__file__).parent / "include"
    output = tmp_path / "kernels.o"
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in (75, 80, 90, 100, 120)]
    run(nvcc, "-std=c++20", "-O3", "-DUSE_CUDA", "--threads", "0", *targets, "-Xcompiler", "-fPIC",
        "-isystem", str(include), "-c", str(ROOT / "csrc" / "cuda" / source), "-o", str(output))  # fmt: skip
    usage = run(str(CUOBJDUMP), "--dump-resource-usage", str(output))
    assert "REG:" in usage
    assert [line for line in usage.splitlines() if re.search(r"STACK:[1-9]|LOCAL:[1-9]", line)] == []


def test_an_installed_package_needs_no_checkout(tmp_path: Path) -> None:
    """A wheel holds all that the package needs."""
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", str(tmp_path), str(ROOT))
    (wheel,) = tmp_path.glob("*.whl")
    target = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), str(wheel))
    body = "import sod_ops; print(sod_ops.__file__, sod_ops.available_backends()['cpu'])"
    says = run(sys.executable, "-c", body, cwd=tmp_path, PYTHONPATH=str(target))
    assert says.split() == [str(target / "sod_ops" / "__init__.py"), "None"]


def test_without_a_compiler_the_build_goes_on(tmp_path: Path) -> None:
    checkout = tmp_path / "a checkout"  # with a space in its path
    for name in ("csrc", "sod_ops"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout / name)
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=checkout, env={**os.environ, "CXX": "no-such-compiler"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "sod_ops: the C++ part was not built" in done.stderr
    says = run(sys.executable, "-c", "import sod_ops; print(sod_ops.available_backends()['cpu'])", cwd=checkout)
    assert "the compiled part is not there" in says

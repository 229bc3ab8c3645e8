"""The command line: what each command prints and writes, and every mistake as one line and an exit code."""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sod_ops
from sod_ops import _extension
from sod_ops.cli import machine
from sod_ops.cli.main import main
from sod_ops.reference.squeeze_excite import squeeze_excite

_ROOT = Path(sod_ops.__file__).parent.parent

# The models that these tests name, as a user would have them: a module in the current directory.
_MODELS = """
import torch
from torch import nn

from sod_ops._peers import import_peer

SqueezeExcitation = import_peer("torchvision").ops.misc.SqueezeExcitation


class Tiny(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.excite = SqueezeExcitation(width, 4)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        features = self.excite(self.norm(self.stem(x)).relu())
        return {"logits": self.head(self.drop(features.mean((2, 3)))), "features": [features]}


class NoFloats(Tiny):
    def forward(self, x):
        return super().forward(x)["logits"].argmax(1)


class Overflowing(Tiny):
    def forward(self, x):
        return super().forward(x)["logits"] * 1e30 * 1e30


def plain():
    return nn.Conv2d(3, 4, 1)


def broken():
    raise RuntimeError("no such file:\\n  weights.pt")


def leaving():
    raise SystemExit(3)


class Namespace:
    tiny = Tiny


number = 3
"""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Waking a second one takes longer than these models."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory with a module of models, and nothing in the environment that steers the commands."""
    (tmp_path / "my_models.py").write_text(_MODELS)
    (tmp_path / "my_broken.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delenv("SOD_OPS_BACKEND", raising=False)
    yield tmp_path
    for name in ("my_models", "my_broken"):
        sys.modules.pop(name, None)


def _accelerate(*words: str) -> int:
    return main(["accelerate", *words, "--device", "cpu", "--input", "2,3,16,16", "--rounds", "2"])


def _written(folder: str = "out") -> dict:
    return json.loads(Path(folder, "accelerate.json").read_text())


def test_doctor_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for expected in (sod_ops.__version__, torch.__version__, machine.cpu_name(), machine.version_of("timm") or "timm"):
        assert expected in out
    section = out.partition("Backends for cpu tensors\n")[2].partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in section] == ["reference", "cpu", "triton", "cuda"]
    for line, reason in zip(section, sod_ops.available_backends("cpu").values(), strict=True):
        assert line.split(maxsplit=1)[1] == ("works" if reason is None else f"missing: {reason}")


def test_doctor_describes_the_compiled_part(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    info = {
        "compiler": "g++ 12.2",
        "instruction_sets": ["default", "avx2"],
        "instruction_set": "avx2",
        "cuda_architectures": ["sm_80", "sm_90"],
    }
    monkeypatch.setattr(_extension, "build_info", lambda: info)
    main(["doctor"])
    out = capsys.readouterr().out
    for expected in ("g++ 12.2", "default, avx2\n", "chosen here", "sm_80, sm_90"):
        assert expected in out


def test_doctor_says_why_the_compiled_part_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_extension, "build_info", lambda: None)
    monkeypatch.setattr(_extension, "why_missing", lambda: "it was never built")
    assert main(["doctor"]) == 0
    assert "it was never built" in capsys.readouterr().out


def _raises(*_: object, **__: object) -> Tensor:
    raise RuntimeError("no kernel image is available")


def _wrong(*tensors: Tensor) -> Tensor:
    return 1.01 * squeeze_excite(*tensors)


@pytest.mark.parametrize(("op", "said"), [(_raises, "RuntimeError: no kernel image"), (_wrong, "AssertionError")])
def test_doctor_tries_each_backend(
    op: Callable[..., Tensor], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sod_ops, "squeeze_excite", op)
    assert main(["doctor"]) == 1
    assert f"FAILS: {said}" in capsys.readouterr().out


def test_doctor_needs_neither_rich_nor_matplotlib_nor_a_peer() -> None:
    program = (
        "import sys\n"
        "absent = ('rich', 'matplotlib', 'timm', 'torchvision', 'segmentation_models_pytorch')\n"
        "sys.modules.update(dict.fromkeys(absent))\n"
        "from sod_ops.cli.main import main\n"
        "sys.exit(main(['doctor']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Backends for cpu tensors" in done.stdout


def test_accelerate_writes_what_it_measured(capsys: pytest.CaptureFixture[str]) -> None:
    models = ["my_models:Tiny", "timm:mobilenetv3_small_050(num_classes=7)", "my_models:plain"]
    assert (
        main(["accelerate", *models, "--device", "cpu", "--input", "2,3,32,32", "--rounds", "3", "--out", "a/b"]) == 0
    )
    out = capsys.readouterr().out
    assert "my_models:plain: there is nothing to swap in this model" in out
    assert Path("a/b/accelerate.png").read_bytes().startswith(b"\x89PNG")

    written = _written("a/b")
    assert written["command"][:4] == ["python", "-m", "sod_ops", "accelerate"]
    assert written["command"][4:7] == models
    assert written["settings"]["input"] == [2, 3, 32, 32]
    assert written["settings"]["dtype"] == "float32"
    assert written["versions"]["torch"] == torch.__version__
    assert written["machine"]["cpu"] == machine.cpu_name()
    assert [model["model"] for model in written["models"]] == models
    tiny, small, plain = written["models"]
    assert tiny["swapped"] == [["excite", "SqueezeExcitation"]]
    assert len(small["swapped"]) + len(small["left"]) == 9
    assert plain["phases"] == {}
    assert plain["fault"] is None
    for model in (tiny, small):
        assert model["fault"] is None
        assert model["deviation"]["function"] < 1e-6
        assert 0 < model["deviation"]["output"] < 1e-4
        assert model["peak_memory_bytes"]["before"] > 2 * 3 * 32 * 32 * 4
        for phase in ("forward", "step"):
            samples = model["phases"][phase]["samples_milliseconds"]
            assert {name: len(values) for name, values in samples.items()} == {"before": 3, "after": 3, "free": 3}
            ratios = [b / a for b, a in zip(samples["before"], samples["after"], strict=True)]
            assert model["phases"][phase]["speed_up"]["median"] == pytest.approx(statistics.median(ratios), rel=0.01)
            assert model["phases"][phase]["milliseconds"]["before"] == pytest.approx(
                statistics.median(samples["before"]), rel=0.01
            )
        assert f"{model['phases']['step']['speed_up']['median']:.2f}x" in out


def test_blocks_that_cannot_be_skipped_have_no_bound(capsys: pytest.CaptureFixture[str]) -> None:
    """A decoder takes a list of maps, and does not run when its blocks hand that on."""
    model = "smp:UPerNet(encoder_name=resnet18, encoder_weights=None)"
    assert main(["accelerate", model, "--device", "cpu", "--input", "2,3,64,64", "--rounds", "1", "--out", "a"]) == 0
    (upernet,) = _written("a")["models"]
    assert upernet["fault"] is None
    assert set(upernet["phases"]["step"]["samples_milliseconds"]) == {"before", "after"}


@pytest.mark.parametrize(
    "options",
    [("--dtype", "bfloat16", "--channels-last"), ("--dtype", "float64"), ("--compile",)],
    ids=lambda options: options[-1],
)
def test_accelerate_options(options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    compile_with_inductor = torch.compile

    def compile_quickly(model: nn.Module) -> object:  # the C++ that inductor writes takes a minute to compile
        compiled.append(model)
        return compile_with_inductor(model, backend="eager")

    monkeypatch.setattr(torch, "compile", compile_quickly)
    assert _accelerate("my_models:Tiny", *options) == 0
    written = _written()
    assert written["models"][0]["swapped"]
    assert written["models"][0]["deviation"]["function"] < 1e-10
    assert len(compiled) == (3 if "--compile" in options else 0)
    if "--dtype" in options:
        assert written["settings"]["dtype"] == options[1]


def test_accelerate_does_without_matplotlib(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert _accelerate("my_models:Tiny") == 0
    assert "no plot" in capsys.readouterr().out
    assert Path("out/accelerate.json").exists()
    assert not Path("out/accelerate.png").exists()


def _swap_by(forward: Callable[[nn.Module, Tensor], Tensor]) -> Callable[[nn.Module], types.SimpleNamespace]:
    """An accelerate() that gives every squeeze-and-excitation another forward."""

    def accelerate(model: nn.Module) -> types.SimpleNamespace:
        swapped = []
        for name, module in model.named_modules():
            if type(module).__name__ == "SqueezeExcitation":
                module.forward = types.MethodType(forward, module)
                swapped.append((name, "SqueezeExcitation"))
        return types.SimpleNamespace(swapped=swapped, left=[])

    return accelerate


def _right(module: nn.Module, x: Tensor) -> Tensor:
    return type(module).forward(module, x)


def _slightly_off(module: nn.Module, x: Tensor) -> Tensor:
    return (1 + 1e-5) * _right(module, x)


def _without_its_parameters_gradients(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        gates = module.scale_activation(module.fc2(module.activation(module.fc1(module.avgpool(x)))))
    return x * gates


def _off_in_float32_only(module: nn.Module, x: Tensor) -> Tensor:
    return _right(module, x) * (1.01 if x.dtype == torch.float32 else 1)


def _backward_off_in_float32_only(module: nn.Module, x: Tensor) -> Tensor:
    y = _right(module, x)
    return 2 * y - y.detach() if x.dtype == torch.float32 else y


def _raising(module: nn.Module, x: Tensor) -> Tensor:
    raise IndexError("beyond the end")


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (_slightly_off, "in float64, where 1.0e-06 is the limit"),
        (_without_its_parameters_gradients, "deviates by inf in float64"),
        (_off_in_float32_only, "in float32, where"),
        (_backward_off_in_float32_only, "the gradient of"),
        (_raising, "the accelerated model raises IndexError: beyond the end"),
    ],
)
def test_accelerate_finds_a_wrong_swap(
    forward: Callable[..., Tensor], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sod_ops, "accelerate", _swap_by(_right))
    assert _accelerate("my_models:Tiny") == 0
    capsys.readouterr()
    monkeypatch.setattr(sod_ops, "accelerate", _swap_by(forward))
    assert _accelerate("my_models:Tiny") == 1
    out = capsys.readouterr().out
    assert "DIFFERS from the untouched model" in out
    assert said in out
    assert said in _written()["models"][0]["fault"]
    assert _written()["models"][0]["phases"] == {}


def test_accelerate_says_what_was_left_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def accelerate(model: nn.Module) -> types.SimpleNamespace:
        return types.SimpleNamespace(swapped=[], left=[("excite", "SqueezeExcitation", "it has hooks")])

    monkeypatch.setattr(sod_ops, "accelerate", accelerate)
    assert _accelerate("my_models:Tiny") == 0
    assert "left alone: 1 SqueezeExcitation: it has hooks" in capsys.readouterr().out
    assert _written()["models"][0]["left"] == [["excite", "SqueezeExcitation", "it has hooks"]]


def test_accelerate_keeps_the_figures_before_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert _accelerate("my_models:Tiny", "my_models:NoFloats") == 2
    assert "no tensor that a gradient could start from" in capsys.readouterr().err
    assert [model["model"] for model in _written()["models"]] == ["my_models:Tiny"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "the following arguments are required: command"),
        (["accelerat"], "invalid choice: 'accelerat'"),
        (["doctor", "--verbose"], "unrecognized arguments: --verbose"),
        (["accelerate"], "required: MODEL"),
        (
            ["accelerate", "seresnet50"],
            "MODEL must be like timm:seresnet50 or package.module:callable, got 'seresnet50'",
        ),
        (["accelerate", "tim:seresnet50"], "there is no library or module 'tim' (did you mean timm?)"),
        (["accelerate", "timm:seresnet5"], "timm has no model 'seresnet5' (did you mean seresnet50"),
        (["accelerate", "torchvision:efficientnet_b"], "torchvision has no model 'efficientnet_b' (did you mean"),
        (["accelerate", "smp:Unett"], "smp has no model 'Unett' (did you mean Unet"),
        (["accelerate", "smp:Unet(resnet18)"], "the arguments in 'smp:Unet(resnet18)' must be like"),
        (["accelerate", "smp:Unet(in_channels=)"], "the arguments in 'smp:Unet(in_channels=)' must be like"),
        (["accelerate", "smp:Unet(encoder_name=resnet1)"], "building smp:Unet(encoder_name=resnet1) failed: KeyError"),
        (["accelerate", "my_models:tiny"], "my_models has no 'tiny'"),
        (["accelerate", "my_models:Namespace.tony"], "my_models has no 'Namespace.tony'"),
        (["accelerate", "my_models:number"], "my_models:number must be callable and return a torch.nn.Module, got int"),
        (["accelerate", "my_models:broken"], "my_models:broken failed: RuntimeError: no such file: weights.pt"),
        (["accelerate", "my_models:leaving"], "building my_models:leaving failed: SystemExit: 3"),
        (["accelerate", "my_models:Tiny(depth=3)"], "building my_models:Tiny(depth=3) failed: TypeError"),
        (["accelerate", "my_broken:build"], "importing my_broken failed: ModuleNotFoundError"),
        (["accelerate", "json:loads(s='3')"], "json:loads(s='3') must return a torch.nn.Module, got int"),
        (["accelerate", "my_models:NoFloats"], "it returns no tensor that a gradient could start from"),
        (["accelerate", "my_models:Overflowing"], "its outputs or gradients in float32 are not finite"),
        (["accelerate", "my_models:Tiny", "--input", "8,3"], "--input: must be four positive integers N,C,H,W"),
        (["accelerate", "my_models:Tiny", "--input", "8,3,x,x"], "--input: must be four positive integers N,C,H,W"),
        (["accelerate", "my_models:Tiny", "--input", "8,3,0,8"], "--input: must be four positive integers N,C,H,W"),
        (["accelerate", "my_models:Tiny", "--input", "2,4,8,8"], "my_models:Tiny does not take an input of 2,4,8,8"),
        (["accelerate", "my_models:Tiny", "--dtype", "int8"], "--dtype: invalid choice: 'int8'"),
        (["accelerate", "my_models:Tiny", "--seconds", "0"], "--seconds: must be a positive number, got '0'"),
        (["accelerate", "my_models:Tiny", "--seconds", "nan"], "--seconds: must be a positive number, got 'nan'"),
        (["accelerate", "my_models:Tiny", "--rounds", "-1"], "--rounds"),
        (["accelerate", "my_models:Tiny", "--rounds", "1", "--seconds", "1"], "not allowed with argument"),
        (["accelerate", "my_models:Tiny", "--device", "gpu"], "--device must be cpu, cuda or cuda:N, got 'gpu'"),
        (["accelerate", "my_models:Tiny", "--device", "meta"], "--device must be cpu, cuda or cuda:N, got 'meta'"),
        (["accelerate", "my_models:Tiny", "--device", "cuda:99"], "--device cuda:99: "),
        (["accelerate", "my_models:Tiny", "--out", "my_models.py/out"], "--out my_models.py/out cannot be written to"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    if words[:1] == ["accelerate"] and "--device" not in words:
        words = [*words, "--device", "cpu"]
    if words[:1] == ["accelerate"] and "--input" not in words:
        words = [*words, "--input", "2,3,8,8"]
    assert main(words) == 2
    assert said in _only_line(capsys)


@pytest.mark.parametrize("library", ["timm", "torchvision", "smp"])
def test_a_missing_library_is_one_line(
    library: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, {"smp": "segmentation_models_pytorch"}.get(library, library), None)
    assert _accelerate(f"{library}:Unet") == 2
    assert f"{library} is not installed: pip install" in _only_line(capsys)


def test_missing_rich_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    assert _accelerate("my_models:Tiny") == 2
    assert "pip install rich" in _only_line(capsys)


@pytest.mark.parametrize(("name", "said"), [("cuda", "serves cuda tensors"), ("fast", "must be one of reference, cpu")])
def test_a_backend_that_is_not_there_is_one_line(
    name: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOD_OPS_BACKEND", name)
    assert _accelerate("my_models:Tiny") == 2
    assert f"SOD_OPS_BACKEND={name}: {said}" in _only_line(capsys)


def test_traceback_shows_where_a_mistake_comes_from() -> None:
    with pytest.raises(Exception, match="no such file") as raised:
        _accelerate("my_models:broken", "--traceback")
    assert isinstance(raised.value.__cause__, RuntimeError)


def test_interruption_after_the_restart(workplace: Path) -> None:
    """Ctrl-C, in the process that the command replaces itself with to keep memory from moving."""
    command = [sys.executable, "-W", "ignore", "-m", "sod_ops", "accelerate", "my_models:Tiny"]
    environment = {name: value for name, value in _environment().items() if name not in machine.ALLOCATOR_SETTINGS}
    process = subprocess.Popen(
        [*command, "--device", "cpu", "--input", "2,3,16,16", "--seconds", "500"],
        cwd=workplace,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What a shell starts in the background ignores interruptions, and so does what that starts.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("allocator"):
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "memory is kept and reused (MALLOC_MMAP_MAX_=0" in line
    assert errors == "sod_ops accelerate: interrupted\n"
    assert process.returncode == 130


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"sod_ops {sod_ops.__version__}\n"
    for words in (["--help"], ["doctor", "-h"], ["accelerate", "--help"], ["bench", "--help"]):
        assert main(words) == 0
        assert "usage: sod_ops" in capsys.readouterr().out


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with two benchmarks, of which one fails. The package seems to be in it."""
    root = tmp_path / "checkout"
    (root / "sod_ops").mkdir(parents=True)
    (root / "benchmarks").mkdir()
    (root / "benchmarks" / "bench_good.py").write_text("def test_a(): pass\ndef test_b(): pass\n")
    (root / "benchmarks" / "bench_bad.py").write_text("def test_c(): assert False\n")
    monkeypatch.setattr(sod_ops, "__file__", str(root / "sod_ops" / "__init__.py"))
    return root


def test_bench_runs_the_named_ops(checkout: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "good", "-k", "test_a", "-p", "no:cacheprovider"]) == 0
    out = capfd.readouterr().out
    assert "1 passed, 1 deselected" in out


def test_bench_runs_all_and_hands_on_the_exit_code(checkout: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "-p", "no:cacheprovider"]) == 1
    assert "1 failed, 2 passed" in capfd.readouterr().out


def test_bench_names_the_known_ops(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "god", "-q"]) == 2
    assert "there is no benchmark of 'god' (did you mean good?); there are bad, good" in _only_line(capsys)


def test_bench_needs_a_checkout(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(checkout / "benchmarks")
    assert main(["bench"]) == 2
    assert "run this in a checkout" in _only_line(capsys)


def _only_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What was written to stderr, which must be one line."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def _environment() -> dict[str, str]:
    """For a process that must find the package which is under test."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])}

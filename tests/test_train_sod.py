"""The training example: its ops, its processes and its checkpoints change nothing, and it learns."""

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

if torch.cuda.is_available():
    # `make gpu` takes the Python that is there. Everywhere else all of this must be.
    for package in ("matplotlib", "PIL", "py_sod_metrics", "timm", "tqdm"):
        pytest.importorskip(package)

from PIL import Image

import sod_ops
import train_sod
from sod_data import Steps, Training, find_pairs
from sod_generate import draw, generate
from sod_model import build
from sod_options import parser

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "examples" / "train_sod.py"
# A small encoder with squeeze-and-excitation, 2 x 2 pixels at its deepest level. Its gates are sigmoids: the
# gradient of PyTorch's hardsigmoid in float64 is no more exact than 1/6 in float32.
SMALL = ("--encoder", "semnasnet_050", "--width", "16", "--size", "64", "--batch-size", "4", "--device", "cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """For steps as small as these: threads of several tests at once would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated") / "data"
    generate(folder, 40, 64, seed=0)
    return folder


def train(out: Path, data: Path, *options: str) -> int:
    return train_sod.main([*SMALL, "--out", str(out), "--data", str(data), *options])


def start(launcher: Sequence[str], out: Path, data: Path, *options: str) -> subprocess.Popen[str]:
    """The script as a user starts it, in a process group of its own, as a terminal's."""
    command = [sys.executable, *launcher, str(SCRIPT), *SMALL, "--out", str(out), "--data", str(data), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def losses(out: Path) -> np.ndarray:
    with (out / "losses.csv").open() as file:
        return np.array([float(row["loss"]) for row in csv.DictReader(file)])


def checkpoint(out: Path) -> dict[str, Any]:
    return torch.load(out / "checkpoint.pt", weights_only=True)


# float64 shows that nothing but rounding differs: 1e-13 measured. In float32 a difference of 1e-7 grows a thousandfold
# within three steps, since Adam divides gradients that are nothing but rounding by their own size; then it stays: 7e-3
# measured.
@pytest.mark.parametrize(("precision", "at_first", "later"), [("float64", 1e-14, 1e-11), ("float32", 1e-5, 3e-2)])
def test_fused_and_reference_ops_give_the_same_losses(
    precision: str, at_first: float, later: float, data: Path, tmp_path: Path
) -> None:
    for ops in ("fused", "reference"):
        options = ("--steps", "30", "--lr", "3e-4", "--ops", ops, "--precision", precision)
        assert train(tmp_path / ops, data, *options) == 0
    fused, reference = losses(tmp_path / "fused"), losses(tmp_path / "reference")
    assert len(fused) == 30
    np.testing.assert_allclose(fused[:2], reference[:2], rtol=at_first)
    np.testing.assert_allclose(fused, reference, rtol=later)


def test_it_learns(tmp_path: Path) -> None:
    """Below the mean absolute error of 0.1 on held-out images; one of an empty mask is 0.14."""
    options = ["--size", "64", "--width", "32", "--steps", "320", "--device", "cpu"]
    assert train_sod.main([*options, "--out", str(tmp_path)]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["MAE"] < 0.1
    assert metrics["max F"] > 0.75
    assert metrics["S"] > 0.75
    for name, size in (("predictions.png", (3 * 64, 8 * 64)), ("losses.png", (840, 480))):
        assert Image.open(tmp_path / name).size == size


def test_two_processes_equal_one_with_the_double_batch(data: Path, tmp_path: Path) -> None:
    """Batch norms, gradients, clipping and losses are over all processes; CutMix and Copy-Paste are each one's own."""
    alone = ("--steps", "6", "--precision", "float64", "--cutmix", "0", "--copy-paste", "0")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    process = start(launcher, tmp_path / "two", data, *alone)
    assert train(tmp_path / "one", data, *alone, "--batch-size", "8") == 0
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "2 processes" in output
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    np.testing.assert_allclose(one, two, rtol=1e-10)
    expected = checkpoint(tmp_path / "one")["model"]
    for name, value in checkpoint(tmp_path / "two")["model"].items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("workers", ["0", "1"])
def test_resume_equals_an_uninterrupted_run(
    workers: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bit by bit: weights, optimiser, random numbers and the order of the data, over the end of an epoch."""
    options = ("--steps", "15", "--workers", workers)
    assert train(tmp_path / "whole", data, *options) == 0

    step = train_sod.Trainer.step

    def interrupted(self: Any, *arguments: Any) -> torch.Tensor:
        if self.steps_done == 5:
            signal.raise_signal(signal.SIGINT)
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(train_sod.Trainer, "step", interrupted)
        assert train(tmp_path / "parts", data, *options) == train_sod.INTERRUPTED
    assert "Interrupted after step 6 of 15" in capsys.readouterr().out
    assert checkpoint(tmp_path / "parts")["step"] == len(losses(tmp_path / "parts")) == 6
    torch.rand(100)  # what others draw must not matter
    assert train(tmp_path / "parts", data, *options, "--resume") == 0
    np.testing.assert_array_equal(losses(tmp_path / "whole"), losses(tmp_path / "parts"))
    whole, parts = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "parts")
    assert whole.pop("options") == parts.pop("options")
    torch.testing.assert_close(whole, parts, rtol=0, atol=0)


def test_a_checkpoint_of_another_run_is_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, data, "--steps", "1") == 0
    with pytest.raises(SystemExit) as end:
        train(tmp_path, data, "--steps", "2", "--lr", "0.5", "--resume")
    assert end.value.code == 2
    assert re.search(r"other options: steps 1 and now 2; lr 0\.003 and now 0\.5", capsys.readouterr().err)
    with pytest.raises(SystemExit):
        train(tmp_path, data, "--steps", "1")
    assert "is of an earlier run: --resume it" in capsys.readouterr().err


def test_ctrl_c_saves_and_ends(data: Path, tmp_path: Path) -> None:
    """As a terminal sends it: to the script and to the processes that read its images."""
    process = start((), tmp_path, data, "--steps", "100000", "--workers", "1")
    try:
        assert process.stdout is not None
        seen = ""
        while "loss" not in seen:  # of the progress bar: it trains
            character = process.stdout.read(1)
            assert character, seen
            seen += character
        time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)
        output = seen + process.communicate(timeout=120)[0]
    finally:
        process.kill()
    assert process.returncode == train_sod.INTERRUPTED, output
    assert re.search(r"Interrupted after step \d+ of 100000\. Saved .*checkpoint\.pt", output)
    assert "Traceback" not in output
    assert checkpoint(tmp_path)["step"] == len(losses(tmp_path)) >= 10


def test_a_second_ctrl_c_stops_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with train_sod.Interruption() as interruption:
        signal.raise_signal(signal.SIGTERM)
        assert interruption.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_bf16_is_autocast(data: Path, tmp_path: Path) -> None:
    for precision in ("bf16", "float32"):
        assert train(tmp_path / precision, data, "--steps", "3", "--precision", precision) == 0
    np.testing.assert_allclose(losses(tmp_path / "bf16"), losses(tmp_path / "float32"), rtol=0.05)
    model = checkpoint(tmp_path / "bf16")["model"]
    assert {value.dtype for value in model.values() if value.is_floating_point()} == {torch.float32}


def test_profile_compares_the_phases(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, data, "--profile", "2") == 0
    table = capsys.readouterr().out
    for phase in ("data", "augmentation", "forward", "loss", "backward", "optimiser", "step"):
        assert re.search(rf"^{phase} +\d", table, flags=re.MULTILINE), table
    assert re.search(r"A fused step is \d+\.\d\d times as fast", table)
    assert re.search(r"sod_ops \d+%, convolutions \d+%, batch norms \d+%, AdamW \d+%, others \d+%", table)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_the_network_compiles_whole() -> None:
    net = build("semnasnet_050", 16, pretrained=False, seed=0, dtype=torch.float32, device=torch.device("cpu"))
    assert len(sod_ops.accelerate(net).swapped) == 8
    images = torch.randn(2, 3, 64, 64)
    expected = net.train()(images)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), expected)
    assert [head.shape for head in expected] == [(2, 1, 64, 64)] * 4
    assert net.eval()(images).shape == (2, 1, 64, 64)


def test_processes_share_every_epoch() -> None:
    """20 pairs in batches of 3 for each of 2 processes: 3 steps an epoch, no pair twice in one, 2 left out."""
    shares = [list(Steps(20, 3, range(7), seed=1, rank=rank, ranks=2)) for rank in range(2)]
    for epoch in range(2):
        steps = range(3 * epoch, 3 * epoch + 3)
        seen = [index for share in shares for step in steps for index in share[step]]
        assert {e for e, _ in seen} == {epoch}
        assert len({number for _, number in seen}) == len(seen) == 18
    assert list(Steps(20, 3, range(4, 7), seed=1, rank=1, ranks=2)) == shares[1][4:]


def test_generated_pairs_depend_on_the_seed_alone(data: Path, tmp_path: Path) -> None:
    generate(tmp_path / "again", 3, 64, seed=0)
    generate(tmp_path / "other", 3, 64, seed=1)
    for part in ("images", "masks"):
        name = f"{part}/00002.png"
        assert (data / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
        assert (data / name).read_bytes() != (tmp_path / "other" / name).read_bytes()
    areas = [np.mean(draw(np.random.default_rng((5, i)), 64)[1] > 0) for i in range(20)]
    assert 0.001 < min(areas) < max(areas) < 0.7


def test_images_and_masks_are_changed_together(data: Path) -> None:
    """Whatever is cropped and flipped, the object stays under its mask: drawn here as white on black."""
    pairs = [pair._replace(image=pair.mask) for pair in find_pairs(data)]
    dataset = Training(pairs, 64, seed=0, change=True)
    for number in range(10):
        image, mask = dataset[(1, number)]
        assert image.shape == (3, 64, 64)
        assert image.dtype == torch.uint8
        assert mask.dtype == torch.bool
        inside = image[0] >= 128 if image.max() == 255 else image[0] >= image.max() / 2
        assert (inside != mask[0]).float().mean() < 0.01
        torch.testing.assert_close(dataset[(1, number)][0], image)
    assert not torch.equal(dataset[(2, 0)][0], dataset[(1, 0)][0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--size", "100"), "--size must be a multiple of 32, the stride of semnasnet_050, got 100"),
        (("--size", "0"), "argument --size: expected a whole number of at least 1, got '0'"),
        (("--encoder", "seresnet19"), "--encoder seresnet19: timm has no such model"),
        (
            ("--encoder", "mixer_s32_224"),
            "--encoder mixer_s32_224 has no features at several levels: ",
        ),
        (("--encoder", "swin_tiny_patch4_window7_224"), "--encoder swin_tiny_patch4_window7_224 does not fit here: "),
        (("--batch-size", "64"), "leaves 34 pairs to train on, fewer than a batch of 64"),
        (("--batch-size", "1"), "argument --batch-size: expected a whole number of at least 2, got '1'"),
        (("--lr", "nan"), "argument --lr: expected a number of at least 0, got 'nan'"),
        (("--cutmix", "1.5"), "argument --cutmix: expected a number from 0 to 1, got '1.5'"),
        (("--steps", "1.5"), "argument --steps: expected a whole number of at least 1, got '1.5'"),
        (("--precision", "fp16"), "--precision fp16 needs a GPU: on a CPU take bf16"),
        (("--resume",), "--resume: there is no"),
        (("--device", "cuda:99"), "this PyTorch sees"),
        (("--device", "tpu"), "--device: expected cpu, cuda or cuda:1, got 'tpu'"),
        (("--ops", "fast"), "argument --ops: invalid choice: 'fast'"),
    ],
)
def test_bad_arguments_are_named(
    options: tuple[str, ...], message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        train(tmp_path, data, *options)
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), "has no folder images"),
        (("images/a.png",), "has no folder masks"),
        (("images/a.png", "masks/a.txt"), "no masks found in"),
        (("images/a.png", "images/b.jpg", "masks/a.png"), "1 files in .* have no mask of the same stem, the first: b"),
        (("images/a.png", "masks/a.png", "masks/c.png"), "1 files in .* have no image of the same stem, the first: c"),
    ],
)
def test_folders_without_pairs_are_named(files: tuple[str, ...], message: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=message):
        find_pairs(tmp_path)


def test_command_lines_that_are_shown_are_right() -> None:
    shown = re.sub(r"\\\n +", "", (ROOT / "README.md").read_text()) + re.sub(r"\n {31}", " ", parser().format_help())
    lines = re.findall(r"examples/train_sod\.py ([^\n#]*)", shown)
    assert len(lines) >= 10
    for line in lines:
        parser().parse_args(shlex.split(re.split(r"\s{3,}", line)[0]))


def test_the_help_explains_every_option() -> None:
    text = parser().format_help()
    for action in parser()._actions:
        assert action.help, action.option_strings
        assert action.option_strings[-1] in text

"""What the command line is made of: names to models, weights that exercise them, comparison, timing, memory."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from sod_ops.cli import machine, measure, models
from sod_ops.cli.errors import UsageError, one_line
from sod_ops.cli.verify import Contestant, cotangents, floating_outputs, verify

_CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Waking a second one takes longer than these models."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _record(**arguments: object) -> nn.Module:
    module = nn.Identity()
    module.arguments = arguments
    return module


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("()", {}),
        ("(a=1, b=2.5)", {"a": 1, "b": 2.5}),
        ("(a=None,b=True)", {"a": None, "b": True}),
        ("(a=(256, 128), b=[1, 2])", {"a": (256, 128), "b": [1, 2]}),
        ("(a='x:y', b=x)", {"a": "x:y", "b": "x"}),
        ("(encoder_name=timm-efficientnet-b0)", {"encoder_name": "timm-efficientnet-b0"}),
        ("(a=__import__('os').getcwd())", {"a": "__import__('os').getcwd()"}),
    ],
)
def test_arguments_of_a_model(text: str, expected: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn, "record", _record, raising=False)
    assert models.resolve(f"torch.nn:record{text}")().arguments == expected


@pytest.mark.parametrize(
    "name",
    [
        "timm:mobilenetv3_small_050.lamb_in1k",
        "torchvision:deeplabv3_mobilenet_v3_large(num_classes=1)",
        "smp:Unet(encoder_name=resnet18, decoder_attention_type=scse)",
    ],
)
def test_library_models_are_built_without_a_download(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr("socket.create_connection", refuse)
    assert isinstance(models.resolve(name)(), nn.Module)


def test_exercise_leaves_no_block_idle() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4))
    nn.init.zeros_(model[4].weight)
    x = 5 * torch.randn(4, 3, 9, 9) + 2
    models.exercise(model, x)
    assert all(parameter.unique().numel() > 1 for parameter in model.parameters())
    assert model[1].momentum == 0.1
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), model.train()(x), rtol=0.02, atol=0.02)


class _Dropping(nn.Module):
    """A model with dropout, and rows that are dropped as stochastic depth does."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 1)
        self.unused = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.dropout(self.first(x), 0.3, self.training)
        if self.training:
            y = y + self.second(y) * x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(0.5)
        return self.gain * y


def _verdict(dtype: torch.dtype, gain: float) -> str | None:
    torch.manual_seed(0)
    model = _Dropping()
    x = torch.randn(4, 3, 8, 8)
    models.exercise(model, x)
    model, x = model.to(dtype), x.to(dtype)

    def swap(swapped: nn.Module) -> None:
        swapped.gain = gain

    other = copy.deepcopy(model)
    swap(other)
    return verify(Contestant(model, model), Contestant(other, other), x, swap, compiled=False).fault


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_random_numbers_are_the_same_for_all(dtype: torch.dtype) -> None:
    """Were they not, the float64 results that everything is held to would be those of another network."""
    assert _verdict(dtype, 1.0) is None
    assert "in float64, where" in str(_verdict(dtype, 1.0 + 1e-5))


def test_the_dtype_measured_is_close_to_float64_in_spite_of_dropout() -> None:
    torch.manual_seed(0)
    model = _Dropping()
    x = torch.randn(4, 3, 8, 8)
    verdict = verify(Contestant(model, model), Contestant(model, model), x, lambda _: None, compiled=False)
    assert 0 < verdict.own_output < 1e-5
    assert 0 < verdict.own_gradient < 1e-5


def test_verify_leaves_the_model_as_it_was() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = copy.deepcopy(model.state_dict())
    verify(Contestant(model, model), Contestant(model, model), torch.randn(2, 3, 8, 8), lambda _: None, compiled=False)
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_verify_notices_a_gradient_that_only_one_model_has() -> None:
    model = _Dropping()
    other = copy.deepcopy(model)
    other.register_forward_hook(lambda module, _, y: y + 0 * module.unused.sum())
    x = torch.randn(2, 3, 8, 8)
    verdict = verify(Contestant(model, model), Contestant(other, other), x, lambda _: None, compiled=False)
    assert verdict.fault is not None
    assert "the gradient of unused" in verdict.fault


def test_floating_outputs_and_cotangents() -> None:
    outputs = floating_outputs(
        {"a": torch.zeros(2), "b": [torch.zeros(3, dtype=torch.float16), (1, None, torch.arange(4))]}
    )
    assert [output.shape[0] for output in outputs] == [2, 3]
    first, second = cotangents(outputs), cotangents([output.double() for output in outputs])
    assert [c.dtype for c in first] == [torch.float32, torch.float16]
    torch.testing.assert_close(first[0].double(), second[0])


def test_interleave_takes_turns() -> None:
    order: list[str] = []

    def call(name: str) -> measure.Call:
        return lambda: (order.append(name), sum(range(10**6)))  # longer than the shortest sample: one call for each

    progress: list[float] = []
    calls = {name: call(name) for name in "abc"}
    samples = measure.interleave(calls, _CPU, seconds=1, rounds=3, progress=progress.append)
    assert "".join(order[-9:]) == "abcbcacab"
    assert {name: len(values) for name, values in samples.items()} == {"a": 3, "b": 3, "c": 3}
    assert progress == [0, 1 / 3, 2 / 3]


def test_interleave_keeps_to_its_time() -> None:
    progress: list[float] = []
    calls = {"a": lambda: None, "b": lambda: None}
    samples = measure.interleave(calls, _CPU, seconds=0.2, rounds=None, progress=progress.append)
    assert len(samples["a"]) == len(samples["b"]) >= 3
    assert progress == sorted(progress)
    assert progress[-1] <= 1


def test_speed_up_is_taken_in_pairs() -> None:
    samples = {"before": [2.0, 40.0, 6.0], "after": [1.0, 10.0, 2.0]}
    assert measure.speed_up(samples, "before", "after") == (2.5, 3.0, 3.5)
    assert measure.quartiles([7.0]) == (7.0, 7.0, 7.0)


def test_peak_memory_counts_what_is_alive_at_once() -> None:
    x = torch.zeros(1 << 20, dtype=torch.uint8)

    def two_alive() -> Tensor:
        y = x.clone()
        z = y.clone()
        del y
        return z.clone()

    assert measure.peak_memory(two_alive, _CPU) == 2 << 20
    assert measure.peak_memory(x.clone, _CPU) == 1 << 20


def test_restart_keeps_the_command_and_what_the_user_set(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[str, list[str], dict[str, str]]] = []
    monkeypatch.setattr("os.execve", lambda *arguments: started.append(arguments))
    monkeypatch.setattr("sys.orig_argv", ["python", "-X", "dev", "-m", "sod_ops", "accelerate"])
    monkeypatch.setenv("MALLOC_TOP_PAD_", "4096")
    monkeypatch.delenv("MALLOC_MMAP_MAX_", raising=False)
    machine.restart_with_allocator_settings()
    ((_, command, environment),) = started
    assert command[1:] == ["-X", "dev", "-m", "sod_ops", "accelerate"]
    assert environment["MALLOC_TOP_PAD_"] == "4096"
    for name in machine.ALLOCATOR_SETTINGS:
        monkeypatch.setenv(name, environment[name])
    assert not machine.lacks_allocator_settings()


def test_one_line() -> None:
    assert one_line(ValueError("a\n  b")) == "ValueError: a b"
    assert one_line(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert len(one_line(RuntimeError("word " * 1000))) < 330
    assert issubclass(UsageError, Exception)

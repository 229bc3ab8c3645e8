"""Models on a GPU with the ops inside: compiled, trained in mixed precision, accelerated. Collected where there is one."""

from collections.abc import Iterator

import pytest
import torch
from gpu_cases import Training
from peers import import_peer

import sod_ops

DEVICE = "cuda"


@pytest.fixture(params=["triton", "auto"])
def backend(request: pytest.FixtureRequest) -> Iterator[None]:
    """Triton for every op, and what is chosen where nobody asks: CUDA C++ for the loss."""
    if request.param == "auto":
        yield
        return
    with sod_ops.use_backend(request.param):
        yield


def test_compiled_model_has_the_gradients_of_eager(backend: None) -> None:
    training = Training.on(DEVICE)
    expected = training.gradients(training.network)
    torch._dynamo.reset()
    for a, e in zip(training.gradients(torch.compile(training.network, fullgraph=True)), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-3, atol=1e-3 * max(e.abs().max().item(), 1e-3))


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_mixed_precision_with_a_gradient_scaler(backend: None, dtype: torch.dtype, channels_last: bool) -> None:
    """Losses fall as those of plain PyTorch do, and an overflow is found and skipped."""
    losses = Training.on(DEVICE).train(10, dtype, channels_last)
    assert losses[-1] < losses[0]
    with sod_ops.use_backend("reference"):
        plain = Training.on(DEVICE).train(10, dtype, channels_last)
    assert losses == pytest.approx(plain, rel=0.05)


def test_accelerated_model_gives_the_same() -> None:
    torch.manual_seed(0)
    model = import_peer("torchvision.models").efficientnet_b0().to(DEVICE).eval()
    images = torch.rand(2, 3, 96, 96, device=DEVICE)
    expected = model(images)
    report = sod_ops.accelerate(model, images)
    assert report.swapped
    torch.testing.assert_close(model(images), expected, rtol=1e-3, atol=1e-3)

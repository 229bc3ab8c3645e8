"""Models whose heads convolve upsampled maps, accelerated: outputs, gradients, training, and calls left alone."""

import copy
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from accelerate_cases import MODEL_TOLERANCE, assert_as_accurate, assert_same, output_and_gradients, peer_class, smp
from torch import Tensor, nn

import sod_ops
from sod_ops.ops.pyramid_pool import pool_and_pass_on

# With statistics of its own, as one value alone has none.
_INSTANCE_NORM = {"type": "instancenorm", "affine": True, "track_running_stats": True}

# mmseg and mmcv need not be installed: stand-ins under their import paths are.
sys.path.append(str(Path(__file__).parent / "stand_ins"))

WIDTHS = (8, 12, 16, 24)


class OnLevels(nn.Module):
    """A head on the levels of a small encoder."""

    def __init__(self, head: nn.Module, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in zip((3, *widths), widths, strict=False)
        )
        self.decoder = head

    def forward(self, x: Tensor) -> Tensor:
        levels = []
        for stage in self.encoder:
            x = stage(x)
            levels.append(x)
        return self.decoder(levels)


class Logits(nn.Module):
    """The logits of a model of transformers, without their upsampling."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.decode_head(self.model.backbone(x).feature_maps)


def transformers_upernet() -> nn.Module:
    models = "transformers.models."
    backbone = peer_class(f"{models}convnext.configuration_convnext.ConvNextConfig")(
        depths=[1, 1, 1, 1], hidden_sizes=list(WIDTHS), out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    config = peer_class(f"{models}upernet.configuration_upernet.UperNetConfig")(
        backbone_config=backbone, hidden_size=16, use_auxiliary_head=False, num_labels=3
    )
    return Logits(peer_class(f"{models}upernet.modeling_upernet.UperNetForSemanticSegmentation")(config))


def transformers_head(name: str) -> nn.Module:
    """BEiT's head, all levels of which are as wide as the model."""
    config = peer_class(f"transformers.models.{name.format('configuration')}Config")(hidden_size=16, num_labels=2)
    return OnLevels(peer_class(f"transformers.models.{name.format('modeling')}UperHead")(config), [16] * 4)


def mmseg(name: str, *args: Any, **kwargs: Any) -> nn.Module:
    """A head of the stand-ins."""
    return OnLevels(peer_class(f"mmseg.models.decode_heads.{name}")(*args, **kwargs))


class Case(NamedTuple):
    build: Callable[[], nn.Module]
    swapped: list[str]
    size: tuple[int, int] = (160, 96)  # of the image: the coarsest map is 5 x 3, of which few bins divide a side
    calls: int = 2  # of the fused convolution
    pools: bool = True


UPERNET = ["UPerNetDecoder", "PSPModule"]
UNET = (32, 24, 16, 12, 8)
SMALL = {"encoder_weights": None}
MODELS = {
    "UPerNet": Case(lambda: smp.UPerNet("resnet18", decoder_channels=32, **SMALL), UPERNET),
    "UPerNet-instance-norm": Case(
        lambda: smp.UPerNet("resnet18", decoder_channels=32, decoder_use_norm=_INSTANCE_NORM, **SMALL), UPERNET
    ),
    "PSPNet": Case(lambda: smp.PSPNet("resnet18", psp_out_channels=64, **SMALL), ["PSPDecoder"], (72, 56), 1),
    "PSPNet-no-norm": Case(
        lambda: smp.PSPNet("resnet18", psp_out_channels=64, decoder_use_norm=False, **SMALL),
        ["PSPDecoder"],
        (72, 56),
        1,
    ),
    "Unet": Case(
        partial(smp.Unet, "resnet18", decoder_channels=UNET, **SMALL), ["UnetDecoderBlock"] * 5, (64, 96), 5, False
    ),
    "Unet-bilinear": Case(
        partial(smp.Unet, "resnet18", decoder_channels=UNET, decoder_interpolation="bilinear", **SMALL),
        ["UnetDecoderBlock"] * 5,
        (64, 96),
        5,
        False,
    ),
    "UnetPlusPlus": Case(
        partial(smp.UnetPlusPlus, "resnet18", decoder_channels=UNET, **SMALL),
        ["DecoderBlock"] * 11,
        (64, 96),
        11,
        False,
    ),
    "MAnet": Case(
        partial(smp.MAnet, "resnet18", decoder_channels=UNET, decoder_pab_channels=8, **SMALL),
        ["DecoderBlock"],
        (64, 96),
        1,
        False,
    ),
    "transformers-UPerNet": Case(transformers_upernet, ["UperNetHead", "UperNetPyramidPoolingModule"]),
    "transformers-BEiT": Case(
        partial(transformers_head, "beit.{}_beit.Beit"), ["BeitUperHead", "BeitPyramidPoolingModule"], (80, 48)
    ),
    "transformers-Data2Vec": Case(
        partial(transformers_head, "data2vec.{}_data2vec_vision.Data2VecVision"),
        ["Data2VecVisionUperHead", "Data2VecVisionPyramidPoolingModule"],
        (80, 48),
    ),
    "mmseg-PSPHead": Case(partial(mmseg, "psp_head.PSPHead", WIDTHS[-1], 8), ["PSPHead", "PPM"], (80, 48), 1),
    "mmseg-PSPHead-no-norm": Case(
        partial(mmseg, "psp_head.PSPHead", WIDTHS[-1], 8, align_corners=True, norm=False),
        ["PSPHead", "PPM"],
        (80, 48),
        1,
    ),
    "mmseg-UPerHead": Case(partial(mmseg, "uper_head.UPerHead", WIDTHS, 8), ["UPerHead", "PPM"], (80, 48)),
}


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def build(name: str, batch: int = 2) -> tuple[nn.Module, Tensor]:
    """The model in evaluation mode, where batch norm has statistics of its own, and an input."""
    model = MODELS[name].build().eval()
    return model, torch.randn(batch, 3, *MODELS[name].size)


def swapped(model: nn.Module) -> list[str]:
    return [kind for _, kind in sod_ops.accelerate(model).swapped]


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What reaches the fused op, so that no test of equality passes by running the model's own forward."""
    calls: list[Any] = []

    def pyramid_conv2d(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(args)
        return sod_ops.pyramid_conv2d(*args, **kwargs)

    monkeypatch.setattr(sys.modules["sod_ops.accelerate.pyramid"], "pyramid_conv2d", pyramid_conv2d)
    return calls


def test_output_and_gradients(name: str, fused_calls: list[Any]) -> None:
    model, x = build(name)
    exact = output_and_gradients(copy.deepcopy(model).double(), x.double())
    plain = output_and_gradients(model, x)
    keys = list(model.state_dict())
    assert swapped(model) == MODELS[name].swapped
    assert list(model.state_dict()) == keys
    assert_as_accurate(output_and_gradients(model, x), plain, exact, ["output"])
    assert len(fused_calls) == MODELS[name].calls
    assert_same(output_and_gradients(model.double(), x.double()), exact, MODEL_TOLERANCE)


def test_restore_gives_the_original_back(name: str, fused_calls: list[Any]) -> None:
    model, x = build(name)
    with torch.no_grad():
        before = model(x)
        sod_ops.accelerate(model)
        assert sod_ops.restore(model) == len(MODELS[name].swapped)
        assert torch.equal(model(x), before)
    assert not fused_calls


def test_example_inputs_prove_the_swaps(name: str) -> None:
    model, x = build(name)
    report = sod_ops.accelerate(model, x)
    assert [kind for _, kind in report.swapped] == MODELS[name].swapped, report


@pytest.mark.parametrize("name", ["UPerNet", "PSPNet", "Unet", "transformers-UPerNet"])
def test_training_follows_the_same_losses(name: str, fused_calls: list[Any]) -> None:
    """20 steps with batch norm in training mode, in float64, where what differs is rounding and not its growth."""
    model, x = build(name)
    x = x[:, :, :64, :32].double()
    losses = []
    for accelerate in (False, True):
        trained = copy.deepcopy(model).double().train()
        if accelerate:
            sod_ops.accelerate(trained)
        for module in trained.modules():
            if isinstance(module, nn.Dropout2d):
                module.p = 0.0  # what it draws is the same, but after other calls
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.01, momentum=0.9)
        curve = []
        for _ in range(20):
            optimizer.zero_grad()
            loss = (trained(x) - 0.5).square().mean()
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        losses.append(curve)
    assert losses[0][-1] < losses[0][0]
    assert fused_calls
    # Batch norm over the two values of a level of one bin makes much of any rounding error: where UPerNet's parameters are
    # changed by 1e-16 of themselves, its last loss changes by 1e-4 of itself.
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), rtol=1e-5, atol=1e-9)


def test_batch_norm_over_one_value_raises_as_before() -> None:
    model, x = build("UPerNet", batch=1)
    sod_ops.accelerate(model.train())
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(x)


def test_autocast_and_channels_last(name: str, fused_calls: list[Any]) -> None:
    model, x = build(name)
    with torch.no_grad():
        expected = model(x)
        sod_ops.accelerate(model)
        last = model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model(x)
    scale = expected.abs().max().item()
    torch.testing.assert_close(last, expected, rtol=0, atol=1e-4 * scale)
    torch.testing.assert_close(half.float(), expected, rtol=0, atol=0.1 * scale)  # bfloat16 through 20 layers
    assert len(fused_calls) == 2 * MODELS[name].calls


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", ["UPerNet", "PSPNet", "Unet"])
def test_maps_keep_the_format_that_they_had(name: str, channels_last: bool, fused_calls: list[Any]) -> None:
    """UPerNet's norms give channels_last maps, and its concatenations are contiguous again."""
    model, x = build(name)
    if channels_last:
        model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    formats = []
    for accelerated in (False, True):
        if accelerated:
            sod_ops.accelerate(model)
        maps: list[Tensor] = []
        fused = [module for module in model.modules() if type(module).__name__ in MODELS[name].swapped]
        handles = [module.register_forward_hook(lambda _, __, y, maps=maps: maps.append(y)) for module in fused]
        model(x)
        for handle in handles:
            handle.remove()
        formats.append([(y.shape, y.is_contiguous()) for y in maps])
    assert fused_calls
    assert len(maps) == len(MODELS[name].swapped)
    assert formats[0] == formats[1]


def test_a_convolution_that_was_changed_since_runs_its_own_way(fused_calls: list[Any]) -> None:
    model, x = build("UPerNet")
    sod_ops.accelerate(model)
    seen: list[Any] = []
    model.decoder.fusion_block[0].register_forward_hook(lambda *a: seen.append(a))
    with torch.no_grad():
        model(x)
    assert len(seen) == 1
    assert len(fused_calls) == 1  # that of the pyramid


def test_all_pools_of_a_pyramid_are_one_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = build(name)
    calls: list[Any] = []

    def counted(x: Tensor, bins: Any) -> Any:
        calls.append(list(bins))
        return pool_and_pass_on(x, bins)

    monkeypatch.setattr(sys.modules["sod_ops.accelerate.pyramid"], "pool_and_pass_on", counted)
    sod_ops.accelerate(model)
    with torch.no_grad():
        model(x)
    assert calls == [[1, 2, 3, 6]] * MODELS[name].pools


@pytest.mark.parametrize("name", ["mmseg-PSPHead", "mmseg-UPerHead", "transformers-UPerNet"])
def test_a_pyramid_is_served_where_its_head_is_not(name: str, fused_calls: list[Any]) -> None:
    model, x = build(name)
    head: Any = model.model.decode_head if name == "transformers-UPerNet" else model.decoder
    head.bottleneck.conv.dilation = head.bottleneck.conv.padding = (2, 2)
    expected = output_and_gradients(model.double(), x.double())
    report = sod_ops.accelerate(model)
    assert [kind for _, kind in report.swapped] == MODELS[name].swapped[1:]
    assert ["dilation=(2, 2)" in reason for _, _, reason in report.left] == [True]
    assert_same(output_and_gradients(model, x.double()), expected, MODEL_TOLERANCE)
    assert not fused_calls


def test_unet_blocks_with_attention_are_left_alone() -> None:
    """scSE reads the concatenation that the fused convolution never builds."""
    model = smp.Unet("resnet18", decoder_attention_type="scse", decoder_channels=UNET, **SMALL)
    left = [reason for _, kind, reason in sod_ops.accelerate(model).left if kind == "UnetDecoderBlock"]
    assert ["attention1" in reason for reason in left] == [True] * 5


def test_unet_blocks_with_a_hook_or_other_sizes_run_their_own_way(fused_calls: list[Any]) -> None:
    model, x = build("Unet")
    sod_ops.accelerate(model)
    block: Any = model.decoder.blocks[1]  # type: ignore[union-attr,index]
    seen: list[Any] = []
    block.attention1.register_forward_hook(lambda *a: seen.append(a))
    with torch.no_grad():
        model(x)
    assert len(seen) == 1
    assert len(fused_calls) == 4
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        block(torch.randn(1, 32, 4, 4), 8, 8, torch.randn(1, 128, 9, 8))


def test_a_pool_of_another_kind_runs_itself(fused_calls: list[Any]) -> None:
    model, x = build("mmseg-PSPHead")
    model.decoder.psp_modules[1][0] = nn.AdaptiveMaxPool2d(2)  # type: ignore[index,union-attr]
    expected = output_and_gradients(model.double(), x.double())
    sod_ops.accelerate(model)
    assert_same(output_and_gradients(model, x.double()), expected, MODEL_TOLERANCE)
    assert len(fused_calls) == 1


def test_a_level_with_a_hook_runs_its_own_way(fused_calls: list[Any]) -> None:
    model, x = build("mmseg-UPerHead")
    sod_ops.accelerate(model)
    seen: list[Any] = []
    model.decoder.psp_modules[1].register_forward_hook(lambda *a: seen.append(a))  # type: ignore[index,union-attr]
    with torch.no_grad():
        model(x)
    assert len(seen) == 1
    assert not fused_calls
    again, _ = build("mmseg-UPerHead")
    again.decoder.psp_modules[1].register_forward_hook(lambda *a: None)  # type: ignore[index,union-attr]
    assert ["hooks" in reason for _, _, reason in sod_ops.accelerate(again).left] == [True, True]


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("order", ("norm", "conv", "act")), ("with_explicit_padding", True), ("efficient_conv_bn_eval_forward", print)],
)
def test_conv_modules_that_do_more_are_left_alone(attribute: str, value: Any) -> None:
    model, _ = build("mmseg-PSPHead")
    setattr(model.decoder.bottleneck, attribute, value)  # type: ignore[union-attr]
    ((_, kind, reason),) = sod_ops.accelerate(model).left
    assert (kind, attribute in reason) == ("PSPHead", True)


def test_another_version_of_a_library_is_left_alone() -> None:
    model, _ = build("mmseg-PSPHead")
    del model.decoder.bottleneck.order  # type: ignore[union-attr]
    ((_, kind, reason),) = sod_ops.accelerate(model).left
    assert (kind, "no attribute 'order'" in reason) == ("PSPHead", True)


def test_copies_are_accelerated_too(name: str, fused_calls: list[Any]) -> None:
    model, x = build(name)
    sod_ops.accelerate(model)
    with torch.no_grad():
        expected = model(x)
        fused_calls.clear()
        assert torch.equal(copy.deepcopy(model)(x), expected)
    assert len(fused_calls) == MODELS[name].calls
    for module in model.modules():
        if "forward" in module.__dict__:
            pickle.loads(pickle.dumps(module.__dict__["forward"].given))


def test_heads_that_are_not_served_are_named() -> None:
    model, _ = build("UPerNet")
    model.decoder.fusion_block[0] = nn.Conv2d(128, 32, 3, padding=1, dilation=2)
    model.decoder.psp.out_conv[0].register_forward_hook(lambda *a: None)
    reasons = {kind: reason for _, kind, reason in sod_ops.accelerate(model).left}
    assert "dilation=(2, 2)" in reasons["UPerNetDecoder"]
    assert "hooks" in reasons["PSPModule"]


def test_compile_and_trace(fused_calls: list[Any]) -> None:
    model, x = build("UPerNet")
    with torch.no_grad():
        expected = model(x)
        sod_ops.accelerate(model)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)
        fused_calls.clear()
        traced = torch.jit.trace(model, x, check_trace=False)
        assert not fused_calls  # the trace has PyTorch's own operators alone
        torch.testing.assert_close(traced(x), expected, rtol=1e-4, atol=1e-5)

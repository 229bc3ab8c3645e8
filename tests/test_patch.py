"""patch_losses: what it replaces and with which results, what it leaves alone, and that everything is put back."""

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from box_cases import DEGENERATE, PAIRS, pairs_of, random_boxes
from peers import import_peer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import sod_ops
from sod_ops.patch import names

OPS = import_peer("torchvision.ops")
MODULES = {
    path: import_peer(path)
    for path in (
        "torchvision.models.detection._utils",
        "torchvision.models.detection.fcos",
        "torchvision.models.detection.retinanet",
    )
}
SMP = import_peer("segmentation_models_pytorch.losses")

BOX_LOSSES = ("generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss")
FUNCTIONS = ("sigmoid_focal_loss", *BOX_LOSSES, "complete_box_iou")
ORIGINALS = {name: getattr(OPS, name) for name in FUNCTIONS}

all_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)


class Fused(TorchDispatchMode):
    """Whether one of this package's operators ran inside."""

    def __init__(self) -> None:
        super().__init__()
        self.ran = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))  # raises where the operator refuses its arguments
        self.ran |= str(func).startswith("sod_ops")
        return result


def is_fused(call: Callable[[], object]) -> bool:
    with Fused() as mode:
        call()
    return mode.ran


@pytest.fixture
def user_module() -> Iterator[ModuleType]:
    """A module that has imported a loss by name, under another one, and has a loss and a class of its own."""
    module = ModuleType("user_project.train")
    code = """
from torchvision.ops import complete_box_iou_loss as ciou, sigmoid_focal_loss
import torchvision.ops
def structure_loss(logits, mask):
    return "theirs"
class Head:
    kind = "head"
    def loss(self, x):
        return "method"
    @staticmethod
    def criterion(x):
        return "static"
"""
    package = ModuleType("user_project")
    package.__path__ = []
    sys.modules.update({"user_project": package, "user_project.train": module})
    package.train = module  # type: ignore[attr-defined]
    exec(code, module.__dict__)
    yield module
    for name in [name for name in sys.modules if name.startswith("user_project")]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def everything_is_put_back() -> Iterator[None]:
    """After each test every loaded module holds what it held before."""
    before = snapshot()
    yield
    after = snapshot()
    assert {key: after[key] for key in before if key in after} == {key: before[key] for key in before if key in after}
    assert not names._names


def snapshot() -> dict[tuple[str, str], int]:
    """The identity of every function under every name of the peers' modules and the user's."""
    peers = ("torchvision", "segmentation_models_pytorch", "ultralytics", "user_project", "sod_ops")
    return {
        (module, name): id(value)
        for module in list(sys.modules)
        if module.partition(".")[0] in peers
        for name, value in vars(sys.modules[module]).items()
        if callable(value)
    } | {("smp", "forward"): id(vars(SMP.FocalLoss)["forward"])}


def arguments_for(name: str, dtype: torch.dtype = torch.float32, count: int = 13) -> list[Tensor]:
    if name == "sigmoid_focal_loss":
        return [torch.randn(count, 3).mul(4).to(dtype), (torch.rand(count, 3) > 0.7).to(dtype)]
    return [random_boxes(count, dtype) for _ in range(2)]


def run(function: Callable[..., Tensor], arguments: list[Tensor], **options: Any) -> tuple[Tensor, ...]:
    """The result, and the gradient by the first argument."""
    leaf = arguments[0].detach().requires_grad_()
    result = function(leaf, *arguments[1:], **options)
    (gradient,) = torch.autograd.grad(result.double().sum(), leaf)
    return result.detach(), gradient


def assert_same(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...], units: float = 16) -> None:
    for a, e in zip(actual, expected, strict=True):
        # Of the largest entry: a gradient by a corner is a difference of terms of this size.
        tolerance = units * torch.finfo(e.dtype).eps
        torch.testing.assert_close(a, e, rtol=tolerance, atol=tolerance * max(1, e.abs().max().item()))


# ---- What is replaced -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
@all_dtypes
def test_replacements_give_the_same(name: str, dtype: torch.dtype) -> None:
    arguments = arguments_for(name, dtype)
    options: list[dict[str, Any]] = [{}] if name == "complete_box_iou" else [{"reduction": r} for r in ("none", "mean")]
    for option in options:
        with sod_ops.patch_losses():
            function = getattr(OPS, name)
            assert function is not ORIGINALS[name]
            assert is_fused(lambda function=function: function(*arguments))
            actual = run(function, arguments, **option)
        assert_same(actual, run(ORIGINALS[name], arguments, **option))


@pytest.mark.parametrize("name", FUNCTIONS)
@all_dtypes
def test_replacements_give_the_same_under_autocast(name: str, dtype: torch.dtype) -> None:
    arguments = arguments_for(name, dtype)
    with torch.autocast("cpu", torch.bfloat16):
        with sod_ops.patch_losses():
            actual = run(getattr(OPS, name), arguments)
        expected = run(ORIGINALS[name], arguments)
    # There torchvision computes some steps in the two bytes of its arguments, and the result in float32.
    assert actual[0].dtype == expected[0].dtype
    torch.testing.assert_close(actual[0], expected[0], rtol=8 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)


def test_every_importer_is_replaced(user_module: ModuleType) -> None:
    with sod_ops.patch_losses() as patch:
        for path, module in MODULES.items():
            for name in FUNCTIONS:
                if hasattr(module, name):
                    assert getattr(module, name) is getattr(OPS, name)
                    assert f"{path}.{name}" in patch.patched
        assert user_module.ciou is OPS.complete_box_iou_loss is not ORIGINALS["complete_box_iou_loss"]
        assert user_module.sigmoid_focal_loss is OPS.sigmoid_focal_loss
    assert "torchvision.models.detection.retinanet.sigmoid_focal_loss" in patch.patched
    assert "torchvision.models.detection.fcos.generalized_box_iou_loss" in patch.patched
    assert "torchvision.models.detection._utils.complete_box_iou_loss" in patch.patched
    assert "torchvision.ops.complete_box_iou" in patch.patched
    assert "segmentation_models_pytorch.losses.focal.FocalLoss.forward" in patch.patched
    assert {"user_project.train.ciou", "user_project.train.sigmoid_focal_loss"} <= set(patch.patched)
    assert patch.patched == sorted(set(patch.patched))
    assert user_module.ciou is ORIGINALS["complete_box_iou_loss"]


def test_replacements_keep_name_signature_and_documentation() -> None:
    with sod_ops.patch_losses():
        function, original = OPS.complete_box_iou_loss, ORIGINALS["complete_box_iou_loss"]
        assert (function.__name__, function.__doc__) == (original.__name__, original.__doc__)
        assert function.__wrapped__ is original


@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_graph_under_compile(name: str) -> None:
    arguments = arguments_for(name)
    torch._dynamo.reset()
    with sod_ops.patch_losses():
        actual = torch.compile(getattr(OPS, name), fullgraph=True, backend="aot_eager")(*arguments)
    assert_same((actual,), (ORIGINALS[name](*arguments),))


# ---- What is left to the original -------------------------------------------------------------------------------------

B = torch.tensor([[0.0, 0, 2, 2], [1, 1, 3, 4], [5, 5, 9, 9]])
FALLBACKS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "boxes broadcast": ("complete_box_iou_loss", (B, B[:1])),
    "boxes in a batch": ("generalized_box_iou_loss", (B[None], B[None])),
    "pairs in a batch": ("complete_box_iou", (B[None], B[None])),
    "integer boxes": ("complete_box_iou", (B.int(), B.int())),
    "integer boxes in a loss": ("distance_box_iou_loss", (B.int(), B.int())),
    "two dtypes": ("complete_box_iou", (B, B.double())),
    "no epsilon": ("generalized_box_iou_loss", (B, B + 1, "none", 0.0)),
    "targets broadcast": ("sigmoid_focal_loss", (B, B[0] > 1)),
    "a negative exponent": ("sigmoid_focal_loss", (B, (B > 1).float(), 0.25, -1.0)),
    "another device": ("complete_box_iou_loss", (B.to("meta"), B.to("meta"))),
    "a bad reduction": ("complete_box_iou_loss", (B, B, "max")),
    "a bad alpha": ("sigmoid_focal_loss", (B, B, 1.5)),
    "a bad shape": ("complete_box_iou_loss", (B[:, :3], B[:, :3])),
    "no tensor": ("complete_box_iou_loss", (None, B)),
    "no argument": ("complete_box_iou_loss", ()),
}


def outcome(function: Callable[..., Tensor], arguments: tuple[Any, ...]) -> Any:
    try:
        result = function(*arguments)
    except Exception as error:
        return type(error), str(error)
    return result.dtype, result.device, (result.shape if result.is_meta else result.tolist())


@pytest.mark.parametrize("case", FALLBACKS)
def test_other_calls_end_as_they_did(case: str) -> None:
    """With the very same numbers, or the error that a caller knows."""
    name, arguments = FALLBACKS[case]
    expected = outcome(ORIGINALS[name], arguments)
    with sod_ops.patch_losses():
        assert outcome(getattr(OPS, name), arguments) == expected
        assert not is_fused(lambda: outcome(getattr(OPS, name), arguments))


def test_subclasses_of_tensor_keep_theirs() -> None:
    boxes = import_peer("torchvision.tv_tensors").BoundingBoxes(B, format="XYXY", canvas_size=(10, 10))
    with sod_ops.patch_losses():
        assert not is_fused(lambda: OPS.complete_box_iou_loss(boxes, boxes))


def test_a_trace_holds_operators_of_pytorch() -> None:
    with sod_ops.patch_losses():
        traced = torch.jit.trace(lambda a, b: OPS.generalized_box_iou_loss(a, b), (B, B + 1))
    assert "sod_ops" not in str(traced.graph)
    torch.testing.assert_close(traced(B, B + 1), ORIGINALS["generalized_box_iou_loss"](B, B + 1))


def test_a_function_that_somebody_has_replaced_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def theirs(*_: Any) -> str:
        return "theirs"

    monkeypatch.setattr("torchvision.ops.ciou_loss.complete_box_iou_loss", theirs)
    with sod_ops.patch_losses() as patch:
        assert sys.modules["torchvision.ops.ciou_loss"].complete_box_iou_loss is theirs
        assert not [path for path in patch.patched if path.endswith("complete_box_iou_loss")]


def test_without_a_peer_there_is_a_warning_and_nothing_is_imported() -> None:
    code = """
import sys, warnings, sod_ops
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    patch = sod_ops.patch_losses()
print([str(w.message) for w in caught], patch.patched, "torchvision" in sys.modules)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.startswith("['patch_losses has replaced nothing: none of ")
    assert found.endswith("has been imported yet'] [] False\n")


# ---- Putting it back --------------------------------------------------------------------------------------------------


def assert_patched(patched: bool) -> None:
    assert (OPS.complete_box_iou_loss is not ORIGINALS["complete_box_iou_loss"]) == patched
    assert (
        MODULES["torchvision.models.detection.fcos"].sigmoid_focal_loss is not ORIGINALS["sigmoid_focal_loss"]
    ) == patched


def test_a_plain_call_holds_until_restore() -> None:
    patch = sod_ops.patch_losses()
    assert_patched(True)
    patch.restore()
    assert_patched(False)
    patch.restore()
    assert_patched(False)


def test_an_error_inside_restores() -> None:
    with pytest.raises(RuntimeError, match="inside"), sod_ops.patch_losses():
        raise RuntimeError("inside")
    assert_patched(False)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_patches_end_in_any_order(order: tuple[int, ...]) -> None:
    patches = [sod_ops.patch_losses() for _ in range(3)]
    assert patches[0].patched == patches[1].patched == patches[2].patched
    for i in order:
        assert_patched(True)
        patches[i].restore()
        patches[i].restore()
    assert_patched(False)


def test_repeated_use() -> None:
    for _ in range(3):
        with sod_ops.patch_losses():
            assert_patched(True)
        assert_patched(False)


def test_modules_imported_meanwhile_are_restored_too(user_module: ModuleType) -> None:
    with sod_ops.patch_losses():
        late = sys.modules["user_project.late"] = ModuleType("user_project.late")
        exec("from torchvision.ops import distance_box_iou_loss", late.__dict__)
        with sod_ops.patch_losses():
            assert late.distance_box_iou_loss is OPS.distance_box_iou_loss
        assert late.distance_box_iou_loss is OPS.distance_box_iou_loss is not ORIGINALS["distance_box_iou_loss"]
    assert late.distance_box_iou_loss is ORIGINALS["distance_box_iou_loss"]


# ---- What the user names ----------------------------------------------------------------------------------------------


def ours(*_: Any) -> str:
    return "ours"


def test_extra(user_module: ModuleType) -> None:
    other = sys.modules["user_project.other"] = ModuleType("user_project.other")
    exec("from user_project.train import structure_loss as loss", other.__dict__)
    with sod_ops.patch_losses({"user_project.train.structure_loss": ours}) as patch:
        assert user_module.structure_loss is other.loss is ours
        assert {"user_project.train.structure_loss", "user_project.other.loss"} <= set(patch.patched)
        assert_patched(True)
    assert user_module.structure_loss(None, None) == other.loss(None, None) == "theirs"


def test_extra_replaces_only_the_name_of_what_is_defined_elsewhere(user_module: ModuleType) -> None:
    with sod_ops.patch_losses({"user_project.train.ciou": ours}):
        assert user_module.ciou is ours
        assert OPS.complete_box_iou_loss is not ours
    assert user_module.ciou is ORIGINALS["complete_box_iou_loss"]


def test_extra_goes_before_what_is_known() -> None:
    with sod_ops.patch_losses({"torchvision.ops.ciou_loss.complete_box_iou_loss": sod_ops.complete_box_iou_loss}):
        assert OPS.complete_box_iou_loss is sod_ops.complete_box_iou_loss
        assert MODULES["torchvision.models.detection._utils"].complete_box_iou_loss is sod_ops.complete_box_iou_loss


def test_extra_in_a_class(user_module: ModuleType) -> None:
    paths = ("user_project.train.Head.loss", "user_project.train.Head.criterion")
    head = user_module.Head()
    with sod_ops.patch_losses(dict.fromkeys(paths, ours)) as patch:
        assert head.loss(1) == head.criterion(1) == user_module.Head.criterion(1) == "ours"
        assert set(paths) <= set(patch.patched)
    assert (head.loss(1), head.criterion(1)) == ("method", "static")
    assert isinstance(vars(user_module.Head)["criterion"], staticmethod)


def test_nested_extra(user_module: ModuleType) -> None:
    path = "user_project.train.structure_loss"
    first = sod_ops.patch_losses({path: ours})
    second = sod_ops.patch_losses({path: sod_ops.sigmoid_focal_loss})
    assert user_module.structure_loss is sod_ops.sigmoid_focal_loss
    first.restore()
    assert user_module.structure_loss is sod_ops.sigmoid_focal_loss
    second.restore()
    assert user_module.structure_loss(None, None) == "theirs"


@pytest.mark.parametrize(
    ("extra", "error", "message"),
    [
        ([], TypeError, "extra must be a mapping or None, got list"),
        ({1: ours}, TypeError, "extra must have import paths as keys, got 1"),
        ({"user_project.train.structure_loss": 3}, TypeError, r"extra\['user_project.*'\] must be callable, got int"),
        ({"no_such_project.train.loss": ours}, ValueError, "there is no module 'no_such_project'"),
        ({"user_project.no_such.loss": ours}, ValueError, "user_project.no_such does not exist"),
        ({"user_project.train.no_such": ours}, ValueError, "user_project.train.no_such is not defined there"),
        ({"user_project.train.Head.no_such": ours}, ValueError, "user_project.train.Head.no_such is not defined there"),
        ({"structure_loss": ours}, ValueError, "there is no module 'structure_loss'"),
        ({"": ours}, ValueError, "there is no module ''"),
        ({"user_project.train.Head.kind": ours}, TypeError, "which is not callable: str"),
    ],
)
def test_bad_extra_is_named_and_changes_nothing(
    user_module: ModuleType, extra: Any, error: type[Exception], message: str
) -> None:
    if isinstance(extra, dict) and all(map(callable, extra.values())) and "" not in extra:
        extra = {"user_project.train.structure_loss": ours, **extra}
    with pytest.raises(error, match=f"patch_losses: .*{message}"):
        sod_ops.patch_losses(extra)
    assert_patched(False)


def test_an_error_in_an_imported_module_shows(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_project.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        sod_ops.patch_losses({"broken_project.loss": ours})


# ---- segmentation_models_pytorch --------------------------------------------------------------------------------------

FLAVOURS: list[dict[str, Any]] = [
    {"mode": "binary"},
    {"mode": "binary", "alpha": 0.25, "gamma": 1.5},
    {"mode": "binary", "alpha": 0.75, "reduction": "sum", "ignore_index": 255},
    {"mode": "binary", "reduction": "none", "gamma": 0.0},
    {"mode": "multilabel", "alpha": 0.25},
    {"mode": "multilabel", "class_weights": [1.0, 2.0, 0.5]},
    {"mode": "multiclass"},
    {"mode": "multiclass", "alpha": 0.4, "ignore_index": 255, "class_weights": [1.0, 2.0, 0.5]},
    {"mode": "multilabel", "from_logits": False},
]


def masks_for(mode: str, dtype: torch.dtype = torch.int64) -> tuple[Tensor, Tensor]:
    logits = torch.randn(2, 1 if mode == "binary" else 3, 9, 7) * 3
    if mode == "multiclass":
        return logits, torch.randint(0, 3, (2, 9, 7)).to(dtype)
    return logits, (torch.rand(logits.shape) > 0.6).to(dtype)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool], ids=str)
@pytest.mark.parametrize("options", FLAVOURS, ids=str)
def test_smp_focal_loss(options: dict[str, Any], dtype: torch.dtype) -> None:
    logits, mask = masks_for(options["mode"], dtype)
    if options.get("from_logits") is False:
        logits = logits.sigmoid()
    if dtype == torch.bool and options["mode"] == "multiclass":
        mask = mask.to(torch.int32)
    elif options.get("ignore_index") is not None and dtype != torch.bool:
        mask[0, ..., 2:4] = 255
    module = SMP.FocalLoss(**options)
    expected = run(module, [logits, mask])
    with sod_ops.patch_losses():
        assert is_fused(lambda: module(logits, mask))
        assert_same(run(module, [logits, mask]), expected)
        assert_same(run(SMP.FocalLoss(**options), [logits, mask]), expected)
    assert not is_fused(lambda: module(logits, mask))


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({}, torch.float32),
        ({"normalized": True}, torch.int64),
        ({"reduced_threshold": 0.5, "reduction": "sum"}, torch.int64),
        ({"reduction": "batchwise_mean"}, torch.int64),
        ({"alpha": -1.0}, torch.int64),
        ({"gamma": -0.5}, torch.int64),
    ],
    ids=str,
)
def test_smp_focal_loss_of_another_flavour_is_left_alone(options: dict[str, Any], dtype: torch.dtype) -> None:
    logits, mask = masks_for("binary", dtype)
    module = SMP.FocalLoss("binary", **options)
    expected = module(logits, mask)
    with sod_ops.patch_losses():
        assert torch.equal(module(logits, mask), expected)
        assert not is_fused(lambda: module(logits, mask))


def test_subclasses_of_smp_focal_loss_are_left_alone() -> None:
    class Scaled(SMP.FocalLoss):  # type: ignore[misc]
        def forward(self, *args: Any) -> Any:
            return 2 * super().forward(*args)

    logits, mask = masks_for("binary")
    module = Scaled("binary")
    expected = module(logits, mask)
    with sod_ops.patch_losses():
        assert torch.equal(module(logits, mask), expected)


# ---- ultralytics ------------------------------------------------------------------------------------------------------


class Ultralytics(NamedTuple):
    metrics: Any
    loss: Any
    tal: Any


@pytest.fixture(scope="module")
def ultralytics(tmp_path_factory: pytest.TempPathFactory) -> Ultralytics:
    """Its import sets environment variables, among them OMP_NUM_THREADS, and replaces torch.save; neither shall stay."""
    settings = {"YOLO_CONFIG_DIR": str(tmp_path_factory.mktemp("ultralytics")), "YOLO_OFFLINE": "true"}
    with mock.patch.dict(os.environ, settings), mock.patch("torch.save"):
        return Ultralytics(*(import_peer(f"ultralytics.utils.{name}") for name in ("metrics", "loss", "tal")))


FLAGS = ("CIoU", "DIoU", "GIoU")


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("eps", [1e-7, 1e-3])
@pytest.mark.parametrize("size", [0.05, 1.0, 640.0])
def test_bbox_iou(ultralytics: Ultralytics, flag: str, dtype: torch.dtype, eps: float, size: float) -> None:
    """Also of boxes in parts of an image, where eps counts, that touch, or have no size."""
    special = [torch.cat(b) for b in zip(pairs_of(PAIRS, dtype), pairs_of(DEGENERATE, dtype), strict=True)]
    boxes = [torch.cat([random_boxes(200, dtype, size=size), s]) for s in special]
    options = {"xywh": False, flag: True, "eps": eps}
    original = ultralytics.metrics.bbox_iou
    expected = run(original, boxes, **options)
    exact = run(original, [b.double() for b in boxes], **options)
    with sod_ops.patch_losses():
        assert is_fused(lambda: ultralytics.metrics.bbox_iou(*boxes, **options))
        actual = run(ultralytics.metrics.bbox_iou, boxes, **options)
    assert actual[0].shape == (len(boxes[0]), 1)
    for a, e, x in zip(actual, expected, exact, strict=True):
        assert a.dtype == e.dtype
        # Within rounding: no further from the exact result than theirs is, or than some units of the row's terms.
        unit = 16 * torch.finfo(dtype).eps
        scale = x.abs().amax(1, keepdim=True).clamp_min(1)
        theirs = (e.double() - x).abs().nan_to_num(torch.inf)
        wrong = (a.double() - x).abs() > 2 * theirs + unit * scale
        assert not (wrong & x.isfinite()).any(), boxes[0][wrong.any(1)]


@pytest.mark.parametrize("shape", [(4,), (0, 4), (3, 4), (2, 5, 4), (2, 3, 1, 4)], ids=str)
def test_bbox_iou_of_any_shape(ultralytics: Ultralytics, shape: tuple[int, ...]) -> None:
    boxes = [random_boxes(30)[: torch.Size(shape[:-1]).numel()].reshape(shape) for _ in range(2)]
    expected = ultralytics.metrics.bbox_iou(*boxes, xywh=False, CIoU=True)
    with sod_ops.patch_losses():
        assert is_fused(lambda: ultralytics.metrics.bbox_iou(*boxes, xywh=False, CIoU=True))
        actual = ultralytics.metrics.bbox_iou(*boxes, xywh=False, CIoU=True)
        actual.squeeze(-1).clamp_(0)  # as its assigner does
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected.clamp(0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "dtype", "count"),
    [
        ({"CIoU": True}, torch.float32, 20),
        ({"xywh": False}, torch.float32, 20),
        ({"xywh": False, "CIoU": True}, torch.float16, 20),
        ({"xywh": False, "CIoU": True}, torch.float32, 1),
    ],
    ids=["centres and sizes", "no flag", "two bytes", "boxes that broadcast"],
)
def test_bbox_iou_of_another_kind_is_left_alone(
    ultralytics: Ultralytics, options: dict[str, Any], dtype: torch.dtype, count: int
) -> None:
    boxes = random_boxes(20, dtype), random_boxes(count, dtype)
    expected = ultralytics.metrics.bbox_iou(*boxes, **options)
    with sod_ops.patch_losses():
        assert not is_fused(lambda: ultralytics.metrics.bbox_iou(*boxes, **options))
        assert torch.equal(ultralytics.metrics.bbox_iou(*boxes, **options), expected)


def test_the_loss_of_ultralytics(ultralytics: Ultralytics) -> None:
    predicted = (random_boxes(12, size=8.0).view(2, 6, 4)).requires_grad_()
    target = random_boxes(12, size=8.0).view(2, 6, 4)
    mask = torch.rand(2, 6) > 0.4
    scores = torch.rand(2, 6, 3)
    arguments = (torch.randn(2, 6, 64), predicted, torch.rand(6, 2) * 8, target, scores, scores.sum(), mask, None, None)
    module = ultralytics.loss.BboxLoss(16)

    def step() -> tuple[Tensor, Tensor]:
        loss, _ = module(*arguments)
        return loss.detach(), torch.autograd.grad(loss, predicted)[0]

    expected = step()
    with sod_ops.patch_losses() as patch:
        assert {f"ultralytics.utils.{m}.bbox_iou" for m in ("metrics", "loss", "tal")} <= set(patch.patched)
        assert is_fused(step)
        assert_same(step(), expected)
    assert not is_fused(step)


# ---- Training ---------------------------------------------------------------------------------------------------------


def train(make: Callable[[], torch.nn.Module], dtype: torch.dtype, steps: int) -> list[float]:
    """The losses of a small detector in its first steps on squares."""
    torch.manual_seed(0)
    model = make().train().to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images, targets = [], []
    for i in range(2):
        image = torch.rand(3, 64, 64).to(dtype) * 0.1
        x, y, side = 8 + 6 * i, 12, 24 + 10 * i
        image[:, y : y + side, x : x + side] += 0.8
        images.append(image)
        boxes = torch.tensor([[x, y, x + side, y + side]]).to(dtype)
        targets.append({"boxes": boxes, "labels": torch.tensor([1 + i])})
    curve = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = sum(model(images, targets).values())
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve


def backbone() -> torch.nn.Module:
    layers: list[torch.nn.Module] = []
    for i, o in ((3, 8), (8, 16), (16, 32)):
        layers += [torch.nn.Conv2d(i, o, 3, stride=2, padding=1), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers)
    model.out_channels = 32  # type: ignore[assignment]
    return model


def retinanet() -> torch.nn.Module:
    """With the complete IoU loss, which its head knows beside its default."""
    detection = import_peer("torchvision.models.detection")
    anchors = detection.anchor_utils.AnchorGenerator(((16, 32),), ((1.0,),))
    model = detection.RetinaNet(backbone(), 3, min_size=64, max_size=64, anchor_generator=anchors)
    model.head.regression_head._loss_type = "ciou"
    return model


def fcos() -> torch.nn.Module:
    detection = import_peer("torchvision.models.detection")
    anchors = detection.anchor_utils.AnchorGenerator(((8,),), ((1.0,),))
    return detection.FCOS(backbone(), 3, min_size=64, max_size=64, anchor_generator=anchors)


@pytest.mark.parametrize("make", [retinanet, fcos])
def test_a_detector_learns_the_same(make: Callable[[], torch.nn.Module]) -> None:
    """Roundings grow from step to step: measured, from 1e-16 to 4e-9 in 50 steps; in float32 to anything."""
    for dtype, steps, tolerance in ((torch.float64, 50, 1e-7), (torch.float32, 10, 1e-5)):
        expected = train(make, dtype, steps)
        with sod_ops.patch_losses():
            actual = train(make, dtype, steps)
        assert expected[-1] < expected[0] * (0.9 if steps == 50 else 1)
        assert actual == pytest.approx(expected, rel=tolerance)
        assert actual != expected  # or nothing was replaced

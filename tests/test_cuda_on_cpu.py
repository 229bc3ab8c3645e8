"""CUDA kernels, run on the CPU (cuda_on_cpu), hold to the contract that the others hold to."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cuda_on_cpu
import pytest
import torch
from cases import EMPTY_MAPS, FLOATING, MAPS, MapCase
from conftest import Backend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_sigmoid_focal_loss_contract import allocated
from test_squeeze_excite import ACTIVATIONS, GATES
from test_structure_loss import LAYOUTS, REDUCTIONS

import sod_ops
from sod_ops.backends import Kernels

# The losses of heads, and the options that each is tried with.
OPS: dict[str, list[dict[str, Any]]] = {
    "tversky_loss": [{"alpha": 0.3, "beta": 0.7}],
    "structure_loss": [{"kernel_size": 7}, {"kernel_size": 41}, {"kernel_size": 5, "as_published": True}],
    "adaptive_pixel_intensity_loss": [{}, {"as_published": True}],
    # Windows whose tiles lie in shared memory, and larger ones.
    "bce_ssim_iou_loss": [{}, {"window_size": 5, "smooth": 1.0}, {"window_size": 15, "sigma": 4.0}],
}
# One block to a sample and several; rows in packs and not; a pixel.
SHAPES = ((2, 1, 40, 48), (3, 1, 19, 21), (1, 1, 65, 64), (1, 1, 1, 1))
BOXES = ("box_iou_loss", "complete_box_iou")
SQUEEZE_EXCITE = "squeeze_excite"
# Each is served by the kernels under test.
CPU = Backend("cpu", "cpu")


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Loaded once in a process, which a worker may enter this file in twice: operators can't be defined again."""
    ops = [*OPS, *BOXES, SQUEEZE_EXCITE, "scale_gradient"]
    return cuda_on_cpu.build(ops, tmp_path_factory.mktemp("cuda_on_cpu"))


@pytest.fixture(scope="module", autouse=True)
def kernels(library: Path) -> Iterator[None]:
    """In the place of the CPU's."""
    operators = getattr(torch.ops, cuda_on_cpu.NAMESPACE)
    with pytest.MonkeyPatch.context() as patch:
        for op in (*OPS, *BOXES, SQUEEZE_EXCITE):
            module = importlib.import_module(f"sod_ops.ops.{op}")
            select = module._loss.select if op in OPS else module._select
            forward, backward = getattr(operators, op).default, getattr(operators, f"{op}_backward").default
            patch.setitem(select._kernels, "cpu", Kernels(forward, backward, check_arguments=True))
            patch.setattr(select, "_chosen", {})
        yield


@pytest.fixture(params=[False, True], ids=["threads_in_order", "threads_reversed"])
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads take turns in either order: what one reads must not depend on whether another was there already."""
    if request.param:
        monkeypatch.setenv("CUDA_ON_CPU_REVERSED", "1")


def module_of(op: str) -> ModuleType:
    """The op's own tests: make() gives inputs, check() holds a backend to the reference in float64."""
    return importlib.import_module(f"test_{op}")


CASES = [pytest.param(op, options, id=f"{op}-{i}") for op, all_of in OPS.items() for i, options in enumerate(all_of)]


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize(("op", "options"), CASES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(op: str, options: dict[str, Any], shape: tuple[int, ...]) -> None:
    tests = module_of(op)
    for reduction in REDUCTIONS:
        tests.check(CPU, tests.make(shape, heads=2), **options, weights=[1.0, 0.5], reduction=reduction)


@pytest.mark.parametrize(("op", "options"), CASES)
def test_more_heads_than_a_launch_takes(op: str, options: dict[str, Any]) -> None:
    tests = module_of(op)
    for reduction in REDUCTIONS:
        given = tests.make((3, 1, 6, 6), heads=17)
        tests.check(CPU, given, **options, weights=[0.1 * h for h in range(17)], reduction=reduction)


@pytest.mark.parametrize(("op", "options"), CASES)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 5), st.just(1), st.integers(1, 40), st.integers(1, 40)),
    layout=st.sampled_from(["contiguous", *LAYOUTS]),
    dtype=st.sampled_from(FLOATING),
    mask_dtype=st.sampled_from([*FLOATING, torch.bool, torch.uint8, torch.int64]),
    heads=st.integers(1, 3),
    reduction=st.sampled_from(REDUCTIONS),
)
def test_any_shape(
    op: str,
    options: dict[str, Any],
    shape: tuple[int, int, int, int],
    layout: str,
    dtype: torch.dtype,
    mask_dtype: torch.dtype,
    heads: int,
    reduction: str,
) -> None:
    tests = module_of(op)
    given = tests.make(shape, dtype, heads=heads, layout=layout, mask_dtype=mask_dtype)
    tests.check(CPU, given, **options, reduction=reduction)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(0, 1, 4, 4), (2, 1, 0, 4), (2, 1, 4, 0)], ids=str)
def test_empty(op: str, shape: tuple[int, ...], reduction: str) -> None:
    module_of(op).test_empty(CPU, shape, reduction, *([1.0] if op == "tversky_loss" else []))


@pytest.mark.parametrize("op", OPS)
def test_every_number_is_written_before_it_is_read(op: str) -> None:
    """New memory is full of NaN here."""
    tests = module_of(op)
    torch.use_deterministic_algorithms(True)
    try:
        tests.check(CPU, tests.make((3, 1, 37, 29), heads=2))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("counts", [(1, 1), (37, 53), (3, 2203)], ids=str)
def test_boxes(counts: tuple[int, int]) -> None:
    """All pairs, and the losses of as many pairs as one block takes and more."""
    module_of("complete_box_iou").test_counts_and_dtypes(CPU, torch.float32, counts)
    tests = module_of("box_iou_loss")
    boxes = [tests.random_boxes(counts[1], torch.float32, "cpu") for _ in range(2)]
    for loss in ("generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss"):
        for reduction in REDUCTIONS:
            tests.check(CPU, loss, *boxes, reduction)


@pytest.mark.parametrize("counts", [(0, 5), (5, 0), (0, 0)], ids=str)
def test_no_boxes(counts: tuple[int, int]) -> None:
    module_of("complete_box_iou").test_empty(CPU, torch.float32, counts)
    for reduction in REDUCTIONS:
        module_of("box_iou_loss").test_empty(CPU, "complete_box_iou_loss", reduction, torch.float32)


@pytest.mark.parametrize("value", [-0.25, 1.5, float("nan")])
@pytest.mark.parametrize(
    ("op", "options", "all_of_them"),
    [
        # As published, a sample's loss has a mean over all samples in it.
        ("adaptive_pixel_intensity_loss", {"as_published": False}, False),
        ("adaptive_pixel_intensity_loss", {"as_published": True}, True),
        ("bce_ssim_iou_loss", {}, False),
    ],
)
def test_what_is_no_probability_makes_its_samples_loss_nan(
    op: str, options: dict[str, Any], all_of_them: bool, value: float
) -> None:
    """On a GPU nobody waits for the device to say so."""
    given = module_of(op).make((2, 1, 37, 19))
    given.heads[0][1, 0, 36, 18] = value
    leaf = given.heads[0].requires_grad_()
    losses = getattr(sod_ops, op)(leaf, given.mask, reduction="none", **options)
    assert losses.isnan().tolist() == [all_of_them, True]
    (gradient,) = torch.autograd.grad(losses[1], leaf)
    assert gradient[1].isnan().all()


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("heads", [1, 3])
def test_memory(op: str, heads: int) -> None:
    """Beyond inputs and gradients, at most two maps of the mask's size and some sums."""
    given = module_of(op).make((4, 1, 60, 56), heads=heads)
    leaves = [head.requires_grad_() for head in given.heads]
    size = given.mask.numel() * 4

    def step() -> torch.Tensor:
        loss = getattr(sod_ops, op)(leaves, given.mask, **({"alpha": 0.3, "beta": 0.7} if op == "tversky_loss" else {}))
        loss.backward()
        return loss

    assert heads * size <= allocated(CPU, step) < (heads + 2.2) * size


def test_memory_of_large_windows() -> None:
    """A workspace of at most two maps, where a block's tile takes no more."""
    given = module_of("bce_ssim_iou_loss").make((8, 1, 96, 96))
    leaf = given.heads[0].requires_grad_()
    size = given.mask.numel() * 4

    def step() -> torch.Tensor:
        loss = sod_ops.bce_ssim_iou_loss(leaf, given.mask, window_size=13)
        loss.backward()
        return loss

    assert allocated(CPU, step) < (1 + 2.2) * size


# What a device can do: blocks in the largest cluster, multiprocessors, bytes of shared memory for a block.
H100 = "16,132,232448"
SMALL = "16,4,26000"
TINY = "16,4,18000"


@pytest.fixture
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    limits: str = getattr(request, "param", H100)
    monkeypatch.setenv("CUDA_ON_CPU_CLUSTERS", limits)
    return limits


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize(
    ("device", "case", "dtype", "reduced", "blocks"),
    [
        (H100, MapCase((3, 13, 7, 11)), torch.float32, 5, 1),  # so little that more blocks gain nothing
        (H100, MapCase((2, 24, 28, 28)), torch.float32, 6, 8),  # more blocks, so that multiprocessors have work
        ("2,132,232448", MapCase((2, 24, 28, 28)), torch.float32, 6, 2),  # as many as there are
        (TINY, MapCase((5, 40, 9, 10)), torch.bfloat16, 7, 2),  # rows fit no pack
        (TINY, MapCase((2, 16, 16, 24)), torch.bfloat16, 3, 2),  # packs of 16 bytes
        (TINY, MapCase((2, 19, 14, 22)), torch.float16, 3, 2),  # packs of 8 bytes
        (TINY, MapCase((3, 72, 10, 8), "channels_last"), torch.float16, None, 4),
        (SMALL, MapCase((2, 37, 11, 13), "channels_last"), torch.float32, None, 4),
        (SMALL, MapCase((2, 24, 11, 13)), torch.float64, None, 4),  # without a reduction, all means are exchanged
        (SMALL, MapCase((2, 31, 23, 29)), torch.float32, 11, 8),
        (SMALL, MapCase((1, 47, 29, 31), "channels_last"), torch.float32, 11, 16),
        ("16,4,40000", MapCase((1, 37, 31, 37)), torch.float64, 3, 16),  # three planes a block, one, and none
        (H100, MapCase((1, 1037, 3, 3), "channels_last"), torch.float32, 5, 4),  # more channels than threads
        (H100, MapCase((1, 64, 56, 56)), torch.bfloat16, 405, 8),  # more hidden units than threads
    ],
    indirect=["device"],
    ids=str,
)
def test_squeeze_excite_by_clusters(
    device: str, case: MapCase, dtype: torch.dtype, reduced: int | None, blocks: int, library: Path
) -> None:
    tests = module_of(SQUEEZE_EXCITE)
    tests.check(CPU, tests.make(case, dtype, reduced=reduced), activation="gelu")
    assert cuda_on_cpu.blocks_in_the_latest_cluster(library) == blocks


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("case", [case for case in MAPS if not case.large], ids=str)
def test_squeeze_excite_of_all_layouts(case: MapCase, dtype: torch.dtype) -> None:
    module_of(SQUEEZE_EXCITE).test_shapes_layouts_and_dtypes(CPU, case, dtype)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_squeeze_excite_activations_and_gates(activation: str, gate: str) -> None:
    module_of(SQUEEZE_EXCITE).test_activations_and_gates(CPU, activation, gate)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("device", [TINY], indirect=True)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("options", [{"bias": False}, {"reduced": None, "bias": False}, {"reduced": 1}, {"reduced": 0}])
def test_squeeze_excite_forms_of_the_parameters(options: dict[str, Any], layout: str) -> None:
    tests = module_of(SQUEEZE_EXCITE)
    for dtype in (torch.bfloat16, torch.float16):
        given = tests.make(MapCase((3, 44, 9, 11), layout), dtype, parameters=torch.float32, **options)
        tests.check(CPU, given, gate="hardsigmoid")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("reduced", [5, None])
def test_squeeze_excite_statistics_are_those_of_the_cpu(reduced: int | None, layout: str) -> None:
    """As the operators return them, without which a backward of another backend could not follow."""
    given = module_of(SQUEEZE_EXCITE).make(MapCase((3, 44, 9, 11), layout), torch.float64, reduced=reduced)
    operators = getattr(torch.ops, cuda_on_cpu.NAMESPACE)
    found, expected = (namespace.squeeze_excite(*given, 4, 1) for namespace in (operators, torch.ops.sod_ops))
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-13, atol=1e-14)


def test_squeeze_excite_of_extreme_values_and_of_nothing() -> None:
    tests = module_of(SQUEEZE_EXCITE)
    for layout in ("contiguous", "channels_last"):
        for value in (float("inf"), float("nan"), "max"):
            tests.test_extreme_values(CPU, value, layout, torch.float16)
    for case in EMPTY_MAPS:
        tests.test_empty(CPU, case)


@pytest.mark.parametrize("layout", ["channel_slice", "channels_last_slice", "expanded"])
def test_squeeze_excite_reads_slices_in_place(layout: str) -> None:
    module_of(SQUEEZE_EXCITE).test_slices_are_read_in_place(CPU, layout)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 50), st.integers(1, 20), st.integers(1, 20)),
    layout=st.sampled_from(["contiguous", "channels_last", "channel_slice", "channels_last_slice"]),
    reduced=st.one_of(st.none(), st.integers(1, 40)),
    dtype=st.sampled_from(FLOATING),
    limits=st.sampled_from([H100, SMALL, "4,4,232448"]),
)
def test_squeeze_excite_of_any_shape(
    shape: tuple[int, int, int, int],
    layout: str,
    reduced: int | None,
    dtype: torch.dtype,
    limits: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_ON_CPU_CLUSTERS", limits)
    tests = module_of(SQUEEZE_EXCITE)
    tests.check(CPU, tests.make(MapCase(shape, layout), dtype, reduced=reduced), activation="silu")


@pytest.mark.parametrize(
    ("device", "message"),
    [("8,132,9000", "one of C = 40, H W = 672 does not fit: 8 blocks of 9000 bytes"), ("0,132,9000", "no kernel for")],
    indirect=["device"],
)
def test_squeeze_excite_refuses_what_does_not_fit(device: str, message: str) -> None:
    given = module_of(SQUEEZE_EXCITE).make(MapCase((1, 40, 24, 28)))
    with sod_ops.use_backend("cpu"), pytest.raises(RuntimeError, match=f"squeeze_excite: the cuda backend .*{message}"):
        sod_ops.squeeze_excite(*given)

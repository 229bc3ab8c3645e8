"""The convolution that a head or a decoder takes over a map and upsampled maps, without their concatenation; and the pools
of a pyramid, in one pass."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.modules import module as torch_module

from sod_ops.accelerate.functions import path_of
from sod_ops.accelerate.squeeze_excite import are_untouched, leaves_pytorch
from sod_ops.accelerate.swap import NotServedError, is_bound
from sod_ops.ops._pointwise_conv2d import is_pointwise, parameters_of, pointwise_conv2d
from sod_ops.ops.pyramid_conv2d import pyramid_conv2d
from sod_ops.ops.pyramid_pool import pool_and_pass_on

_ATTRIBUTES = {"stride": (1, 1), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}


class Block(NamedTuple):
    """A block that convolves and then applies modules, by the names of its children, in the order in which they run.

    ``rest`` is None for a Sequential: all that follow in it.
    """

    convolution: str
    rest: tuple[str, ...] | None

    def of(self, head: Any) -> tuple[Any, list[Any]]:
        """The convolution of ``head``, None where it has gone since, and the modules after it."""
        if self.rest is None:
            convolution, *rest = head._modules.values() or (None,)
            return convolution, rest
        return getattr(head, self.convolution, None), [getattr(head, name) for name in self.rest]


# A block of a peer library by its class's import path.
Blocks = Mapping[str, Block]
NO_BLOCKS: Blocks = {}


def recognise(name: str, head: Any, blocks: Blocks) -> Block:
    """The parts of ``head``: a Sequential that begins with a convolution, or one of ``blocks``.

    Raises:
        NotServedError: it is neither, or its convolution is not one that pyramid_conv2d computes.
    """
    path = path_of(type(head))
    if isinstance(head, torch.nn.Sequential) and type(head).forward is torch.nn.Sequential.forward and len(head):
        block = Block(next(iter(head._modules)), None)
    elif path in blocks and path_of(type(head).forward) == f"{path}.forward":
        block = blocks[path]
    else:
        known = "".join(f", nor a {path.rpartition('.')[2]}" for path in blocks)
        raise NotServedError(f"its {name} is {path}, not a Sequential that begins with a convolution{known}")
    convolution, _ = block.of(head)
    if type(convolution) is not torch.nn.Conv2d:
        raise NotServedError(f"its {name} begins with {path_of(type(convolution))}, not a plain Conv2d")
    check_convolution(f"the convolution of its {name}", convolution)
    if not are_untouched((head, convolution)):
        raise NotServedError(f"its {name} or the convolution in it has hooks, or a forward of its own")
    return block


def check_convolution(what: str, convolution: Any) -> None:
    """Raises NotServedError where pyramid_conv2d does not compute what the Conv2d ``convolution``, ``what``, does."""
    for attribute, value in _ATTRIBUTES.items():
        if getattr(convolution, attribute) != value:
            raise NotServedError(f"{what} has {attribute}={getattr(convolution, attribute)!r}, not {value!r}")
    kernel = convolution.kernel_size
    if kernel not in ((1, 1), (3, 3)) or convolution.padding != (kernel[0] // 2, kernel[0] // 2):
        raise NotServedError(
            f"{what} has kernel_size={kernel} and padding={convolution.padding}: not 3x3 with 1, nor 1x1 with 0"
        )


def check_bypassed(modules: Mapping[str, torch.nn.Module]) -> None:
    """Raises NotServedError where one of ``modules``, which a fused forward does not call, would be missed."""
    for name, module in modules.items():
        if not may_bypass((module,)):
            raise NotServedError(f"its {name} has hooks, or a forward of its own, that would no longer run")


def may_bypass(modules: Iterable[torch.nn.Module]) -> bool:
    """Whether nothing is missed where none of ``modules`` is called: no hooks, and no forward but its class's or ours."""
    return all(are_untouched((module,)) or (is_bound(module) and _has_no_hooks(module)) for module in modules)


def _has_no_hooks(module: torch.nn.Module) -> bool:
    state = module.__dict__
    return not any(state[f"_{kind}_hooks"] for kind in ("forward_pre", "forward", "backward_pre", "backward"))


def serves_map(x: Any) -> bool:
    """Whether fused ops may read ``x`` in this call."""
    return (
        isinstance(x, Tensor)
        and x.dim() == 4
        and x.is_floating_point()
        and not torch_module._has_any_global_hook()
        and not leaves_pytorch()
    )


def serves(head: Any, block: Block, x: Any) -> bool:
    """Whether :func:`convolve` may stand for ``head`` in this call; ``x`` is one of the maps."""
    convolution, _ = block.of(head)
    return serves_convolution(convolution, x) and are_untouched((head,))


def serves_convolution(convolution: Any, x: Any) -> bool:
    """Whether pyramid_conv2d may stand for ``convolution`` in this call."""
    return (
        serves_map(x)
        and type(convolution) is torch.nn.Conv2d
        and (x.dtype == convolution.weight.dtype or torch.is_autocast_enabled(x.device.type))
        and are_untouched((convolution,))
    )


def convolve(
    head: Any,
    block: Block,
    x: Tensor | None,
    branches: Sequence[Tensor],
    *,
    align_corners: bool = False,
    x_first: bool,
    mode: str = "bilinear",
    size: tuple[int, int] | None = None,
) -> Tensor:
    """``head(cat[x, branches upsampled to the size of x])``, from the weights that it has now; without x, to ``size``."""
    convolution, rest = block.of(head)
    y = pyramid_conv2d(
        as_concatenated(x, branches),
        branches,
        convolution.weight,
        convolution.bias,
        padding=convolution.padding[0],
        align_corners=align_corners,
        x_first=x_first,
        mode=mode,
        size=size,
    )
    for module in rest:
        y = module(y)
    return y


def as_concatenated(x: Tensor | None, branches: Iterable[Tensor]) -> Tensor | None:
    """``x`` in the memory format that the concatenation with ``branches`` would have, which the model's next layers get.

    On a CPU, PyTorch concatenates to contiguous maps unless all are channels_last, and what a convolution gives of one pixel
    is not. Left in channels_last, the convolutions behind a pyramid take up to 1.7 times as long in the backward.
    """
    if x is None or not x.is_cpu or x.is_contiguous() or not any(branch.is_contiguous() for branch in branches):
        return x
    return x.contiguous()


def upsample(maps: Iterable[Tensor], like: Tensor, align_corners: bool) -> list[Tensor]:
    """``maps`` at the size of ``like``, where the maps themselves are the result."""
    return [functional.interpolate(m, like.shape[2:], mode="bilinear", align_corners=align_corners) for m in maps]


def branches(levels: Iterable[tuple[Any, Any]], x: Tensor, blocks: Blocks = NO_BLOCKS) -> tuple[Tensor, list[Tensor]]:
    """``x`` for who reads it next, and ``x`` through the pool and the block of each level.

    All pools in one pass where they are PyTorch's own to squares; on a CPU all convolutions in one call where the levels'
    blocks, Sequentials or ``blocks``, begin with plain ones.
    """
    pools, of_levels = zip(*levels, strict=True)
    bins = [_bin_of(pool) for pool in pools]
    if None in bins or not are_untouched(pools) or x.numel() == 0:
        maps = [pool(x) for pool in pools]
    else:
        x, maps = pool_and_pass_on(x, bins)  # type: ignore[arg-type, assignment]
    parts: list[Any] = [_pointwise_parts(block, blocks, x) for block in of_levels]
    if None in parts or len({convolution.bias is None for convolution, _ in parts}) > 1:
        return x, [block(y) for block, y in zip(of_levels, maps, strict=True)]
    results = []
    for (_, rest), y in zip(parts, pointwise_conv2d(maps, *parameters_of([c for c, _ in parts])), strict=True):
        for module in rest:
            y = module(y)
        results.append(y)
    return x, results


def _pointwise_parts(block: Any, blocks: Blocks, x: Tensor) -> tuple[Any, list[Any]] | None:
    """The convolution that ``block`` begins with and the modules after it, where pointwise_conv2d may stand for it."""
    if not x.is_cpu:
        return None
    rest: list[Any] = []
    while type(block) is not torch.nn.Conv2d:
        path = path_of(type(block))
        if isinstance(block, torch.nn.Sequential) and type(block).forward is torch.nn.Sequential.forward:
            parts = Block("", None)
        elif path in blocks and path_of(type(block).forward) == f"{path}.forward":
            parts = blocks[path]
        else:
            return None
        if not are_untouched((block,)):
            return None
        block, after = parts.of(block)
        rest = [*after, *rest]
    return (block, rest) if is_pointwise(block) and serves_convolution(block, x) else None


def _bin_of(pool: Any) -> int | None:
    if type(pool) is not torch.nn.AdaptiveAvgPool2d:
        return None
    size = pool.output_size
    height, width = size if isinstance(size, (tuple, list)) and len(size) == 2 else (size, size)
    return height if type(height) is int and height == width and height > 0 else None

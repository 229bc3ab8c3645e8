"""Convolution over a map and upsampled branches: the public function, its checks and its autograd."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from sod_ops.backends import Kernels
from sod_ops.ops._branches_in_cache import add_branches, gradients_of_branches
from sod_ops.ops._check_pyramid_conv2d import check_call
from sod_ops.ops._cost_of_upsampling import pays_before_upsampling
from sod_ops.ops._maps import dense
from sod_ops.ops._operators import below_autograd, reference_gradients, register, transforms_active
from sod_ops.reference import pyramid_conv2d as reference

_TWO_BYTES = (torch.bfloat16, torch.float16)
# On a CPU, up to so many pixels of a branch (of all samples) are multiplied with a 3x3 kernel as it lies in memory, in the
# forward and for the gradient of the weight. Sorting the kernel by taps costs as much as 100 pixels' products.
_FEW_PIXELS, _FEW_PIXELS_OF_GRADIENT = 48, 24
# On a CPU, a branch of at most so many channels is multiplied where its products are added up, a row at a time, and they
# never go through memory. More channels would keep the multipliers waiting for the sums of the weight's gradient, and where
# rows are short, fewer for the weight.
_CHANNELS_IN_CACHE, _CHANNELS_OF_SHORT_ROWS, _SHORT_ROW = 256, 64, 16


class _Options(NamedTuple):
    """What a call has besides tensors."""

    padding: int
    align_corners: bool
    x_first: bool
    mode: str
    size: tuple[int, int]

    @property
    def nearest(self) -> bool:
        return self.mode == "nearest"

    def channels(self, x: Tensor | None, branches: Sequence[Tensor]) -> tuple[slice, list[slice]]:
        """The input channels of the weight that belong to x, and to each branch."""
        own = 0 if x is None else x.shape[1]
        start = own if self.x_first else 0
        of_branches = []
        for branch in branches:
            of_branches.append(slice(start, start + branch.shape[1]))
            start += branch.shape[1]
        return slice(0, own) if self.x_first else slice(start, start + own), of_branches


def pyramid_conv2d(
    x: Tensor | None,
    branches: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    padding: int = 1,
    align_corners: bool = False,
    x_first: bool = True,
    mode: str = "bilinear",
    size: tuple[int, int] | None = None,
) -> Tensor:
    r"""``conv2d(cat([x, up(b) for b in branches], 1), weight, bias, padding=padding)``, without upsampling or concatenating.

    up() is ``torch.nn.functional.interpolate`` to the size of ``x``. The convolution over ``x`` is PyTorch's own. A branch
    is multiplied with the kernel's taps at its own size, and one pass over the output adds the interpolated products:
    exact, because interpolation is linear, and for a fraction of the multiplications. The backward is of the same kind.
    Neither an upsampled map nor the concatenation ever exists; the backward keeps ``x``, the branches and the weight. (On a
    CPU a branch that is cheaper to upsample first, such as one of few channels and nearly the size of ``x``, is.)

    Args:
        x: ``[N, C, H, W]``, float32, float64, bfloat16 or float16, or None: only branches, upsampled to ``size``.
        branches: tensors ``[N, C_i, H_i, W_i]`` of the dtype of ``x`` and of any size.
        weight: ``[C_out, C + sum of C_i, K, K]`` with K 1 or 3.
        bias: ``[C_out]`` or None.
        padding: of the convolution, K // 2: 1 for K = 3 and 0 for K = 1.
        align_corners: as in ``torch.nn.functional.interpolate``; for mode ``"bilinear"``.
        x_first: whether ``x`` comes before the branches in the concatenation, or after them.
        mode: how branches are upsampled: ``"bilinear"`` or ``"nearest"``.
        size: (H, W) where ``x`` is None.

    Under autocast all tensors are cast as conv2d's are. Products, interpolation and their sum are taken in float32 (float64
    for float64).

    Returns:
        ``[N, C_out, H, W]``, in the dtype of ``x``, channels_last where the convolution over ``x`` gives that.

    Raises:
        TypeError: an argument is not a tensor, or has a type or dtype that does not fit.
        ValueError: a shape, a device, ``padding``, ``mode`` or ``size`` does not fit.

    Source:
        Zhao et al.: Pyramid Scene Parsing Network, CVPR 2017; Xiao et al.: Unified Perceptual Parsing for Scene
        Understanding, ECCV 2018.
    """
    check_call(x, branches, weight, bias, padding, align_corners, x_first, mode, size)
    branches = tuple(branches)
    device_type = weight.device.type
    output_size = size if x is None else x.shape[2:]
    assert output_size is not None  # check_call
    options = _Options(padding, align_corners, x_first, mode, (output_size[0], output_size[1]))
    if torch.is_autocast_enabled(device_type) and weight.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device_type)
        with torch.autocast(device_type, enabled=False):
            cast = [None if t is None else t.to(dtype) for t in (x, weight, bias, *branches)]
            return _call(options, *cast)  # type: ignore[arg-type]
    return _call(options, x, weight, bias, *branches)


def _call(options: _Options, x: Tensor | None, weight: Tensor, bias: Tensor | None, *branches: Tensor) -> Tensor:
    device_type = weight.device.type
    compiling = torch.compiler.is_compiling()
    if transforms_active():
        kernels = None
    else:
        kernels = _select.traced(device_type) if compiling else _select(device_type)
    if kernels is None:
        return _reference(options, x, weight, bias, *branches)
    tensors = (x, weight, bias, *branches)
    with_backward = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    if device_type == "cpu" and branches:
        dear = [
            not pays_before_upsampling(branch, weight, options.size, with_backward, options.mode) for branch in branches
        ]
        if all(dear):
            return _reference(options, x, weight, bias, *branches)
        if any(dear):
            options, x, weight, branches = _upsample(options, dear, x, weight, branches)
    if with_backward and not compiling:
        return _PyramidConv2d.apply(kernels, options, x, weight, bias, *branches)
    return _forward(kernels, options, x, weight, bias, branches)


def _upsample(
    options: _Options, dear: Sequence[bool], x: Tensor | None, weight: Tensor, branches: Sequence[Tensor]
) -> tuple[_Options, Tensor, Tensor, tuple[Tensor, ...]]:
    """The same call with those branches upsampled and concatenated with x that are dear at their own size."""
    of_x, of_branches = options.channels(x, branches)
    maps = [] if x is None else [x]
    first = [] if x is None else [weight[:, of_x]]
    for branch, of, upsampled in zip(branches, of_branches, dear, strict=True):
        if upsampled:
            maps.append(reference.upsample(branch, *options.size, options.align_corners, options.nearest))
            first.append(weight[:, of])
    kept = [(branch, of) for branch, of, upsampled in zip(branches, of_branches, dear, strict=True) if not upsampled]
    weight = torch.cat([*first, *(weight[:, of] for _, of in kept)], 1)
    return options._replace(x_first=True), torch.cat(maps, 1), weight, tuple(branch for branch, _ in kept)


def _reference(options: _Options, x: Tensor | None, weight: Tensor, bias: Tensor | None, *branches: Tensor) -> Tensor:
    return reference.pyramid_conv2d(x, branches, weight, bias, **options._asdict())


def _forward(
    kernels: Kernels,
    options: _Options,
    x: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    branches: Sequence[Tensor],
) -> Tensor:
    """The second form of sod_ops/reference/pyramid_conv2d.py, in operators that autograd knows."""
    of_x, of_branches = options.channels(x, branches)
    y = None
    if x is not None and x.shape[1]:
        y = functional.conv2d(x, weight[:, of_x], bias, padding=options.padding)
        bias = None
    in_cache, in_memory = _by_place(kernels, branches)
    if in_cache:
        maps, weights = [_walkable(branches[i]) for i in in_cache], [weight[:, of_branches[i]] for i in in_cache]
        before = None if y is None else dense(y)
        y = add_branches(before, bias, maps, weights, options.size, options.align_corners, options.nearest)
    elif y is None:
        # Without channels of x, which conv2d makes an output without channels of.
        y = weight.new_zeros((branches[0].shape[0], weight.shape[0], *options.size))
        if bias is not None:
            y = y + bias.view(1, -1, 1, 1)
    if not in_memory:
        return y
    products = [_product(branches[i], weight[:, of_branches[i]]) for i in in_memory]
    return kernels.forward(dense(y), products, options.align_corners, options.nearest)


def _by_place(kernels: Kernels, branches: Sequence[Tensor]) -> tuple[list[int], list[int]]:
    """Which branches are multiplied where their products are added up, and which have products in memory."""
    if kernels.forward is not torch.ops.sod_ops.pyramid_conv2d.default:
        return [], list(range(len(branches)))
    in_cache: list[int] = []
    in_memory: list[int] = []
    for i, branch in enumerate(branches):
        most = _CHANNELS_OF_SHORT_ROWS if branch.shape[3] < _SHORT_ROW else _CHANNELS_IN_CACHE
        (in_cache if branch.shape[1] <= most else in_memory).append(i)
    return in_cache, in_memory


def _walkable(branch: Tensor) -> Tensor:
    """``branch`` itself where its columns or its channels lie side by side."""
    return branch if branch.stride(3) == 1 or branch.stride(1) == 1 else branch.contiguous()


def _product(branch: Tensor, weight: Tensor) -> Tensor:
    """``branch`` times every tap of ``weight [C_out, C_i, K, K]``: ``[N, H_i, W_i, K * K, C_out]``."""
    pixels, channels = _pixels(branch), weight.shape[0]
    taps = weight.shape[2] * weight.shape[3]
    if taps > 1 and not branch.is_cuda and pixels.shape[0] <= _FEW_PIXELS:
        by_channel = _matrix_product(pixels.expand(channels, *pixels.shape), weight.flatten(2))
        product = by_channel.permute(1, 2, 0).contiguous()
    else:
        product = _matrix_product(pixels, _by_tap(weight).T)
    return product.view(branch.shape[0], branch.shape[2], branch.shape[3], taps, channels)


def _by_tap(weight: Tensor) -> Tensor:
    """``[C_out, C, K, K]`` as the matrix ``[K * K * C_out, C]``."""
    return weight.permute(2, 3, 0, 1).reshape(-1, weight.shape[1])


def _pixels(branch: Tensor) -> Tensor:
    """``[N, C, H, W]`` as the matrix ``[N * H * W, C]``: a view for a single sample, and for channels_last."""
    return branch.permute(0, 2, 3, 1).reshape(-1, branch.shape[1])


def _matrix_product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of the dtype that sums are taken in. What it returns is interpolated and added up, unrounded."""
    if a.dtype not in _TWO_BYTES:
        return a @ b
    if a.is_cuda and not torch.is_grad_enabled():
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


class _PyramidConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: Kernels, options: _Options, *tensors: Tensor | None) -> Tensor:
        x, weight, bias, *branches = tensors
        assert weight is not None
        ctx.kernels, ctx.options = kernels, options
        ctx.save_for_backward(*tensors)
        with below_autograd():
            return _forward(kernels, options, x, weight, bias, branches)  # type: ignore[arg-type]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, None, *reference_gradients(partial(_reference, ctx.options), tensors, grad_outputs[0])
        with below_autograd():
            return (
                None,
                None,
                *_backward(ctx.kernels, ctx.options, grad_outputs[0], *tensors, needed=ctx.needs_input_grad[2:]),
            )


def _backward(
    kernels: Kernels,
    options: _Options,
    grad_output: Tensor,
    x: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    *branches: Tensor,
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of x, weight, bias and every branch, None where it is not needed."""
    of_x, of_branches = options.channels(x, branches)
    need_x, need_weight, need_bias, *need_branches = needed
    grad_output = dense(grad_output)
    grad_x = grad_own = grad_bias = None
    if x is not None and x.shape[1]:
        grad_x, grad_own, grad_bias = torch.ops.aten.convolution_backward(
            grad_output,
            x,
            weight[:, of_x],
            [weight.shape[0]] if bias is not None else None,
            [1, 1],
            [options.padding] * 2,
            [1, 1],
            False,
            [0, 0],
            1,
            [need_x, need_weight, need_bias],
        )
    else:
        grad_x = None if x is None else torch.empty_like(x)
        grad_bias = grad_output.sum((0, 2, 3)) if need_bias else None
    # Not before the convolution's own needs are over: the weight of a head is larger than its maps.
    grad_weight = torch.empty_like(weight) if need_weight else None
    if grad_weight is not None and grad_own is not None:
        grad_weight[:, of_x] = grad_own
    del grad_own
    grad_branches: list[Tensor | None] = [None] * len(branches)
    if not branches or not (need_weight or any(need_branches)):
        return [grad_x if need_x else None, grad_weight, grad_bias, *grad_branches]
    in_cache, in_memory = _by_place(kernels, branches)
    if in_cache:
        maps, weights = [_walkable(branches[i]) for i in in_cache], [weight[:, of_branches[i]] for i in in_cache]
        found = gradients_of_branches(grad_output, maps, weights, options.align_corners, options.nearest)
        for i, grad_branch, grad_of_weight in zip(in_cache, *found, strict=True):
            grad_branches[i] = grad_branch if need_branches[i] else None
            if grad_weight is not None:
                grad_weight[:, of_branches[i]] = grad_of_weight
    if in_memory:
        grad_products = kernels.backward(
            grad_output,
            [branches[i].shape[2] for i in in_memory],
            [branches[i].shape[3] for i in in_memory],
            weight.shape[2],
            options.align_corners,
            options.nearest,
        )
        for i, grad_product in zip(in_memory, grad_products, strict=True):
            branch, of = branches[i], of_branches[i]
            grad_product = grad_product.flatten(0, 2)
            # float16 keeps float32: sums over the upsampled map may be beyond its range.
            if grad_output.is_cuda and grad_output.dtype == torch.bfloat16:
                grad_product = grad_product.to(torch.bfloat16)
            if need_branches[i]:
                by_tap = _by_tap(weight[:, of]).to(grad_product.dtype)
                pixels = grad_product.flatten(1) @ by_tap
                grad_branch = pixels.view(branch.shape[0], *branch.shape[2:], branch.shape[1]).permute(0, 3, 1, 2)
                grad_branches[i] = torch.empty_like(branch).copy_(grad_branch)
            if grad_weight is not None:
                grad_weight[:, of] = _weight_gradient(grad_product, _pixels(branch), weight.shape[2])
    return [grad_x if need_x else None, grad_weight, grad_bias, *grad_branches]


def _weight_gradient(grad_product: Tensor, pixels: Tensor, kernel: int) -> Tensor:
    """A branch's part of the weight's gradient from that of its products, ``[pixels, K * K, C_out]``."""
    channels = grad_product.shape[2]
    pixels = pixels.to(grad_product.dtype)
    if kernel > 1 and not pixels.is_cuda and pixels.shape[0] <= _FEW_PIXELS_OF_GRADIENT:
        as_it_lies = pixels.T.expand(channels, *pixels.T.shape) @ grad_product.permute(2, 0, 1).contiguous()
        return as_it_lies.unflatten(2, (kernel, kernel))
    by_tap = grad_product.flatten(1).T @ pixels
    return by_tap.view(kernel, kernel, channels, -1).permute(2, 3, 0, 1)


def _fake_forward(y: Tensor, products: list[Tensor], align_corners: bool, nearest: bool) -> Tensor:
    return torch.empty_like(y)


def _fake_backward(
    grad_output: Tensor,
    heights: Sequence[int],
    widths: Sequence[int],
    kernel_size: int,
    align_corners: bool,
    nearest: bool,
) -> list[Tensor]:
    samples, channels = grad_output.shape[:2]
    accumulator = torch.float64 if grad_output.dtype == torch.float64 else torch.float32
    return [
        grad_output.new_empty((samples, height, width, kernel_size * kernel_size, channels), dtype=accumulator)
        for height, width in zip(heights, widths, strict=True)
    ]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, products, ctx.align_corners, ctx.nearest = inputs
    ctx.shapes = [product.shape for product in products]
    ctx.accumulator = products[0].dtype if products else output.dtype


def _gradients(ctx: Any, backward: Any, grad_output: Tensor) -> tuple[Any, ...]:
    if torch.is_grad_enabled():
        # The operator is linear: its adjoint does not depend on where it is taken.
        products = [grad_output.new_zeros(s, dtype=ctx.accumulator).requires_grad_() for s in ctx.shapes]
        y = reference.add_products(torch.zeros_like(grad_output), products, ctx.align_corners, ctx.nearest)
        return grad_output, list(torch.autograd.grad(y, products, grad_output, create_graph=True)), None, None
    heights = [shape[1] for shape in ctx.shapes]
    widths = [shape[2] for shape in ctx.shapes]
    kernel_size = 3 if ctx.shapes and ctx.shapes[0][3] == 9 else 1
    products = backward(dense(grad_output), heights, widths, kernel_size, ctx.align_corners, ctx.nearest)
    return grad_output, list(products), None, None


_select = register("pyramid_conv2d", forward=_fake_forward, backward=_fake_backward, save=_save, gradients=_gradients)

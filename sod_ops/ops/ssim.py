"""The structural similarity: the public function, its checks and its autograd."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sod_ops.backends import Kernels
from sod_ops.ops import _checks
from sod_ops.ops._operators import below_autograd, reference_gradients, register, transforms_active
from sod_ops.ops._reductions import REDUCTION_INDEX
from sod_ops.ops._stored_gradient import scale_in_place, scaled, stores_gradient
from sod_ops.reference.sigmoid_focal_loss import REDUCTIONS
from sod_ops.reference.ssim import ssim as reference

_OP = "ssim"


def ssim(x: Tensor, y: Tensor, window_size: int = 11, sigma: float = 1.5, reduction: str = "mean") -> Tensor:
    r"""Structural similarity of images in [0, 1]: 1 where they are the same.

    .. math:: \frac{(2 \mu_x \mu_y + C_1)(2 \sigma_{xy} + C_2)}
        {(\mu_x^2 + \mu_y^2 + C_1)(\sigma_x^2 + \sigma_y^2 + C_2)}, \qquad C_1 = 0.01^2,\ C_2 = 0.03^2

    with the averages, variances and covariance over a Gaussian window around every pixel; beyond the image are zeros, and
    they count. A sample's similarity is the mean over its channels and pixels. It is what the ``pytorch_ssim`` in BASNet's
    and others' code computes: ``"mean"`` is its ``size_average=True``, ``"none"`` its ``size_average=False``. A loss is 1
    minus this. It is computed in float32, in float64 where a tensor is float64; the rows of the images pass by once, and no
    map of averages is kept.

    Args:
        x: ``[N, C, H, W]``, float32, float64, bfloat16 or float16, of any strides. Values outside [0, 1] are not looked for.
        y: the same shape, on the same device, of any of these dtypes.
        window_size: the window's height and width in pixels: odd. It may exceed the image.
        sigma: the standard deviation of the Gaussian in pixels, above 0. Its weights over the window add up to 1.
        reduction: over the samples: ``"mean"`` (NaN for no samples), ``"sum"`` or ``"none"``.

    Returns:
        A number, or ``[N]`` for ``"none"``, in the dtype that ``x`` and ``y`` promote to. Both get gradients; a double
        backward is computed by the plain PyTorch reference.

    Raises:
        TypeError: an argument is not of the types named above.
        ValueError: shapes or devices differ (nothing is broadcast), or ``window_size``, ``sigma`` or ``reduction`` is none
            of the above.

    Source:
        Wang, Bovik, Sheikh, Simoncelli: Image Quality Assessment: From Error Visibility to Structural Similarity, 2004.
    """
    try:
        if type(window_size) is not int or type(sigma) is not float:
            check_gaussian(_OP, window_size, sigma)
        return _call(x, y, window_size, float(sigma), REDUCTION_INDEX[reduction])
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        refusal = error
    # Only a call that failed pays for finding out which argument is at fault.
    _check(x, y, window_size, sigma, reduction)
    raise refusal


def _call(x: Tensor, y: Tensor, window_size: int, sigma: float, reduction: int) -> Tensor:
    device_type = "cpu" if x.is_cpu else x.device.type
    compiling = torch.compiler.is_compiling()
    if transforms_active():
        kernels = None
    else:
        kernels = _select.traced(device_type) if compiling else _select(device_type)
    if kernels is None or compiling or not kernels.check_arguments:
        _check(x, y, window_size, sigma, REDUCTIONS[reduction])
    if kernels is None:
        return reference(x, y, window_size, sigma, REDUCTIONS[reduction])
    differentiable = torch.is_grad_enabled()
    first, second = differentiable and x.requires_grad, differentiable and y.requires_grad
    inputs = (x, y, window_size, sigma, reduction, first, second)
    if compiling:
        return kernels.forward(*inputs)[0]
    if first or second:
        return _Ssim.apply(kernels, *inputs)
    with below_autograd():
        return kernels.forward(*inputs)[0]


class _Ssim(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: Kernels, *inputs: Any) -> Tensor:
        x, y, *ctx.options = inputs
        *options, reduction, first, second = ctx.options
        stored = _stores_gradients(x, y, reduction)
        with below_autograd():
            value, *gradients = kernels.forward(x, y, *options, reduction, first and stored, second and stored)
        ctx.kernels = kernels
        # Outside of what autograd saves: the first backward takes them, to scale them in place and give them away; a later
        # one, which retain_graph=True allows, computes them afresh.
        ctx.gradients = gradients if stored else None
        ctx.save_for_backward(x, y)
        ctx.set_materialize_grads(False)
        return value

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> tuple[Any, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if grad_output is None or torch.is_grad_enabled():
            return None, *_gradients(ctx, ctx.kernels.backward, grad_output)
        if gradients is None:
            with below_autograd():
                return None, *_gradients(ctx, ctx.kernels.backward, grad_output)
        wanted = _wanted(gradients, ctx.options)
        scale_in_place(ctx.kernels, [gradient for gradient in wanted if gradient is not None], grad_output)
        return None, *wanted, *(None,) * 5


def _save(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, Tensor, Tensor]) -> None:
    x, y, *ctx.options = inputs
    ctx.save_for_backward(x, y, *outputs[1:])
    ctx.set_materialize_grads(False)


def _gradients(
    ctx: Any, backward: Callable[..., tuple[Tensor, Tensor]], grad_output: Tensor | None, *_: Tensor | None
) -> tuple[Any, ...]:
    if grad_output is None:
        return (None,) * 7
    x, y, *kept = ctx.saved_tensors
    window_size, sigma, reduction, first, second = ctx.options
    if torch.is_grad_enabled():
        function = partial(reference, window_size=window_size, sigma=sigma, reduction=REDUCTIONS[reduction])
        return *reference_gradients(function, (x, y), grad_output), *(None,) * 5
    gradients: Sequence[Tensor]
    if kept and _stores_gradients(x, y, reduction):
        gradients = [scaled(gradient, grad_output) for gradient in kept]
    else:
        gradients = backward(grad_output, x, y, window_size, sigma, reduction, first, second)
    return *_wanted(gradients, ctx.options), *(None,) * 5


def _wanted(gradients: Sequence[Tensor], options: list[Any]) -> tuple[Tensor | None, ...]:
    """The gradients that the forward was told to expect; the kernels give empty ones in place of the others."""
    return tuple(gradient if want else None for gradient, want in zip(gradients, options[-2:], strict=True))


def _stores_gradients(x: Tensor, y: Tensor, reduction: int) -> bool:
    return stores_gradient(x, reduction) and stores_gradient(y, reduction)


def _fake_forward(
    x: Tensor, y: Tensor, window_size: int, sigma: float, reduction: int, first: bool, second: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``first`` and ``second`` say which gradients will be wanted.

    Returns the similarity and, of a mean or a sum, the gradients of x and y, otherwise empty tensors.
    """
    # Dispatch brings a call here where any tensor is on the meta device.
    _checks.check_same_device(_OP, "x", x.device, [("y", y)])
    dtype = torch.promote_types(x.dtype, y.dtype)
    value = x.new_empty(() if reduction else x.shape[:1], dtype=dtype)
    return value, _empty_gradient(x, first and reduction != 0), _empty_gradient(y, second and reduction != 0)


def _fake_backward(
    grad_output: Tensor,
    x: Tensor,
    y: Tensor,
    window_size: int,
    sigma: float,
    reduction: int,
    first: bool,
    second: bool,
) -> tuple[Tensor, Tensor]:
    """Returns the gradients of x and y; one that is not wanted is empty."""
    return _empty_gradient(x, first), _empty_gradient(y, second)


def _empty_gradient(tensor: Tensor, wanted: bool) -> Tensor:
    return torch.empty_like(tensor) if wanted else tensor.new_empty((0,))


_select = register(_OP, forward=_fake_forward, backward=_fake_backward, save=_save, gradients=_gradients)


def check_gaussian(op: str, window_size: object, sigma: object) -> None:
    """ValueError or TypeError for a window that there isn't."""
    _checks.check_window(op, "window_size", window_size)
    _checks.check_positive(op, "sigma", sigma)


def check_ssim_options(op: str, window_size: object, sigma: object, reduction: object) -> None:
    """ValueError or TypeError for what neither the function nor its module takes."""
    check_gaussian(op, window_size, sigma)
    _checks.check_choice(op, "reduction", reduction, REDUCTIONS)


def _check(x: Tensor, y: Tensor, window_size: object, sigma: object, reduction: object) -> None:
    for argument, tensor in (("x", x), ("y", y)):
        _checks.check_tensor(_OP, argument, tensor)
        _checks.check_floating(_OP, argument, tensor)
    _checks.check_same_device(_OP, "x", x.device, [("y", y)])
    _checks.check_loss_shapes(_OP, "x", x, "y", y)
    if x.dim() != 4:
        _checks.bad_value(_OP, "x", "of shape [N, C, H, W]", _checks.shape_of(x))
    check_ssim_options(_OP, window_size, sigma, reduction)

"""CutMix: the public function, its checks, what it does with targets, and the autograd of the pasting."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sod_ops.backends import Kernels
from sod_ops.ops import _checks, _draws
from sod_ops.ops._images import check_images, in_place, result_like
from sod_ops.ops._operators import below_autograd, register, transforms_active
from sod_ops.reference.cutmix import cutmix as reference
from sod_ops.reference.cutmix import cutmix_backward as reference_backward

_OP = "cutmix"
_INDICES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def cutmix(
    images: Tensor,
    targets: Tensor | Sequence[Tensor],
    alpha: float = 1.0,
    per_sample: bool = True,
    generator: torch.Generator | None = None,
    num_classes: int | None = None,
) -> tuple[Tensor, Any]:
    r"""CutMix: overwrites a box of each sample with the same box of another sample, masks included, and mixes labels.

    .. math::

        \tilde x_b = M_b \odot x_{\pi(b)} + (1 - M_b) \odot x_b, \qquad
        \tilde y_b = \lambda_b y_b + (1 - \lambda_b) y_{\pi(b)}

    The wanted :math:`\lambda` is drawn from Beta(alpha, alpha); the box has the image's proportions, its middle is uniform
    in the image, and what sticks out is clipped. Labels are mixed with the :math:`\lambda` that is left of the sample, 1 -
    box area / (H W). Partners :math:`\pi` are a random cycle through the batch: everyone's partner is another sample. A
    batch of one is left as it is.

    Everything random is drawn on the device of ``images`` from ``generator``, whatever the backend: one state of the
    generator gives one result. Nothing is read back, and the call can be captured in a CUDA graph, which draws anew at each
    replay (register a generator of your own with ``torch.cuda.CUDAGraph.register_generator_state``). torch.compile traces
    the call whole with PyTorch's default generator. Each output is written once; inputs are not modified.

    Args:
        images: ``[B, C, H, W]``, uint8, float32, float64, bfloat16 or float16; C, H and W at least 1. Contiguous and
            channels_last tensors, and slices of a contiguous one's batch or channels, are read in place.
        targets: one tensor, or a list or tuple of several, each of them

            * class indices: ``[B]``, an integer dtype;
            * soft labels: ``[B, K]``, a floating dtype;
            * masks, cut with the images: ``[B, H, W]`` or ``[B, C', H, W]`` with the images' H and W, floating, bool, uint8
              or a signed integer.
        alpha: of the Beta distribution, finite and above 0. 1 is the uniform distribution, below 1 boxes are mostly tiny or
            almost the whole image.
        per_sample: a box and a :math:`\lambda` for each sample; otherwise all samples share one.
        generator: on the device of ``images``; None takes PyTorch's default one.
        num_classes: K: class indices become soft labels.

    Returns:
        The images, in their dtype and memory format, and the targets in the structure that they came in: masks likewise,
        soft labels in their dtype. Class indices become soft labels ``[B, num_classes]`` in float32 or, without
        ``num_classes``, a tuple ``(labels, labels of the partners, lambda)`` with lambda ``[B]`` in float32, for a loss
        ``lambda * loss(labels) + (1 - lambda) * loss(labels of the partners)``. Floating images, masks and soft labels are
        differentiable.

    Raises:
        TypeError: an argument is not of the types named above.
        ValueError: a shape does not fit, alpha is out of range, tensors or the generator are on different devices, a class
            index is not below ``num_classes`` (on a GPU that is a device-side assertion).

    Example:
        In a DataLoader, with the options kept in :class:`sod_ops.CutMix`::

            mix = sod_ops.CutMix(num_classes=10)
            loader = DataLoader(dataset, 32, collate_fn=lambda samples: mix(*default_collate(samples)))

    Source:
        Yun et al.: CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features, ICCV 2019.
    """
    several = isinstance(targets, (list, tuple))
    given: Sequence[Tensor] = targets if several else (targets,)  # type: ignore[assignment]
    check_cutmix_options(_OP, alpha, per_sample, num_classes)
    _check(images, given, generator, several)
    partner, boxes, kept = _draw(images, alpha, per_sample, generator)
    mixed = [_mix(images, target, partner, boxes, kept, num_classes) for target in given]
    pasted = paste(images, partner, boxes)
    return pasted, (type(targets)(mixed) if several else mixed[0])  # type: ignore[call-arg]


def _draw(
    images: Tensor, alpha: float, per_sample: bool, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Partners ``[B]``, boxes ``[B, 4]`` and what is left of each sample ``[B]``, in float64."""
    samples, _, height, width = images.shape
    numbers = _draws.uniform((5, samples), images.device, generator)
    of_boxes = numbers[1:] if per_sample else numbers[1:, :1].expand(4, samples)
    wanted = _draws.symmetric_beta(alpha, of_boxes[0], of_boxes[1])
    boxes = _draws.cut_boxes(wanted, of_boxes[2], of_boxes[3], height, width)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return _draws.partners(numbers[0]), boxes, 1 - area.double() / (height * width)


def _mix(
    images: Tensor, target: Tensor, partner: Tensor, boxes: Tensor, kept: Tensor, num_classes: int | None
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    if target.dim() == 4:
        return paste(target, partner, boxes)
    if target.dim() == 3:
        return paste(target.unsqueeze(1), partner, boxes).squeeze(1)
    if target.dim() == 1:
        if num_classes is None:
            return target, target[partner], kept.float()
        target = _one_hot(target, num_classes)
    kept = kept[:, None].to(torch.promote_types(target.dtype, torch.float32))
    return (kept * target + (1 - kept) * target[partner]).to(target.dtype)


def _one_hot(labels: Tensor, num_classes: int) -> Tensor:
    try:
        return F.one_hot(labels.long(), num_classes).float()
    except RuntimeError as error:
        raise ValueError(f"{_OP}: targets must be class indices from 0 to {num_classes - 1}: {error}") from error


def paste(images: Tensor, partner: Tensor, boxes: Tensor) -> Tensor:
    """The images ``[B, C, H, W]`` with each one's box from its partner, on the backend that is chosen for them."""
    device_type = "cpu" if images.is_cpu else images.device.type
    compiling = torch.compiler.is_compiling()
    if transforms_active():
        kernels = None
    else:
        kernels = _select.traced(device_type) if compiling else _select(device_type)
    if kernels is None:
        return reference(images, partner, boxes)
    images = in_place(images)
    if compiling:
        return kernels.forward(images, partner, boxes)
    if torch.is_grad_enabled() and images.requires_grad:
        return _CutMix.apply(kernels, images, partner, boxes)
    with below_autograd():
        return kernels.forward(images, partner, boxes)


class _CutMix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: Kernels, images: Tensor, partner: Tensor, boxes: Tensor) -> Tensor:
        ctx.kernels = kernels
        _save(ctx, (images, partner, boxes), None)
        with below_autograd():
            return kernels.forward(images, partner, boxes)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> tuple[Any, ...]:
        return None, *_gradients(ctx, ctx.kernels.backward, grad_output)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[1:])
    ctx.set_materialize_grads(False)


def _gradients(
    ctx: Any, backward: Callable[..., Tensor], grad_output: Tensor | None
) -> tuple[Tensor | None, None, None]:
    if grad_output is None:
        return None, None, None
    partner, boxes = ctx.saved_tensors
    receiver = _draws.receivers(partner)
    # Where it shall be differentiated again: the formula, which autograd sees.
    if torch.is_grad_enabled():
        return reference_backward(grad_output, receiver, boxes), None, None
    return backward(in_place(grad_output), receiver, boxes), None, None


def _fake_forward(images: Tensor, partner: Tensor, boxes: Tensor) -> Tensor:
    _checks.check_same_device(_OP, "images", images.device, [("partner", partner), ("boxes", boxes)])
    return result_like(images)


def _fake_backward(grad_output: Tensor, receiver: Tensor, boxes: Tensor) -> Tensor:
    return _fake_forward(grad_output, receiver, boxes)


_select = register(_OP, forward=_fake_forward, backward=_fake_backward, save=_save, gradients=_gradients)


def check_cutmix_options(op: str, alpha: object, per_sample: object, num_classes: object) -> None:
    """ValueError or TypeError for what neither the function nor its class takes."""
    _checks.check_positive(op, "alpha", alpha)
    _checks.check_bool(op, "per_sample", per_sample)
    if num_classes is not None:
        _checks.check_count(op, "num_classes", num_classes)


def _check(images: Any, targets: Sequence[Any], generator: Any, several: bool) -> None:
    check_images(_OP, images)
    samples, _, height, width = images.shape
    for i, target in enumerate(targets):
        argument = f"targets[{i}]" if several else "targets"
        _checks.check_tensor(_OP, argument, target)
        _checks.check_same_device(_OP, "images", images.device, [(argument, target)])
        shape = _checks.shape_of(target)
        if not 1 <= target.dim() <= 4:
            _checks.bad_value(_OP, argument, "class indices [B], soft labels [B, K] or masks [B, (C,) H, W]", shape)
        if target.shape[0] != samples:
            _checks.bad_value(_OP, argument, f"of as many samples as images, {samples}", shape)
        if target.dim() == 1 and target.dtype not in _INDICES:
            _checks.bad_type(_OP, argument, "of an integer dtype where it is [B], class indices", target.dtype)
        if target.dim() == 2 and target.dtype not in _checks.FLOATING:
            _checks.bad_type(_OP, argument, "floating where it is [B, K], soft labels", target.dtype)
        if target.dim() > 2:
            if target.shape[-2:] != images.shape[2:] or 0 in target.shape[1:]:
                expected = f"masks [{samples}, {height}, {width}] or [{samples}, C, {height}, {width}] as images are"
                _checks.bad_value(_OP, argument, expected, shape)
            if target.dtype not in _checks.READABLE:
                _checks.bad_type(_OP, argument, "floating, bool, uint8 or a signed integer", target.dtype)
    _draws.check_generator(_OP, generator, images.device)

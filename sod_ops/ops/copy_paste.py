"""Copy-Paste: the public function, its checks, its two forms, and the autograd of the pasting."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sod_ops.backends import Kernels
from sod_ops.ops import _checks, _draws
from sod_ops.ops._images import check_images, in_place, result_like
from sod_ops.ops._maps import in_supported_layout, lies_in_planes
from sod_ops.ops._operators import below_autograd, register, transforms_active
from sod_ops.reference.copy_paste import copy_paste as reference
from sod_ops.reference.copy_paste import copy_paste_backward as reference_backward

_OP = "copy_paste"
_BOXES = (*_checks.FLOATING, torch.int16, torch.int32, torch.int64)
_LABELS = (*_checks.FLOATING, torch.int8, torch.int16, torch.int32, torch.int64)
_MOST_BLUR = 1000  # pixels; the filter reaches four times as far
NO_LABEL = -1  # of a slot without an instance


def copy_paste(
    images: Tensor,
    masks: Tensor | Sequence[Tensor],
    boxes: Tensor | Sequence[Tensor] | None = None,
    labels: Tensor | Sequence[Tensor] | None = None,
    *,
    probability: float = 0.5,
    blend_sigma: float = 0,
    min_visible: float = 0.3,
    generator: torch.Generator | None = None,
) -> tuple[Any, ...]:
    """Copy-Paste: pastes instances of another sample of the batch, trims what they cover, drops what is hidden.

    Everyone's partner is another sample: a random cycle through the batch. Each of the partner's instances is pasted with
    ``probability``. What is pasted lies on top: it is removed from the masks beneath, boxes are those of what is left, and
    an instance of which less than ``min_visible`` is left, or nothing, is dropped. A batch of one is left as it is.

    Everything random is drawn on the device of ``images``, whatever the backend: one state of the generator gives one
    result. The padded form reads nothing back; the list form synchronises once on a GPU, for the lengths of its lists.

    Args:
        images: ``[B, C, H, W]``, uint8, float32, float64, bfloat16 or float16; C, H and W at least 1.
        masks: the instances, bool: ``[B, M, H, W]``, where an empty mask is an unused slot, or a list of B tensors
            ``[M_i, H, W]``.
        boxes: ``[B, M, 4]`` or a list of ``[M_i, 4]``, floating or a signed integer. Only their dtype is used.
        labels: ``[B, M]`` or a list of ``[M_i]``, floating or a signed integer.
        probability: of each instance to be pasted, in [0, 1].
        blend_sigma: above 0, the image's edges of what is pasted are blended by a Gaussian filter of this standard
            deviation in pixels, at most 1000, which ends at four of them. Masks stay hard.
        min_visible: the least part of its former area that an instance must keep, in [0, 1].
        generator: on the device of ``images``; None takes PyTorch's default one.

    Returns:
        What was given, in its order: images, masks and, where they were given, boxes and labels. Padded: ``[B, 2M, ...]``,
        first a sample's own slots and then its partner's; an empty slot has an empty mask, the box 0 and the label -1.
        Lists: what is left of a sample's own, then what was pasted. Boxes are x1, y1, x2, y2 with the last pixel included,
        as torchvision's ``masks_to_boxes`` gives them. Floating images are differentiable.

    Raises:
        TypeError: an argument is not of the types named above.
        ValueError: shapes or the lists' lengths do not fit, a number is out of range, devices differ.

    Source:
        Ghiasi et al.: Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation, CVPR 2021.
    """
    check_copy_paste_options(_OP, probability, blend_sigma, min_visible)
    _check(images, masks, boxes, labels, generator)
    lists: tuple[Any, Any, Any] = (masks, boxes, labels)
    options = (probability, blend_sigma, min_visible, generator)
    if isinstance(masks, Tensor):
        return _copy_paste(images, lists, *options)[0]
    given = [value for value in lists if value is not None]
    if not masks:  # nor samples
        return images.clone(), *(type(value)() for value in given)
    m, b, k = (None if value is None else pad_sequence(list(value), batch_first=True) for value in lists)
    (pasted, *results), visible = _copy_paste(images, (m, b, k), *options)
    counts = visible.sum(1).tolist()
    order = (~visible.flatten()).int().argsort(stable=True)[: sum(counts)]
    kept = [value.flatten(0, 1)[order].split(counts) for value in results]
    return pasted, *(type(value)(found) for value, found in zip(given, kept, strict=True))


def _copy_paste(
    images: Tensor,
    instances: tuple[Any, Tensor | None, Tensor | None],
    probability: float,
    blend_sigma: float,
    min_visible: float,
    generator: torch.Generator | None,
) -> tuple[tuple[Tensor, ...], Tensor]:
    """The padded form, of masks, boxes and labels; and which slots hold an instance."""
    masks, boxes, labels = instances
    partner, chosen = _draw(masks, probability, generator)
    pasted, together, found, visible, _ = paste(images, masks, partner, chosen, blend_sigma, min_visible)
    results = [pasted, together]
    if boxes is not None:
        results.append(found.to(boxes.dtype))
    if labels is not None:
        results.append(torch.cat([labels, labels[partner]], 1).masked_fill(~visible, NO_LABEL))
    return tuple(results), visible


def _draw(masks: Tensor, probability: float, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Partners ``[B]``, and which of the partner's instances each sample gets, ``[B, M]``."""
    samples, slots = masks.shape[:2]
    numbers = _draws.uniform((samples, 1 + slots), masks.device, generator)
    # On itself nothing is pasted: a sample would lose its own instances to their copies.
    return _draws.partners(numbers[:, 0]), numbers[:, 1:] < (probability if samples > 1 else 0)


def paste(
    images: Tensor, masks: Tensor, partner: Tensor, chosen: Tensor, blend_sigma: float, min_visible: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What the reference says, on the backend that is chosen for the images."""
    device_type = "cpu" if images.is_cpu else images.device.type
    compiling = torch.compiler.is_compiling()
    if transforms_active():
        kernels = None
    else:
        kernels = _select.traced(device_type) if compiling else _select(device_type)
    if kernels is None:
        return reference(images, masks, partner, chosen, blend_sigma, min_visible)
    arguments = (in_place(images), _in_planes(masks), partner, chosen, float(blend_sigma), float(min_visible))
    if compiling:
        return kernels.forward(*arguments)
    if torch.is_grad_enabled() and images.requires_grad:
        return _CopyPaste.apply(kernels, *arguments)
    with below_autograd():
        return kernels.forward(*arguments)


def _in_planes(masks: Tensor) -> Tensor:
    """``masks`` where the kernels read them as they are: each one's pixels are a run of memory."""
    masks = in_supported_layout(masks)
    return masks if lies_in_planes(masks) else masks.contiguous()


class _CopyPaste(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: Kernels, *inputs: Any) -> tuple[Tensor, ...]:
        ctx.kernels = kernels
        with below_autograd():
            outputs: tuple[Tensor, ...] = kernels.forward(*inputs)
        _save(ctx, inputs, outputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Any, ...]:
        return None, *_gradients(ctx, ctx.kernels.backward, *grad_outputs)


def _save(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
    _, _, partner, _, ctx.blend_sigma, _ = inputs
    ctx.save_for_backward(partner, outputs[4])
    ctx.mark_non_differentiable(*outputs[1:])
    ctx.set_materialize_grads(False)


def _gradients(
    ctx: Any, backward: Callable[..., Tensor], grad_output: Tensor | None, *_: Tensor | None
) -> tuple[Tensor | None, None, None, None, None, None]:
    gradient = None
    if grad_output is not None:
        partner, pasted = ctx.saved_tensors
        receiver = _draws.receivers(partner)
        # Where it shall be differentiated again: the formula, which autograd sees.
        if torch.is_grad_enabled():
            gradient = reference_backward(grad_output, pasted, receiver, ctx.blend_sigma)
        else:
            gradient = backward(in_place(grad_output), pasted, receiver, ctx.blend_sigma)
    return gradient, None, None, None, None, None


def _fake_forward(
    images: Tensor, masks: Tensor, partner: Tensor, chosen: Tensor, blend_sigma: float, min_visible: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    others = [("masks", masks), ("partner", partner), ("chosen", chosen)]
    _checks.check_same_device(_OP, "images", images.device, others)
    samples, slots, height, width = masks.shape
    return (
        result_like(images),
        masks.new_empty((samples, 2 * slots, height, width)),
        masks.new_empty((samples, 2 * slots, 4), dtype=torch.int64),
        masks.new_empty((samples, 2 * slots)),
        masks.new_empty((samples, height, width)),
    )


def _fake_backward(grad_output: Tensor, pasted: Tensor, receiver: Tensor, blend_sigma: float) -> Tensor:
    others = [("pasted", pasted), ("receiver", receiver)]
    _checks.check_same_device(_OP, "grad_output", grad_output.device, others)
    return result_like(grad_output)


_select = register(_OP, forward=_fake_forward, backward=_fake_backward, save=_save, gradients=_gradients)


def check_copy_paste_options(op: str, probability: object, blend_sigma: object, min_visible: object) -> None:
    """ValueError or TypeError for what neither the function nor its class takes."""
    for argument, value in (("probability", probability), ("min_visible", min_visible)):
        if not 0 <= _checks.check_number(op, argument, value) <= 1:
            _checks.bad_value(op, argument, "in [0, 1]", value)
    _checks.check_not_negative(op, "blend_sigma", blend_sigma)
    if float(blend_sigma) > _MOST_BLUR:  # type: ignore[arg-type]
        _checks.bad_value(op, "blend_sigma", f"at most {_MOST_BLUR} pixels", blend_sigma)


def _check(images: Any, masks: Any, boxes: Any, labels: Any, generator: Any) -> None:
    check_images(_OP, images)
    samples, _, height, width = images.shape
    listed = isinstance(masks, (list, tuple))
    counts: list[int] = []
    for argument, value, dtypes, names, tail in (
        ("masks", masks, (torch.bool,), "bool", (height, width)),
        ("boxes", boxes, _BOXES, "floating or a signed integer", (4,)),
        ("labels", labels, _LABELS, "floating or a signed integer", ()),
    ):
        if value is None and argument != "masks":
            continue
        if listed != isinstance(value, (list, tuple)):
            expected = "a list of tensors, as masks are" if listed else "a Tensor, as masks are"
            _checks.bad_type(_OP, argument, expected if argument != "masks" else "a Tensor", type(value).__name__)
        if listed and len(value) != samples:
            _checks.bad_value(_OP, argument, f"a list of as many tensors as images, {samples}", len(value))
        for i, tensor in enumerate(value if listed else (value,)):
            name = f"{argument}[{i}]" if listed else argument
            _checks.check_tensor(_OP, name, tensor)
            if tensor.dtype not in dtypes:
                _checks.bad_type(_OP, name, names, tensor.dtype)
            _checks.check_same_device(_OP, "images", images.device, [(name, tensor)])
            if argument == "masks":
                counts.append(tensor.shape[-3] if tensor.dim() > 2 else -1)
            lead = [counts[i]] if listed else [samples, counts[0]]
            if list(tensor.shape) != [*lead, *tail]:
                expected = str([*(["M"] if listed else [samples, "M"]), *tail]).replace("'", "")
                if argument != "masks":
                    expected = str([*lead, *tail]) + " as masks are"
                _checks.bad_value(_OP, name, f"of shape {expected}", _checks.shape_of(tensor))
            if i and tensor.dtype != value[0].dtype:
                _checks.bad_type(_OP, name, f"of one dtype with {argument}[0], {value[0].dtype}", tensor.dtype)
    _draws.check_generator(_OP, generator, images.device)

"""The structure loss: the public function and its checks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sod_ops.ops import _checks
from sod_ops.ops._heads import HeadsLoss, empty_results
from sod_ops.reference.sigmoid_focal_loss import REDUCTIONS
from sod_ops.reference.structure_loss import structure_loss as reference

_OP = "structure_loss"


def structure_loss(
    logits: Tensor | Sequence[Tensor],
    mask: Tensor,
    kernel_size: int = 31,
    *,
    as_published: bool = False,
    weights: Sequence[float] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross entropy and IoU in which pixels near the mask's edges weigh more, of one or several heads.

    .. math:: w = 1 + 5\, |A_k(y) - y|, \qquad
        \frac{\sum w c}{\sum w} + 1 - \frac{\sum w p y + 1}{\sum w (p + y) - \sum w p y + 1}

    with the probabilities :math:`p = \mathrm{sigmoid}(z)` of a sample's logits :math:`z`, their cross entropy :math:`c`
    with the mask :math:`y`, and the average :math:`A_k` of :func:`sod_ops.box_filter`; sums go over the sample's pixels.
    The weights are computed once for all heads. It is computed in float32 (in float64 where a tensor is float64) without
    overflow at any finite logit.

    Args:
        logits: ``[B, 1, H, W]``, or several heads of this shape as a list or tuple; float32, float64, bfloat16 or float16.
            Slices such as ``out[:, :1]`` are read in place.
        mask: of the same shape, 0 outside and 1 inside, or between: floating, bool, uint8, int8, int16, int32 or int64.
            Values outside [0, 1] are not looked for.
        kernel_size: k, the window's height and width in pixels: odd. It may exceed the image.
        as_published: as F3Net's, PraNet's and many others' code has it. There ``reduce='none'`` makes the cross entropy the
            mean over all pixels of the batch before the weights are applied, which then do nothing to it.
        weights: of the heads, each 1 where there are none. The loss is the weighted sum of the heads' losses.
        reduction: over the samples: ``"mean"`` (NaN for no samples), ``"sum"`` or ``"none"``.

    Returns:
        A number, or ``[B]`` for ``"none"``, in the dtype that ``logits`` and a floating ``mask`` promote to, otherwise in
        that of ``logits``. Every head gets a gradient. That of ``mask`` is computed by the plain PyTorch reference, and so
        is a double backward.

    Raises:
        TypeError: an argument is not of the types named above.
        ValueError: shapes or devices differ (nothing is broadcast), a head has not the size of the mask, or
            ``kernel_size``, ``weights`` or ``reduction`` is none of the above.

    Source:
        Wei, Wang, Huang: F3Net: Fusion, Feedback and Focus for Salient Object Detection, AAAI 2020.
    """
    return _loss(
        _OP,
        "logits",
        logits,
        mask,
        lambda: (kernel_size, as_published),
        weights,
        reduction,
        lambda: check_structure_options(_OP, kernel_size, as_published, reduction),
        exact=type(kernel_size) is int and type(as_published) is bool,
    )


def _fake_forward(
    logits: Sequence[Tensor],
    mask: Tensor,
    kernel_size: int,
    as_published: bool,
    weights: Sequence[float],
    reduction: int,
    with_gradient: bool,
) -> tuple[Tensor, list[Tensor]]:
    """``with_gradient`` asks for the gradients by the heads where the loss is a mean or a sum.

    Returns the loss and these gradients, or none.
    """
    return empty_results(_OP, logits, mask, reduction, with_gradient)


def _fake_backward(
    grad_output: Tensor,
    logits: Sequence[Tensor],
    mask: Tensor,
    kernel_size: int,
    as_published: bool,
    weights: Sequence[float],
    reduction: int,
) -> list[Tensor]:
    """Returns the gradients of the heads."""
    return [torch.empty_like(head) for head in logits]


_loss = HeadsLoss(_OP, reference=reference, forward=_fake_forward, backward=_fake_backward, native=("cpu", "cuda"))


def check_structure_options(op: str, kernel_size: object, as_published: object, reduction: object) -> None:
    """ValueError or TypeError for what neither the function nor its module takes."""
    _checks.check_window(op, "kernel_size", kernel_size)
    _checks.check_bool(op, "as_published", as_published)
    _checks.check_choice(op, "reduction", reduction, REDUCTIONS)

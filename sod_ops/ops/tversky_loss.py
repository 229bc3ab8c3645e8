"""The losses of overlap on logits, IoU, Dice and Tversky: the public functions and their checks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sod_ops.ops import _checks
from sod_ops.ops._heads import HeadsLoss, empty_results
from sod_ops.reference.sigmoid_focal_loss import REDUCTIONS
from sod_ops.reference.tversky_loss import tversky_loss as reference


def iou_loss(
    logits: Tensor | Sequence[Tensor],
    mask: Tensor,
    *,
    smooth: float = 1.0,
    weights: Sequence[float] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""1 minus the IoU of predicted probabilities and a mask, of one or several heads.

    .. math:: 1 - \frac{\sum p y + s}{\sum (p + y - p y) + s}, \qquad p = \mathrm{sigmoid}(z)

    with sums over a sample's pixels. It is computed in float32 (in float64 where a tensor is float64).

    Args:
        logits: ``[B, 1, H, W]``, or several heads of this shape as a list or tuple; float32, float64, bfloat16 or float16.
            Slices such as ``out[:, :1]`` are read in place.
        mask: of the same shape, 0 outside and 1 inside, or between: floating, bool, uint8, int8, int16, int32 or int64.
            Values outside [0, 1] are not looked for.
        smooth: s, added above and below, 0 or more.
        weights: of the heads, each 1 where there are none. The loss is the weighted sum of the heads' losses.
        reduction: over the samples: ``"mean"`` (NaN for no samples), ``"sum"`` or ``"none"``.

    Returns:
        A number, or ``[B]`` for ``"none"``, in the dtype that ``logits`` and a floating ``mask`` promote to, otherwise in
        that of ``logits``. Every head gets a gradient. That of ``mask`` is computed by the plain PyTorch reference, and so
        is a double backward.

    Raises:
        TypeError: an argument is not of the types named above.
        ValueError: shapes or devices differ (nothing is broadcast), a head has not the size of the mask, or ``smooth``,
            ``weights`` or ``reduction`` is none of the above.

    Source:
        Qin et al.: BASNet: Boundary-Aware Salient Object Detection, CVPR 2019, whose smoothing is 0.
    """
    return _call("iou_loss", logits, mask, 1.0, 1.0, smooth, weights, reduction)


def dice_loss(
    logits: Tensor | Sequence[Tensor],
    mask: Tensor,
    *,
    smooth: float = 1.0,
    weights: Sequence[float] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""1 minus the Dice coefficient of predicted probabilities and a mask, of one or several heads.

    .. math:: 1 - \frac{2 \sum p y + s}{\sum (p + y) + s}, \qquad p = \mathrm{sigmoid}(z)

    with sums over a sample's pixels. It is computed in float32 (in float64 where a tensor is float64).

    Args:
        logits: ``[B, 1, H, W]``, or several heads of this shape as a list or tuple; float32, float64, bfloat16 or float16.
            Slices such as ``out[:, :1]`` are read in place.
        mask: of the same shape, 0 outside and 1 inside, or between: floating, bool, uint8, int8, int16, int32 or int64.
            Values outside [0, 1] are not looked for.
        smooth: s, added above and below, 0 or more.
        weights: of the heads, each 1 where there are none. The loss is the weighted sum of the heads' losses.
        reduction: over the samples: ``"mean"`` (NaN for no samples), ``"sum"`` or ``"none"``.

    Returns:
        As :func:`sod_ops.iou_loss`.

    Raises:
        TypeError: an argument is not of the types named above.
        ValueError: shapes or devices differ (nothing is broadcast), a head has not the size of the mask, or ``smooth``,
            ``weights`` or ``reduction`` is none of the above.

    Source:
        Milletari, Navab, Ahmadi: V-Net, 3DV 2016, without the squares in its denominator.
    """
    return _call("dice_loss", logits, mask, 0.5, 0.5, smooth, weights, reduction)


def tversky_loss(
    logits: Tensor | Sequence[Tensor],
    mask: Tensor,
    alpha: float = 0.3,
    beta: float = 0.7,
    *,
    smooth: float = 1.0,
    weights: Sequence[float] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""The overlap of predicted probabilities and a mask in which false and missed pixels weigh differently.

    .. math:: 1 - \frac{\sum p y + s}{\sum p y + \alpha \sum p (1 - y) + \beta \sum (1 - p) y + s}, \qquad
        p = \mathrm{sigmoid}(z)

    with sums over a sample's pixels. It is computed in float32 (in float64 where a tensor is float64).

    Args:
        logits: ``[B, 1, H, W]``, or several heads of this shape as a list or tuple; float32, float64, bfloat16 or float16.
            Slices such as ``out[:, :1]`` are read in place.
        mask: of the same shape, 0 outside and 1 inside, or between: floating, bool, uint8, int8, int16, int32 or int64.
            Values outside [0, 1] are not looked for.
        alpha: weight of what is predicted outside the mask, 0 or more.
        beta: weight of what is missed inside, 0 or more.
        smooth: s, added above and below, 0 or more.
        weights: of the heads, each 1 where there are none. The loss is the weighted sum of the heads' losses.
        reduction: over the samples: ``"mean"`` (NaN for no samples), ``"sum"`` or ``"none"``.

    Returns:
        As :func:`sod_ops.iou_loss`.

    Raises:
        TypeError: an argument is not of the types named above.
        ValueError: shapes or devices differ (nothing is broadcast), a head has not the size of the mask, or ``alpha``,
            ``beta``, ``smooth``, ``weights`` or ``reduction`` is none of the above.

    Source:
        Salehi, Erdogmus, Gholipour: Tversky loss function for image segmentation using 3D fully convolutional deep
        networks, MLMI 2017.
    """
    return _call("tversky_loss", logits, mask, alpha, beta, smooth, weights, reduction)


def _call(
    op: str,
    logits: Tensor | Sequence[Tensor],
    mask: Tensor,
    alpha: float,
    beta: float,
    smooth: float,
    weights: Sequence[float] | None,
    reduction: str,
) -> Tensor:
    return _loss(
        op,
        "logits",
        logits,
        mask,
        # A Dice loss has 2 sum p y above.
        lambda: (float(alpha), float(beta), float(0.5 * smooth if op == "dice_loss" else smooth)),
        weights,
        reduction,
        lambda: check_overlap_options(op, reduction, alpha=alpha, beta=beta, smooth=smooth),
        # Numbers of other types: those that can be read without waiting for a device.
        exact=type(alpha) is type(beta) is type(smooth) is float,
    )


def _fake_forward(
    logits: Sequence[Tensor],
    mask: Tensor,
    alpha: float,
    beta: float,
    smooth: float,
    weights: Sequence[float],
    reduction: int,
    with_gradient: bool,
) -> tuple[Tensor, list[Tensor]]:
    """``with_gradient`` asks for the gradients by the heads where the loss is a mean or a sum.

    Returns the loss and these gradients, or none.
    """
    return empty_results("tversky_loss", logits, mask, reduction, with_gradient)


def _fake_backward(
    grad_output: Tensor,
    logits: Sequence[Tensor],
    mask: Tensor,
    alpha: float,
    beta: float,
    smooth: float,
    weights: Sequence[float],
    reduction: int,
) -> list[Tensor]:
    """Returns the gradients of the heads."""
    return [torch.empty_like(head) for head in logits]


_loss = HeadsLoss(
    "tversky_loss", reference=reference, forward=_fake_forward, backward=_fake_backward, native=("cpu", "cuda")
)


def check_overlap_options(op: str, reduction: object, **numbers: object) -> None:
    """ValueError or TypeError for what neither the functions nor their modules take."""
    for argument, value in numbers.items():
        _checks.check_not_negative(op, argument, value)
    _checks.check_choice(op, "reduction", reduction, REDUCTIONS)

"""BASNet's hybrid loss: the public function and its checks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sod_ops.ops import _checks
from sod_ops.ops._heads import HeadsLoss, check_probabilities, empty_results
from sod_ops.ops.ssim import check_ssim_options
from sod_ops.reference.bce_ssim_iou_loss import bce_ssim_iou_loss as reference

_OP = "bce_ssim_iou_loss"


def bce_ssim_iou_loss(
    probabilities: Tensor | Sequence[Tensor],
    mask: Tensor,
    *,
    bce_weight: float = 1.0,
    ssim_weight: float = 1.0,
    iou_weight: float = 1.0,
    smooth: float = 0.0,
    window_size: int = 11,
    sigma: float = 1.5,
    weights: Sequence[float] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""BASNet's hybrid loss: cross entropy, structural similarity and IoU, of one or several heads.

    .. math:: a\, \mathrm{mean}(c) + b\, (1 - \mathrm{SSIM}(p, y))
        + c\, \left(1 - \frac{\sum p y + s}{\sum (p + y - p y) + s}\right)

    with the cross entropy of a sample's probabilities :math:`p` and the mask :math:`y`, the similarity of
    :func:`sod_ops.ssim`, sums over the sample's pixels, and the terms' weights. The defaults are BASNet's, where every term
    counts once and nothing is added to the IoU; BiRefNet's are ``bce_weight=30, ssim_weight=10, iou_weight=0.5``. Where
    nothing is in either map, and s is 0, the published IoU is 0 / 0: here it is 1, so that the loss is finite for every
    mask. The mask's averages are computed once for all heads. It is computed in float32 (in float64 where a tensor is
    float64); logarithms end at -100, as in PyTorch.

    Args:
        probabilities: in [0, 1], ``[B, 1, H, W]``, or several heads of this shape as a list or tuple; float32, float64,
            bfloat16 or float16. Slices such as ``out[:, :1]`` are read in place.
        mask: of the same shape, 0 outside and 1 inside, or between: floating, bool, uint8, int8, int16, int32 or int64.
            Values outside [0, 1] are not looked for.
        bce_weight: a, of the cross entropy, 0 or more, as the other two.
        ssim_weight: b, of 1 minus the similarity.
        iou_weight: c, of 1 minus the IoU.
        smooth: s, added above and below, 0 or more.
        window_size: the height and width in pixels of the similarity's window: odd. It may exceed the image.
        sigma: the standard deviation of its Gaussian in pixels, above 0.
        weights: of the heads, each 1 where there are none. The loss is the weighted sum of the heads' losses.
        reduction: over the samples: ``"mean"`` (NaN for no samples), ``"sum"`` or ``"none"``.

    Returns:
        A number, or ``[B]`` for ``"none"``, in the dtype that ``probabilities`` and a floating ``mask`` promote to,
        otherwise in that of ``probabilities``. Every head gets a gradient. That of ``mask`` is computed by the plain
        PyTorch reference, and so is a double backward.

    Raises:
        TypeError: an argument is not of the types named above.
        ValueError: shapes or devices differ (nothing is broadcast), a head has not the size of the mask, an option is none
            of the above, or, on a CPU, a probability is outside [0, 1].

    Source:
        Qin et al.: BASNet: Boundary-Aware Salient Object Detection, CVPR 2019. Zheng et al.: Bilateral Reference for
        High-Resolution Dichotomous Image Segmentation, 2024.
    """
    numbers = {"bce_weight": bce_weight, "ssim_weight": ssim_weight, "iou_weight": iou_weight, "smooth": smooth}
    try:
        return _loss(
            _OP,
            "probabilities",
            probabilities,
            mask,
            lambda: (*map(float, numbers.values()), window_size, float(sigma)),
            weights,
            reduction,
            lambda: check_hybrid_options(_OP, window_size, sigma, reduction, **numbers),
            # Numbers of other types: those that can be read without waiting for a device.
            exact=type(window_size) is int and all(type(number) is float for number in (*numbers.values(), sigma)),
        )
    except RuntimeError as error:
        refusal = error
    # The operator's own refusal, with nothing wrong but a value.
    check_probabilities(_OP, probabilities)
    raise refusal


def _fake_forward(
    probabilities: Sequence[Tensor],
    mask: Tensor,
    bce_weight: float,
    ssim_weight: float,
    iou_weight: float,
    smooth: float,
    window_size: int,
    sigma: float,
    weights: Sequence[float],
    reduction: int,
    with_gradient: bool,
) -> tuple[Tensor, list[Tensor]]:
    """``with_gradient`` asks for the gradients by the heads where the loss is a mean or a sum.

    Returns the loss and these gradients, or none.
    """
    return empty_results(_OP, probabilities, mask, reduction, with_gradient)


def _fake_backward(
    grad_output: Tensor,
    probabilities: Sequence[Tensor],
    mask: Tensor,
    bce_weight: float,
    ssim_weight: float,
    iou_weight: float,
    smooth: float,
    window_size: int,
    sigma: float,
    weights: Sequence[float],
    reduction: int,
) -> list[Tensor]:
    """Returns the gradients of the heads."""
    return [torch.empty_like(head) for head in probabilities]


_loss = HeadsLoss(_OP, reference=reference, forward=_fake_forward, backward=_fake_backward, native=("cpu", "cuda"))


def check_hybrid_options(op: str, window_size: object, sigma: object, reduction: object, **numbers: object) -> None:
    """ValueError or TypeError for what neither the function nor its module takes."""
    for argument, number in numbers.items():
        _checks.check_not_negative(op, argument, number)
    check_ssim_options(op, window_size, sigma, reduction)

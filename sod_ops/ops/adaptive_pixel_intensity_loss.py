"""The adaptive pixel intensity loss: the public function and its checks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sod_ops.ops import _checks
from sod_ops.ops._heads import HeadsLoss, check_probabilities, empty_results
from sod_ops.reference.adaptive_pixel_intensity_loss import adaptive_pixel_intensity_loss as reference
from sod_ops.reference.sigmoid_focal_loss import REDUCTIONS

_OP = "adaptive_pixel_intensity_loss"


def adaptive_pixel_intensity_loss(
    probabilities: Tensor | Sequence[Tensor],
    mask: Tensor,
    *,
    as_published: bool = False,
    weights: Sequence[float] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""TRACER's loss: cross entropy, IoU and absolute error in which pixels inside, near edges, weigh more.

    .. math:: w = 1 + \tfrac12 \sum_{k \in \{3, 15, 31\}} |A_k(y) - y|\, y, \qquad
        0.7 \left( \frac{\sum w c}{\sum (w + 0.5)} + 1 - \frac{\sum w p y + 1}{\sum w (p + y) - \sum w p y + 1}
        + \frac{\sum w |p - y|}{\sum (w - 1)} \right)

    with the cross entropy :math:`c` of a sample's probabilities :math:`p` and the mask :math:`y`, and the averages
    :math:`A_k` of :func:`sod_ops.box_filter`; sums go over the sample's pixels. Where no pixel weighs more than 1, as in an
    empty mask, :math:`\sum (w - 1)` is 0: the number of pixels takes its place, and the third term is the mean absolute
    error. The weights are computed once for all heads. It is computed in float32 (in float64 where a tensor is float64);
    logarithms end at -100, as in PyTorch.

    Args:
        probabilities: in [0, 1], ``[B, 1, H, W]``, or several heads of this shape as a list or tuple; float32, float64,
            bfloat16 or float16. Slices such as ``out[:, :1]`` are read in place.
        mask: of the same shape, 0 outside and 1 inside, or between: floating, bool, uint8, int8, int16, int32 or int64.
            Values outside [0, 1] are not looked for.
        as_published: as TRACER's code has it. There ``reduce=None`` makes cross entropy and absolute error means over all
            pixels of the batch before the weights are applied. An empty mask, whose loss is infinite there, has the third
            term above with the mean absolute error of the batch.
        weights: of the heads, each 1 where there are none. The loss is the weighted sum of the heads' losses.
        reduction: over the samples: ``"mean"`` (NaN for no samples), ``"sum"`` or ``"none"``.

    Returns:
        A number, or ``[B]`` for ``"none"``, in the dtype that ``probabilities`` and a floating ``mask`` promote to,
        otherwise in that of ``probabilities``. Every head gets a gradient. That of ``mask`` is computed by the plain
        PyTorch reference, and so is a double backward.

    Raises:
        TypeError: an argument is not of the types named above.
        ValueError: shapes or devices differ (nothing is broadcast), a head has not the size of the mask, ``weights`` or
            ``reduction`` is none of the above, or, on a CPU, a probability is outside [0, 1].

    Source:
        Lee, Shin, Han: TRACER: Extreme Attention Guided Salient Object Tracing Network, AAAI 2022.
    """
    try:
        return _loss(
            _OP,
            "probabilities",
            probabilities,
            mask,
            lambda: (as_published,),
            weights,
            reduction,
            lambda: check_intensity_options(_OP, as_published, reduction),
            exact=type(as_published) is bool,
        )
    except RuntimeError as error:
        refusal = error
    # The operator's own refusal, with nothing wrong but a value.
    check_probabilities(_OP, probabilities)
    raise refusal


def _fake_forward(
    probabilities: Sequence[Tensor],
    mask: Tensor,
    as_published: bool,
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
    as_published: bool,
    weights: Sequence[float],
    reduction: int,
) -> list[Tensor]:
    """Returns the gradients of the heads."""
    return [torch.empty_like(head) for head in probabilities]


_loss = HeadsLoss(_OP, reference=reference, forward=_fake_forward, backward=_fake_backward, native=("cpu", "cuda"))


def check_intensity_options(op: str, as_published: object, reduction: object) -> None:
    """ValueError or TypeError for what neither the function nor its module takes."""
    _checks.check_bool(op, "as_published", as_published)
    _checks.check_choice(op, "reduction", reduction, REDUCTIONS)

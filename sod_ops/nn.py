"""Modules: thin faces of the ops; those of blocks have parameters of their own."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sod_ops.ops import _checks
from sod_ops.ops.adaptive_pixel_intensity_loss import adaptive_pixel_intensity_loss, check_intensity_options
from sod_ops.ops.box_iou_loss import (
    check_options,
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
)
from sod_ops.ops.sigmoid_focal_loss import check_focal_options, sigmoid_focal_loss
from sod_ops.ops.softmax_focal_loss import check_softmax_focal_options, softmax_focal_loss
from sod_ops.ops.squeeze_excite import squeeze_excite
from sod_ops.ops.structure_loss import check_structure_options, structure_loss
from sod_ops.ops.tversky_loss import check_overlap_options, dice_loss, iou_loss, tversky_loss
from sod_ops.reference.squeeze_excite import ACTIVATIONS, GATES


class SqueezeExcitation(torch.nn.Module):
    """Squeeze-and-excitation: every channel scaled by a gate computed from all channels' means.

    :func:`sod_ops.squeeze_excite` on the weights of two 1x1 convolutions, ``reduce`` and ``expand``, initialised as
    torch.nn.Conv2d initialises them. The convolutions are never called: hooks on them don't run.

    The state_dict holds ``reduce.weight`` ``[R, C, 1, 1]``, ``reduce.bias`` ``[R]``, ``expand.weight``
    ``[C, R, 1, 1]`` and ``expand.bias`` ``[C]``, without the biases where ``bias`` is False.

    Args:
        channels: C, the channels of input and output.
        reduced_channels: R, the channels between the two convolutions.
        activation: what follows ``reduce``: a name that :func:`sod_ops.squeeze_excite` lists.
        gate: what follows ``expand``, likewise.
        bias: whether the convolutions have biases.
        device: where the parameters are made.
        dtype: of the parameters.

    Input and output:
        ``[N, C, H, W]``, float32, float64, bfloat16 or float16; the output has the input's dtype and memory format.

    Raises:
        TypeError: ``channels`` or ``reduced_channels`` is not an integer, ``activation`` or ``gate`` not a string.
        ValueError: a number of channels is below 1, ``activation`` or ``gate`` is not known.

    Source:
        Hu, Shen, Sun: Squeeze-and-Excitation Networks, CVPR 2018.
    """

    def __init__(
        self,
        channels: int,
        reduced_channels: int,
        *,
        activation: str = "relu",
        gate: str = "sigmoid",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for argument, value in (("channels", channels), ("reduced_channels", reduced_channels)):
            _check_count(argument, value)
        _checks.check_choice("SqueezeExcitation", "activation", activation, ACTIVATIONS)
        _checks.check_choice("SqueezeExcitation", "gate", gate, GATES)
        self.activation = activation
        self.gate = gate
        self.reduce = torch.nn.Conv2d(channels, reduced_channels, 1, bias=bias, device=device, dtype=dtype)
        self.expand = torch.nn.Conv2d(reduced_channels, channels, 1, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return squeeze_excite(
            x,
            self.reduce.weight,
            self.reduce.bias,
            self.expand.weight,
            self.expand.bias,
            activation=self.activation,
            gate=self.gate,
        )

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}, gate={self.gate!r}"


class SigmoidFocalLoss(torch.nn.Module):
    """Focal loss of independent binary predictions: :func:`sod_ops.sigmoid_focal_loss` with its options kept.

    Args:
        alpha: weight of the positive class in [0, 1], or -1 for none.
        gamma: exponent, 0 or more.
        reduction: ``"mean"`` (as PyTorch's own losses have it; the function's default is ``"none"``), ``"none"`` or
            ``"sum"``.

    Input and output:
        Logits and targets of one shape; the loss of each element, or their mean or sum.

    Raises:
        TypeError: ``alpha`` or ``gamma`` is not a number, ``reduction`` not a string.
        ValueError: one of them is out of its range.

    Source:
        Lin, Goyal, Girshick, He, Dollar: Focal Loss for Dense Object Detection, ICCV 2017.
    """

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0, reduction: str = "mean") -> None:
        super().__init__()
        check_focal_options("SigmoidFocalLoss", alpha, gamma, reduction)
        self.alpha = alpha
        self.gamma = gamma
        self.reduction = reduction

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return sigmoid_focal_loss(inputs, targets, self.alpha, self.gamma, self.reduction)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, gamma={self.gamma}, reduction={self.reduction!r}"


class SoftmaxFocalLoss(torch.nn.Module):
    """Focal loss of one class among many: :func:`sod_ops.softmax_focal_loss` with its options kept.

    Args:
        alpha: weight of every class, a tensor ``[K]``, which becomes a buffer; or one number for all; or None: 1.
        gamma: exponent, 0 or more.
        ignore_index: the target of positions that don't count.
        reduction: ``"mean"``, ``"none"`` or ``"sum"``.

    Input and output:
        Logits ``[N, K, ...]`` and classes ``[N, ...]``; the loss of each position, or their mean or sum.

    Raises:
        TypeError: an option is of the wrong type.
        ValueError: one of them is out of its range.

    Source:
        Lin, Goyal, Girshick, He, Dollar: Focal Loss for Dense Object Detection, ICCV 2017.
    """

    alpha: float | Tensor | None

    def __init__(
        self,
        alpha: float | Tensor | None = None,
        gamma: float = 2.0,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        check_softmax_focal_options("SoftmaxFocalLoss", alpha, gamma, ignore_index, reduction)
        if isinstance(alpha, Tensor):
            self.register_buffer("alpha", alpha)
        else:
            self.alpha = alpha
        self.gamma = gamma
        self.ignore_index = ignore_index
        self.reduction = reduction

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return softmax_focal_loss(inputs, targets, self.alpha, self.gamma, self.ignore_index, self.reduction)

    def extra_repr(self) -> str:
        alpha = f"[{len(self.alpha)}]" if isinstance(self.alpha, Tensor) else self.alpha
        options = f"gamma={self.gamma}, ignore_index={self.ignore_index}, reduction={self.reduction!r}"
        return f"alpha={alpha}, {options}"


def _check_count(argument: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        _checks.bad_type("SqueezeExcitation", argument, "an integer", f"{value!r} ({type(value).__name__})")
    if value < 1:
        _checks.bad_value("SqueezeExcitation", argument, "at least 1", value)


class _BoxIoULoss(torch.nn.Module):
    """What the IoU losses have in common: their options."""

    def __init__(self, reduction: str = "mean", eps: float = 1e-7) -> None:
        super().__init__()
        check_options(type(self).__name__, reduction, eps)
        self.reduction = reduction
        self.eps = eps

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}, eps={self.eps}"


class GeneralizedBoxIoULoss(_BoxIoULoss):
    """Generalized IoU loss of pairs of boxes: :func:`sod_ops.generalized_box_iou_loss` with its options kept.

    Args:
        reduction: ``"mean"`` (as PyTorch's own losses have it; the function's default is ``"none"``), ``"none"`` or
            ``"sum"``.
        eps: what is added to the denominators, above 0.

    Input and output:
        Two tensors ``[N, 4]`` or ``[4]`` of (x1, y1, x2, y2); the loss of each pair, or their mean or sum.

    Raises:
        TypeError: ``reduction`` is not a string, ``eps`` not a number.
        ValueError: one of them is out of its range.

    Source:
        Rezatofighi et al.: Generalized Intersection over Union, CVPR 2019.
    """

    def forward(self, boxes1: Tensor, boxes2: Tensor) -> Tensor:
        return generalized_box_iou_loss(boxes1, boxes2, self.reduction, self.eps)


class DistanceBoxIoULoss(_BoxIoULoss):
    """Distance IoU loss of pairs of boxes: :func:`sod_ops.distance_box_iou_loss` with its options kept.

    Args, input and output, and errors are those of :class:`GeneralizedBoxIoULoss`.

    Source:
        Zheng et al.: Distance-IoU Loss, AAAI 2020.
    """

    def forward(self, boxes1: Tensor, boxes2: Tensor) -> Tensor:
        return distance_box_iou_loss(boxes1, boxes2, self.reduction, self.eps)


class CompleteBoxIoULoss(_BoxIoULoss):
    """Complete IoU loss of pairs of boxes: :func:`sod_ops.complete_box_iou_loss` with its options kept.

    Args, input and output, and errors are those of :class:`GeneralizedBoxIoULoss`, but that ``eps`` is what is added to the
    denominator of alpha alone.

    Source:
        Zheng et al.: Distance-IoU Loss, AAAI 2020.
    """

    def forward(self, boxes1: Tensor, boxes2: Tensor) -> Tensor:
        return complete_box_iou_loss(boxes1, boxes2, self.reduction, self.eps)


class StructureLoss(torch.nn.Module):
    """Cross entropy and IoU that weigh a mask's edges more: :func:`sod_ops.structure_loss` with its options kept.

    Args:
        kernel_size: the window's height and width in pixels: odd.
        as_published: as F3Net's and PraNet's code has it, where the weights don't reach the cross entropy.
        weights: of the heads, each 1 where there are none.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Input and output:
        Logits ``[B, 1, H, W]``, or several heads of them as a list or tuple, and a mask of the same shape; a number, or
        ``[B]`` for ``"none"``.

    Raises:
        TypeError: an option is not of the types named above.
        ValueError: one of them is out of its range.

    Source:
        Wei, Wang, Huang: F3Net: Fusion, Feedback and Focus for Salient Object Detection, AAAI 2020.
    """

    def __init__(
        self,
        kernel_size: int = 31,
        *,
        as_published: bool = False,
        weights: Sequence[float] | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        check_structure_options("StructureLoss", kernel_size, as_published, reduction)
        self.kernel_size = kernel_size
        self.as_published = as_published
        self.weights = None if weights is None else tuple(weights)
        self.reduction = reduction

    def forward(self, logits: Tensor | Sequence[Tensor], mask: Tensor) -> Tensor:
        return structure_loss(
            logits,
            mask,
            self.kernel_size,
            as_published=self.as_published,
            weights=self.weights,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, as_published={self.as_published}, weights={self.weights}, "
            f"reduction={self.reduction!r}"
        )


class _OverlapLoss(torch.nn.Module):
    """What the losses of overlap have in common: their options."""

    def __init__(
        self, *, smooth: float = 1.0, weights: Sequence[float] | None = None, reduction: str = "mean", **extra: float
    ) -> None:
        super().__init__()
        check_overlap_options(type(self).__name__, reduction, **extra, smooth=smooth)
        self.options: dict[str, Any] = {
            **extra,
            "smooth": smooth,
            "weights": None if weights is None else tuple(weights),
            "reduction": reduction,
        }

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class IoULoss(_OverlapLoss):
    """1 minus the IoU of predicted probabilities and a mask: :func:`sod_ops.iou_loss` with its options kept.

    Args:
        smooth: what is added above and below, 0 or more.
        weights: of the heads, each 1 where there are none.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Input and output:
        Logits ``[B, 1, H, W]``, or several heads of them as a list or tuple, and a mask of the same shape; a number, or
        ``[B]`` for ``"none"``.

    Raises:
        TypeError: an option is not of the types named above.
        ValueError: one of them is out of its range.

    Source:
        Qin et al.: BASNet: Boundary-Aware Salient Object Detection, CVPR 2019.
    """

    def forward(self, logits: Tensor | Sequence[Tensor], mask: Tensor) -> Tensor:
        return iou_loss(logits, mask, **self.options)


class DiceLoss(_OverlapLoss):
    """1 minus the Dice coefficient of predicted probabilities and a mask: :func:`sod_ops.dice_loss` with its options kept.

    Args, input and output, and errors are those of :class:`IoULoss`.

    Source:
        Milletari, Navab, Ahmadi: V-Net, 3DV 2016.
    """

    def forward(self, logits: Tensor | Sequence[Tensor], mask: Tensor) -> Tensor:
        return dice_loss(logits, mask, **self.options)


class TverskyLoss(_OverlapLoss):
    """Overlap in which false and missed pixels weigh differently: :func:`sod_ops.tversky_loss` with its options kept.

    The other arguments, input and output, and errors are those of :class:`IoULoss`.

    Args:
        alpha: weight of what is predicted outside the mask, 0 or more.
        beta: weight of what is missed inside, 0 or more.

    Source:
        Salehi, Erdogmus, Gholipour: Tversky loss function for image segmentation, MLMI 2017.
    """

    def __init__(
        self,
        alpha: float = 0.3,
        beta: float = 0.7,
        *,
        smooth: float = 1.0,
        weights: Sequence[float] | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(alpha=alpha, beta=beta, smooth=smooth, weights=weights, reduction=reduction)

    def forward(self, logits: Tensor | Sequence[Tensor], mask: Tensor) -> Tensor:
        return tversky_loss(logits, mask, **self.options)


class AdaptivePixelIntensityLoss(torch.nn.Module):
    """TRACER's loss: :func:`sod_ops.adaptive_pixel_intensity_loss` with its options kept.

    Args:
        as_published: as TRACER's code has it, where the weights don't reach cross entropy and absolute error.
        weights: of the heads, each 1 where there are none.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Input and output:
        Probabilities ``[B, 1, H, W]``, or several heads of them as a list or tuple, and a mask of the same shape; a number,
        or ``[B]`` for ``"none"``.

    Raises:
        TypeError: an option is not of the types named above.
        ValueError: one of them is out of its range.

    Source:
        Lee, Shin, Han: TRACER: Extreme Attention Guided Salient Object Tracing Network, AAAI 2022.
    """

    def __init__(
        self, *, as_published: bool = False, weights: Sequence[float] | None = None, reduction: str = "mean"
    ) -> None:
        super().__init__()
        check_intensity_options("AdaptivePixelIntensityLoss", as_published, reduction)
        self.options: dict[str, Any] = {
            "as_published": as_published,
            "weights": None if weights is None else tuple(weights),
            "reduction": reduction,
        }

    def forward(self, probabilities: Tensor | Sequence[Tensor], mask: Tensor) -> Tensor:
        return adaptive_pixel_intensity_loss(probabilities, mask, **self.options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())

r"""Copy-Paste: instances of one sample are pasted on another, with their masks; what they cover is no longer seen.

With :math:`P_b` the union of the chosen instances of sample b's partner :math:`\pi(b)`,

.. math::

    \tilde x_b = (1 - a_b) x_b + a_b x_{\pi(b)}, \qquad
    \tilde m_{b,i} = m_{b,i} \wedge \neg P_b, \qquad
    \text{dropped where } |\tilde m_{b,i}| < v\, |m_{b,i}|

where a is P itself or, to blend its edges, P after a Gaussian filter with the image's border repeated outside. The filter's
weights are whole multiples of 2^-12 that sum to 1: a sum of them is then exact in float32 in whatever order, so that every
backend has the same a, and the same image of bytes, to the last bit. The weights' running sum is rounded, not the weights:
along a straight edge a is off by less than 2^-12.

Ghiasi et al.: Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation, CVPR 2021.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

UNIT = 4096  # weights are multiples of one UNITth


def blend_weights(sigma: float) -> list[int]:
    """The Gaussian filter's weights in 1 / UNIT, from its middle outwards; it ends at four standard deviations."""
    reach = int(4 * sigma + 0.5)
    tails = [0.0]
    for t in range(reach, 0, -1):
        tails.append(tails[-1] + math.exp(-0.5 * (t / sigma) ** 2))
    whole = 2 * tails[-1] + 1
    rounded = [round(UNIT * tail / whole) for tail in reversed(tails)]  # of what lies from t = 1, 2, ... on
    return [UNIT - 2 * rounded[0], *(rounded[t] - rounded[t + 1] for t in range(reach))]


def blend_alpha(pasted: Tensor, sigma: float) -> Tensor:
    """``[B, H, W]``: how much of a pixel is the partner's, in float64; ``pasted`` is bool."""
    alpha = pasted.double()[:, None]
    if sigma > 0:
        half = blend_weights(sigma)
        weights = alpha.new_tensor([*half[:0:-1], *half]) / UNIT
        reach = len(half) - 1
        for shape in ((1, 1, 1, -1), (1, 1, -1, 1)):
            border = (reach, reach, 0, 0) if shape[3] == -1 else (0, 0, reach, reach)
            alpha = F.conv2d(F.pad(alpha, border, mode="replicate"), weights.view(shape))
    return alpha[:, 0]


def copy_paste(
    images: Tensor, masks: Tensor, partner: Tensor, chosen: Tensor, blend_sigma: float, min_visible: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What is pasted.

    Args:
        images: ``[B, C, H, W]``, uint8 or floating.
        masks: ``[B, M, H, W]`` bool; an empty mask is no instance.
        partner: ``[B]`` int64: whose instances each sample gets.
        chosen: ``[B, M]`` bool: which of the partner's.
        blend_sigma: of the filter, in pixels; 0 for none.
        min_visible: v, the least part of an instance that must stay in sight.

    Returns:
        The images; the masks ``[B, 2M, H, W]``, a sample's own and then what was pasted, all in their slots; boxes
        ``[B, 2M, 4]`` int64, the least and greatest x and y in each mask as x1, y1, x2, y2, and 0 where it is empty;
        ``[B, 2M]`` bool, which of them aren't; ``[B, H, W]`` bool, P.
    """
    arrived = masks[partner] & chosen[:, :, None, None]
    pasted = arrived.any(1)
    own = masks & ~pasted[:, None]
    before, after = (m.sum((2, 3)).double() for m in (masks, own))
    own = own & (after >= min_visible * before)[:, :, None, None]
    together = torch.cat([own, arrived], 1)
    boxes, visible = boxes_of(together)
    return _compose(images, images[partner], blend_alpha(pasted, blend_sigma)), together, boxes, visible, pasted


def copy_paste_backward(grad_output: Tensor, pasted: Tensor, receiver: Tensor, blend_sigma: float) -> Tensor:
    """The gradient of the images: what is left of a sample's own pixels, and what its receiver took."""
    alpha = blend_alpha(pasted, blend_sigma)[:, None].to(torch.promote_types(grad_output.dtype, torch.float32))
    kept = torch.where(alpha < 1, (1 - alpha) * grad_output, 0)
    given = torch.where(alpha > 0, alpha * grad_output, 0)
    return (kept + given[receiver]).to(grad_output.dtype)


def boxes_of(masks: Tensor) -> tuple[Tensor, Tensor]:
    """The boxes of masks ``[B, K, H, W]``, as torchvision's ``masks_to_boxes`` has them, and which masks aren't empty."""
    edges = []
    for seen in (masks.any(2), masks.any(3)):  # [B, K, W], [B, K, H]
        last = seen.shape[2] - 1 - seen.flip(2).int().argmax(2)
        edges.append((seen.int().argmax(2), last))
    (x1, x2), (y1, y2) = edges
    visible = masks.flatten(2).any(2)
    return torch.stack([x1, y1, x2, y2], -1) * visible[:, :, None], visible


def _compose(own: Tensor, other: Tensor, alpha: Tensor) -> Tensor:
    alpha = alpha[:, None]
    if own.dtype == torch.uint8:
        mixed = (own.double() + (other.double() - own.double()) * alpha + 0.5).floor()  # exact up to here: 32 bits
    else:
        alpha = alpha.to(torch.promote_types(own.dtype, torch.float32))
        mixed = (1 - alpha) * own + alpha * other
    # Where nothing is mixed the pixel is copied: no infinity or NaN beneath reaches the other.
    return torch.where(alpha <= 0, own, torch.where(alpha >= 1, other, mixed.to(own.dtype)))

r"""CutMix: a box of each sample is overwritten with the same box of another sample.

.. math::

    \tilde x_b = M_b \odot x_{\pi(b)} + (1 - M_b) \odot x_b, \qquad
    \tilde y_b = \lambda_b y_b + (1 - \lambda_b) y_{\pi(b)}, \qquad
    \lambda_b = 1 - \frac{\sum M_b}{H W}

M is 1 inside the box [x1, x2) x [y1, y2) and 0 elsewhere. What is random (the boxes and the partners pi) is drawn outside,
by :mod:`sod_ops.ops._draws`, so that every backend gets the same.

Yun et al.: CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features, ICCV 2019, section 3.1.
"""

import torch
from torch import Tensor


def cutmix(images: Tensor, partner: Tensor, boxes: Tensor) -> Tensor:
    """The images after pasting.

    Args:
        images: ``[B, C, H, W]``, any dtype.
        partner: ``[B]`` int64, whose box each sample gets.
        boxes: ``[B, 4]`` int64, x1, y1, x2, y2 within the image.
    """
    return torch.where(inside(boxes, images), images[partner], images)


def cutmix_backward(grad_output: Tensor, receiver: Tensor, boxes: Tensor) -> Tensor:
    """The gradient of the images: a sample gets its own where it was not covered, and its receiver's from that box.

    Args:
        grad_output: ``[B, C, H, W]``.
        receiver: ``[B]`` int64, the inverse of ``partner``: who got each sample's box.
        boxes: as above.
    """
    covered = inside(boxes, grad_output)
    kept = grad_output.masked_fill(covered, 0)
    return kept + grad_output.masked_fill(~covered, 0)[receiver]


def inside(boxes: Tensor, images: Tensor) -> Tensor:
    """``[B, 1, H, W]`` bool: which pixels lie in each sample's box."""
    x1, y1, x2, y2 = boxes[:, :, None].unbind(1)
    y, x = (torch.arange(size, device=images.device) for size in images.shape[2:])
    rows, columns = (y >= y1) & (y < y2), (x >= x1) & (x < x2)
    return (rows[:, :, None] & columns[:, None, :])[:, None]

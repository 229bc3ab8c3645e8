"""Copy-Paste with its options kept."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sod_ops.ops.copy_paste import check_copy_paste_options, copy_paste


class CopyPaste(torch.nn.Module):
    """Copy-Paste on a batch: :func:`sod_ops.copy_paste` with its options kept, also as ``sod_ops.CopyPaste``.

    It can be pickled and has no generator of its own: in a DataLoader's worker it draws from PyTorch's default one, which
    the DataLoader seeds anew for every worker and epoch, so that ``torch.manual_seed`` decides and no two workers draw the
    same. It pastes whatever the mode, ``train()`` or ``eval()``.

    Args:
        probability: of each instance to be pasted, in [0, 1].
        blend_sigma: above 0, edges in the image are blended by a Gaussian filter of this standard deviation in pixels.
        min_visible: the least part of its former area that an instance must keep, in [0, 1].

    Input and output:
        Images, masks and, where they are given, boxes and labels, padded or in lists, as those of
        :func:`sod_ops.copy_paste`; optionally a generator.

    Raises:
        TypeError: an option is not of the types named above.
        ValueError: one of them is out of its range.

    Example::

        paste = sod_ops.CopyPaste(probability=0.5, blend_sigma=1.0)


        def collate(samples):  # of images and their instances' masks [M_i, H, W], boxes [M_i, 4] and labels [M_i]
            images, masks, boxes, labels = zip(*samples)
            return paste(torch.stack(images), masks, boxes, labels)


        loader = torch.utils.data.DataLoader(dataset, 32, shuffle=True, num_workers=2, collate_fn=collate)

    Source:
        Ghiasi et al.: Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation, CVPR 2021.
    """

    def __init__(self, probability: float = 0.5, blend_sigma: float = 0, min_visible: float = 0.3) -> None:
        super().__init__()
        check_copy_paste_options("CopyPaste", probability, blend_sigma, min_visible)
        self.probability = probability
        self.blend_sigma = blend_sigma
        self.min_visible = min_visible

    def forward(
        self,
        images: Tensor,
        masks: Tensor | Sequence[Tensor],
        boxes: Tensor | Sequence[Tensor] | None = None,
        labels: Tensor | Sequence[Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Any, ...]:
        return copy_paste(
            images,
            masks,
            boxes,
            labels,
            probability=self.probability,
            blend_sigma=self.blend_sigma,
            min_visible=self.min_visible,
            generator=generator,
        )

    def extra_repr(self) -> str:
        return f"probability={self.probability}, blend_sigma={self.blend_sigma}, min_visible={self.min_visible}"

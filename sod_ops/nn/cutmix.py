"""CutMix with its options kept."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sod_ops.ops.cutmix import check_cutmix_options, cutmix


class CutMix(torch.nn.Module):
    """CutMix on a batch: :func:`sod_ops.cutmix` with its options kept, also as ``sod_ops.CutMix``.

    It can be pickled and has no generator of its own: in a DataLoader's worker it draws from PyTorch's default one, which
    the DataLoader seeds anew for every worker and epoch, so that ``torch.manual_seed`` decides and no two workers draw the
    same. It mixes whatever the mode, ``train()`` or ``eval()``.

    Args:
        alpha: of the Beta distribution, finite and above 0.
        per_sample: a box for each sample; otherwise all share one.
        num_classes: class indices become soft labels of so many classes.

    Input and output:
        Images ``[B, C, H, W]`` and targets, as those of :func:`sod_ops.cutmix`; optionally a generator.

    Raises:
        TypeError: an option is not of the types named above.
        ValueError: one of them is out of its range.

    Example::

        mix = sod_ops.CutMix(num_classes=10)


        def collate(samples):
            return mix(*torch.utils.data.default_collate(samples))


        loader = torch.utils.data.DataLoader(dataset, 32, shuffle=True, num_workers=2, collate_fn=collate)

    Source:
        Yun et al.: CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features, ICCV 2019.
    """

    def __init__(self, alpha: float = 1.0, per_sample: bool = True, num_classes: int | None = None) -> None:
        super().__init__()
        check_cutmix_options("CutMix", alpha, per_sample, num_classes)
        self.alpha = alpha
        self.per_sample = per_sample
        self.num_classes = num_classes

    def forward(
        self, images: Tensor, targets: Tensor | Sequence[Tensor], generator: torch.Generator | None = None
    ) -> tuple[Tensor, Any]:
        return cutmix(images, targets, self.alpha, self.per_sample, generator, self.num_classes)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, per_sample={self.per_sample}, num_classes={self.num_classes}"

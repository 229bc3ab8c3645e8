"""The drop-in patch: somebody else's loss functions, served by this package's.

``losses`` finds and replaces them, ``names`` puts something under a name and takes it back, ``fallback`` makes functions
that serve what they can, and ``torchvision``, ``ultralytics`` and ``smp`` (one file per peer library) say what is replaced
by what. A new peer is a new file and a line in ``losses``.
"""

from sod_ops.patch.losses import Patch, patch_losses

__all__ = ["Patch", "patch_losses"]

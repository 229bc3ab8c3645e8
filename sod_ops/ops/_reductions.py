"""How losses are reduced, by name for users and by number for operators."""

from sod_ops.reference.sigmoid_focal_loss import REDUCTIONS

REDUCTION_INDEX = {name: index for index, name in enumerate(REDUCTIONS)}

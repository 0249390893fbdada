"""Distillation of directions."""

import torch.nn.functional as F
from torch import Tensor

from aeic_lightning.losses.tap_term import TapTerm


class CosineDistillation(TapTerm):
    """For each tap 1 - cos(f(student), teacher), the angle being that of the channels at one position; mean over the
    positions. f is a learnable 1x1 convolution. It does not see the length of the vectors; `normalise` changes how
    fast f learns, and how far its bias reaches.

    Args:
        side, taps: see `TapTerm`.
    """

    label = ".cosine"

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(student, teacher, dim=1).mean()

"""Attention transfer (Zagoruyko and Komodakis 2017, "Paying More Attention to Attention")."""

import torch.nn.functional as F
from torch import Tensor

from aeic_lightning.losses.tap_term import TapTerm


class AttentionTransfer(TapTerm):
    """For each tap ||a(student) - a(teacher)||^2, mean over the images: where an image has large activations.

    a is the sum of squares over the channels at each position, as one vector per image, divided by its norm (equation 2
    of the paper, with the square of its distance, so that the gradient stays finite at 0). Widths may differ without a
    projection. The term lies in [0, 2].

    Args:
        side, taps: see `TapTerm`.
    """

    label = ".attention"
    projects = False
    sees_scale = False

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (attention(student) - attention(teacher)).square().sum(1).mean()


def attention(tap: Tensor) -> Tensor:
    """(B, C, h, w) -> unit vectors (B, h w)."""
    return F.normalize(tap.square().sum(1).flatten(1), dim=1)

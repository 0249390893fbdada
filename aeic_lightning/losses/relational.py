"""Relational knowledge distillation (Park et al. 2019)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aeic_lightning.errors import UserError
from aeic_lightning.losses.tap_term import TapMatch, TapTerm
from aeic_lightning.models.taps import Side


class RelationalDistillation(TapTerm):
    """For each tap how far relations among vectors of the student are from those among the teacher's.

    The vectors are a tap's channels at `examples` positions, evenly spaced over all images of the batch. Compared by
    the Huber loss are their mutual distances over the mean distance (equations 5 and 6), and the cosines of the angles
    that any two of them make at a third (equations 7 and 8). Widths may differ without a projection.

    Args:
        side, taps: see `TapTerm`.
        distance_weight: of the distances.
        angle_weight: of the angles; the paper has twice the weight of the distances.
        examples: at most so many vectors; work grows with the third power, unless `angle_weight` is 0.
    """

    label = ".relational"
    projects = False
    sees_scale = False

    def __init__(
        self,
        side: Side | None = None,
        taps: Sequence[TapMatch | dict[str, Any] | str] | None = None,
        distance_weight: float = 1.0,
        angle_weight: float = 2.0,
        examples: int = 32,
    ) -> None:
        super().__init__(side, taps)
        if examples < 3:
            raise UserError(f"relational: examples must be 3 or more, since an angle has three points, not {examples}")
        self.distance_weight, self.angle_weight, self.examples = distance_weight, angle_weight, examples

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        ours, theirs = self._vectors(student), self._vectors(teacher)
        loss = self.distance_weight * F.smooth_l1_loss(distances(ours), distances(theirs))
        if self.angle_weight:
            loss = loss + self.angle_weight * F.smooth_l1_loss(angles(ours), angles(theirs))
        return loss

    def _vectors(self, tap: Tensor) -> Tensor:
        vectors = tap.movedim(1, -1).flatten(0, 2).float()
        count = min(self.examples, len(vectors))
        return vectors[torch.arange(count, device=tap.device) * len(vectors) // count]


def distances(vectors: Tensor) -> Tensor:
    """(N, C) -> the N (N - 1) / 2 distances of the pairs, divided by their mean."""
    found = F.pdist(vectors)
    return found / found.mean().clamp_min(1e-12)


def angles(vectors: Tensor) -> Tensor:
    """(N, C) -> (N, N, N): at [i, j, k] the cosine of the angle at j between i and k; 0 if one of them is j."""
    ways = F.normalize(vectors[:, None] - vectors[None], dim=2).transpose(0, 1)
    return (ways @ ways.transpose(1, 2)).transpose(0, 1)

"""LPIPS as a term."""

from typing import Literal

from aeic_lightning.losses.term import Description, DistanceTerm
from aeic_lightning.metrics.lpips import LPIPS


class LPIPSTerm(DistanceTerm):
    """Mean LPIPS over the batch. AEIC: weight 1 in stage 1, on VGG.

    Args:
        backbone: `lite0` needs no download; `alex` and `vgg` are the standard ones.
    """

    def __init__(self, backbone: Literal["lite0", "alex", "vgg"] = "lite0") -> None:
        super().__init__(LPIPS(backbone))

    @classmethod
    def describe(cls, backbone: str = "lite0") -> Description:
        return Description(metric=f"lpips_{backbone}", backbone=backbone)

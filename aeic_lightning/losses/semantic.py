"""The semantic distance as a term."""

from typing import Literal

from aeic_lightning.losses.term import Description, DistanceTerm, Size
from aeic_lightning.metrics.semantic import SemanticLoss


class SemanticTerm(DistanceTerm):
    """Mean distance of image embeddings over the batch. AEIC: weight 0.1, on CLIP.

    Args:
        backbone: `lite0` needs no download; `clip` is the paper's.
    """

    def __init__(self, backbone: Literal["lite0", "clip"] = "lite0") -> None:
        super().__init__(SemanticLoss(backbone))

    @classmethod
    def describe(cls, backbone: str = "lite0") -> Description:
        return Description(backbone=backbone, sees=resized if backbone == "lite0" else enlarged)


def resized(images: int, height: int, width: int) -> Size:
    """To 224 x 224, smaller images as they are: what EfficientNet-Lite0 sees."""
    return images, min(height, 224), min(width, 224)


def enlarged(images: int, height: int, width: int) -> Size:
    """To 224 x 224, always: what CLIP and DINOv3 see."""
    return images, 224, 224

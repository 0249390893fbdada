"""Edge-aware DISTS as a term."""

from typing import Any, Literal

from torch import Tensor

from aeic_lightning.losses.term import Description, Size, Term
from aeic_lightning.metrics.dists import EdgeAwareDISTS, patch_starts


class EdgeAwareDISTSTerm(Term):
    """Mean edge-aware DISTS over the batch. AEIC: weight 1 in stages 2 and 3, on VGG.

    Args:
        backbone: `lite0` needs no download; `vgg` is the standard one.
    """

    needs_picture = True
    of_single_images = True

    def __init__(self, backbone: Literal["lite0", "vgg"] = "lite0") -> None:
        super().__init__()
        self.metric = EdgeAwareDISTS(backbone)

    @classmethod
    def describe(cls, backbone: str = "lite0") -> Description:
        metric = "dists" if backbone == "vgg" else f"dists_{backbone}"
        return Description(metric=metric, backbone=backbone, sees=patches)

    def forward(self, batch: dict[str, Any], output: Any, teacher: dict[str, Tensor] | None) -> Tensor:
        return self.metric(output.x_hat, batch["image"]).mean()


def patches(images: int, height: int, width: int) -> Size:
    """Patches of picture and edges that pass through the network."""
    patch, stride = EdgeAwareDISTS.patch, EdgeAwareDISTS.stride
    each = len(patch_starts(height, patch, stride)) * len(patch_starts(width, patch, stride))
    return 2 * images * each, min(height, patch), min(width, patch)

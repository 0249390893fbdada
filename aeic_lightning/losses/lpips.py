"""LPIPS as a term."""

from typing import Any, Literal

from torch import Tensor

from aeic_lightning.losses.term import Description, Term
from aeic_lightning.metrics.lpips import LPIPS


class LPIPSTerm(Term):
    """Mean LPIPS over the batch. AEIC: weight 1 in stage 1, on VGG.

    Args:
        backbone: `lite0` needs no download; `alex` and `vgg` are the standard ones.
    """

    needs_picture = True
    of_single_images = True

    def __init__(self, backbone: Literal["lite0", "alex", "vgg"] = "lite0") -> None:
        super().__init__()
        self.metric = LPIPS(backbone)

    @classmethod
    def describe(cls, backbone: str = "lite0") -> Description:
        return Description(metric=f"lpips_{backbone}", backbone=backbone)

    def forward(self, batch: dict[str, Any], output: Any, teacher: dict[str, Tensor] | None) -> Tensor:
        return self.metric(output.x_hat, batch["image"]).mean()

"""The distortion."""

from typing import Any

from torch import Tensor

from aeic_lightning.losses.term import Description, Term


class MSE(Term):
    """Mean squared error of images in [-1, 1]. AEIC: weight 2."""

    needs_picture = True
    of_single_images = True

    @classmethod
    def describe(cls) -> Description:
        return Description(metric="psnr")

    def forward(self, batch: dict[str, Any], output: Any, teacher: dict[str, Tensor] | None) -> Tensor:
        return (output.x_hat - batch["image"]).square().mean()

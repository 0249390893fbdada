"""The rate R."""

from typing import Any

from torch import Tensor

from aeic_lightning.losses.term import Description, Term


class Rate(Term):
    """Estimated bits per pixel: the likelihood bits of each image over the pixels of the crop, mean over the batch.

    Its weight is lambda. AEIC: 0.8 relaxed; 2, 4, 8, 16, 32 at the target rates; a larger one gives a smaller file. An
    output with `rate_weight` (B,) has each image's bits multiplied by it; `bpp_estimate` stays the plain mean.
    """

    tag = "bpp_estimate"

    @classmethod
    def describe(cls) -> Description:
        return Description(metric="bpp_estimate")

    def forward(
        self, batch: dict[str, Any], output: Any, teacher: dict[str, Tensor] | None
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        pixels = batch["image"].shape[2] * batch["image"].shape[3]
        bpp = output.bits_estimate.mean() / pixels
        weight = getattr(output, "rate_weight", None)
        if weight is None:
            return bpp
        weighted = (weight * output.bits_estimate).mean() / pixels
        return weighted, {"bpp_estimate": bpp, "rate_weighted": weighted}

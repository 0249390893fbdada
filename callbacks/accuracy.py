"""Accuracy of every validation and test, beside quality and rate."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from aeic_lightning.errors import UserError
from callbacks.base import EvaluatedImage
from callbacks.quality import QualityMetrics


class AccuracyMetrics(QualityMetrics):
    """`QualityMetrics` with `top1` and `top5` (shares of images), for systems whose steps return logits and labels.

    In the rows of `metrics_val.json` they are 1.0 or 0.0. With five classes or fewer there is no `top5`.

    Args:
        ms_ssim: whether to compute MS-SSIM, for images of at least 176 pixels a side.
        lpips: backbones of LPIPS; none by default, for speed.
        dists: backbones of DISTS; none by default, for speed.
    """

    def __init__(self, ms_ssim: bool = False, lpips: Sequence[str] = (), dists: Sequence[str] = ()) -> None:
        super().__init__(ms_ssim=ms_ssim, lpips=lpips, dists=dists)
        self._hits: dict[str, dict[str, float]] = {}

    @property
    def measured(self) -> list[str]:
        return [*super().measured, "top1", "top5"]

    def _see(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, dataloader_idx: int) -> None:
        if not isinstance(outputs, dict) or not {"logits", "label"} <= set(outputs):
            raise UserError(
                f"{type(pl_module).__name__} returns no logits and labels; AccuracyMetrics is for the systems of "
                "aeic_lightning.classification"
            )
        best = outputs["logits"].argsort(dim=1, descending=True)
        rank = (best == outputs["label"][:, None]).int().argmax(1).tolist()
        limits = (1, 5) if best.shape[1] > 5 else (1,)
        self._hits = {
            name: {f"top{k}": float(place < k) for k in limits}
            for name, place in zip(outputs["name"], rank, strict=True)
        }
        super()._see(trainer, pl_module, outputs, dataloader_idx)

    def see(self, trainer: Trainer, pl_module: LightningModule, image: EvaluatedImage) -> None:
        super().see(trainer, pl_module, image)
        self.rows[-1] |= self._hits[image.name]

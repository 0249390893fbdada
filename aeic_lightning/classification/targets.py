"""Mixup of a batch and of its classes."""

from typing import Any

import timm.data

from aeic_lightning.errors import UserError


class Mixup:
    """Mixup and CutMix of a batch, by timm: a batch has one of them, with one share for all its images.

    It draws from numpy's global state, which is seeded for each batch (`optimization.seed_batch`).

    Args:
        classes: number of classes.
        alpha: parameter of mixup's beta distribution; 0 for none.
        cutmix: the same of CutMix. With both 0 batches stay as they are.
        switch: probability of CutMix where a batch may have either.
    """

    def __init__(self, classes: int, alpha: float, cutmix: float = 0.0, switch: float = 0.5) -> None:
        for name, value in (("mixup", alpha), ("cutmix", cutmix)):
            if value < 0:
                raise UserError(f"{name} must be 0 or more, not {value}")
        if not 0 <= switch <= 1:
            raise UserError(f"cutmix_switch is a probability, not {switch}")
        # Labels are smoothed by the cross-entropy, which gives the same targets: smoothing is linear.
        settings: dict[str, Any] = {
            "mixup_alpha": alpha,
            "cutmix_alpha": cutmix,
            "switch_prob": switch,
            "label_smoothing": 0.0,
        }
        self.mix = timm.data.Mixup(**settings, num_classes=classes) if alpha or cutmix else None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch with "image" (B, 3, H, W) and "label" (B,) -> the same with mixed images and labels (B, classes).

        Raises UserError for a batch of odd size, which cannot be mixed.
        """
        if self.mix is None:
            return batch
        if len(batch["image"]) % 2:
            raise UserError(f"mixup takes batches of even size, not {len(batch['image'])}; change data.batch_size")
        x, label = self.mix(batch["image"].clone(), batch["label"])
        return batch | {"image": x, "label": label}

"""The classes of the data: what a head is trained towards, and their names."""

from typing import Any

import lightning
import timm.data

from aeic_lightning.errors import UserError


class Mixup:
    """Mixup of a batch, by timm.

    It draws from numpy's global state, which is seeded for each batch (`guards.seed_batch`).

    Args:
        classes: number of classes.
        alpha: parameter of mixup's beta distribution; 0 leaves batches as they are.
    """

    def __init__(self, classes: int, alpha: float) -> None:
        if alpha < 0:
            raise UserError(f"mixup must be 0 or more, not {alpha}")
        self.mix = timm.data.Mixup(mixup_alpha=alpha, label_smoothing=0.0, num_classes=classes) if alpha else None

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


def check_classes(trainer: lightning.Trainer, classes: int) -> None:
    """Raise UserError when the data have another number of classes than the head."""
    found = len(trained_classes(trainer))
    if not found:
        raise UserError(
            "the data have no classes; use a labelled data module, such as datamodules.labelled.SampleDigits"
        )
    if found != classes:
        raise UserError(f"the data have {found} classes, the transformer {classes}; set its `classes`")


def trained_classes(trainer: lightning.Trainer) -> list[str]:
    """Names of the classes of the data, which a checkpoint carries; none where the data have no classes."""
    return list(getattr(getattr(trainer, "datamodule", None), "class_names", None) or [])

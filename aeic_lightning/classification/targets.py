"""The classes of the data: what a head is trained towards, and their names."""

import lightning
from timm.data import Mixup
from timm.data.mixup import one_hot
from torch import Tensor

from aeic_lightning.errors import UserError


class SoftTargets:
    """Mixup and label smoothing, by timm; without either, images and classes pass as they are.

    Mixup draws from numpy's global state, which is seeded for each batch (`guards.seed_batch`).
    """

    def __init__(self, classes: int, mixup: float, smoothing: float) -> None:
        self.classes = classes
        self.smoothing = smoothing
        self.mixup = Mixup(mixup_alpha=mixup, label_smoothing=smoothing, num_classes=classes) if mixup else None

    def __call__(self, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) and classes (B,) -> images and targets: (B, classes), or (B,) when nothing is done.

        Raises UserError for a batch of odd size, which cannot be mixed.
        """
        if self.mixup is not None:
            if len(x) % 2:
                raise UserError(f"mixup takes batches of even size, not {len(x)}; change data.batch_size")
            return self.mixup(x.clone(), label)
        if self.smoothing:
            off = self.smoothing / self.classes
            return x, one_hot(label, self.classes, 1 - self.smoothing + off, off)
        return x, label


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

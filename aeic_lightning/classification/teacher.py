"""Frozen classifiers whose logits a student can match."""

from typing import cast

import timm
import torch.nn.functional as F
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from aeic_lightning.checkpoints.checkpoint import RATE_UPDATES, load_model, read_checkpoint
from aeic_lightning.classification.model import ClassificationModel, Normalisation
from aeic_lightning.errors import UserError
from aeic_lightning.models.frozen import Frozen, read_state_dict
from aeic_lightning.models.layers import full_precision


class LogitsTeacher(Frozen):
    """Logits (B, classes) of images (B, 3, H, W) in [-1, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class TimmTeacher(LogitsTeacher):
    """Logits (B, classes) of images in [-1, 1], by any timm classifier with its own normalisation and input size.

    Args:
        name: timm's name of the network, such as "deit_small_patch16_224".
        weights: local safetensors or torch file in timm's naming; nothing is downloaded.
        classes: number of classes, which the file must have too.

    Raises UserError when timm has no such network, or the file is missing or holds another one.
    """

    def __init__(self, name: str, weights: str, classes: int) -> None:
        if not timm.is_model(name):
            raise UserError(f"teacher: timm has no model {name!r}; timm.list_models() lists them")
        net = timm.create_model(name, pretrained=False, num_classes=classes)
        try:
            net.load_state_dict(read_state_dict(weights))
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"teacher: {weights} does not hold {name} with {classes} classes: {reason}") from error
        super().__init__(net)
        data = resolve_model_data_config(net)
        self.size = tuple(data["input_size"][1:])
        self.normalisation = Normalisation(data["mean"], data["std"])

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1]; resized to the network's own input size."""
        with full_precision(x):
            x = x.float()
            if x.shape[2:] != self.size:
                x = F.interpolate(x, self.size, mode="bicubic", antialias=True, align_corners=False)
            return cast(nn.Module, self.net)(self.normalisation(x))


class CheckpointTeacher(LogitsTeacher):
    """Logits (B, classes) of images in [-1, 1] of the size that it was trained on, by a compress-and-classify model.

    The model of step 1 quantises nothing, here as in its training.

    Args:
        path: checkpoint of `ClassificationSystem`.
        classes: number of classes, which it must have too.

    Raises UserError when the file is missing or holds another model.
    """

    def __init__(self, path: str, classes: int) -> None:
        net = load_model(path, "teacher")
        if not isinstance(net, ClassificationModel) or net.sizes.transformer.classes != classes:
            raise UserError(f"teacher: {path} holds no compress-and-classify model of {classes} classes")
        super().__init__(net)
        self.quantise = read_checkpoint(path, "teacher", mmap=True).get(RATE_UPDATES) != 0

    def forward(self, x: Tensor) -> Tensor:
        with full_precision(x):
            return cast(nn.Module, self.net)(x.float(), self.quantise).logits

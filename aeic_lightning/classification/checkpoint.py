"""Reading checkpoints that can classify: the compress-and-classify model, and an AEIC codec with a head."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from aeic_lightning.bitstream.stream import Decoded, reconstruct
from aeic_lightning.checkpoints.checkpoint import (
    CLASSIFICATION,
    from_dict,
    load_aeic,
    load_model,
    load_strictly,
    other_kind,
    read_checkpoint,
    with_prefix,
)
from aeic_lightning.classification.model import KEY, ClassificationConfig, ClassificationModel, PictureClassifier
from aeic_lightning.classification.transformer import LatentTransformer, TransformerConfig
from aeic_lightning.codec import Codec
from aeic_lightning.errors import UserError
from aeic_lightning.images import from_uint8
from aeic_lightning.models.codec import CodecConfig


@dataclass(frozen=True)
class Classifier:
    """Names the classes of what streams hold.

    Args:
        codec: what writes and reads the streams.
        head: gives the logits (B, classes).
        reads: what the head takes: "y_hat" (B, M, h, w), or "x_hat", decoded pictures (B, 3, H, W) in [-1, 1].
        class_names: by number.
    """

    codec: Codec
    head: nn.Module
    reads: str
    class_names: list[str]

    @torch.inference_mode()
    def logits(self, decoded: Decoded) -> Tensor:
        """Logits (classes,) of a stream's latents; a picture is made only for a head that reads pictures."""
        if self.reads == "y_hat":
            return self.head(decoded.y_hat)[0]
        return self.head(from_uint8(reconstruct(self.codec.model, decoded))[None])[0]


def load_classifier(path: str | Path, receiver: bool = False) -> Classifier:
    """The classifier of a checkpoint, in evaluation mode.

    Latents are classified without an AEIC's decoder; with `receiver` it is read all the same, to draw the pictures.
    Raises UserError when the checkpoint is missing, or has none.
    """
    checkpoint = read_checkpoint(path)
    config = checkpoint["model_config"]
    if "head" in config:
        reads, classes = config["head"]["reads"], config["head"]["transformer"]["classes"]
        model = load_aeic(path, receiver=receiver or reads == "x_hat")
        head = load_head(checkpoint, path)
    elif other_kind(config) is CLASSIFICATION:
        model = cast(ClassificationModel, load_model(path))
        head, reads, classes = model.transformer, "y_hat", model.sizes.transformer.classes
    else:
        raise UserError(f"{path} has no classifier; train one with a system of aeic_lightning.classification")
    # A released model of other classes than ImageNet's comes without names.
    names = config.get("class_names") or [str(i) for i in range(classes)]
    return Classifier(Codec(model), head.eval(), reads, names)


def build_model(model_config: dict[str, Any]) -> ClassificationModel:
    """The compress-and-classify model of these sizes, for `checkpoints.checkpoint.load_model`.

    Raises KeyError or TypeError for sizes that this version does not know.
    """
    key = KEY if KEY in model_config else "analysis"  # as it was spelled first
    return ClassificationModel(from_dict(ClassificationConfig, model_config[key]))


def build_head(reads: str, channels: int, config: TransformerConfig, widths: list[int]) -> nn.Module:
    """A head for AEIC: `y_hat` reads its latents of `channels` channels, `x_hat` its decoded pictures."""
    if reads == "y_hat":
        return LatentTransformer(channels, config)
    if reads == "x_hat":
        return PictureClassifier(widths, config)
    raise UserError(f"head: reads is {reads!r}; it must be y_hat or x_hat")


def load_head(checkpoint: dict[str, Any], path: str | Path) -> nn.Module:
    """The head that was trained on an AEIC codec."""
    own = checkpoint["model_config"]["head"]
    channels = from_dict(CodecConfig, checkpoint["model_config"]["codec"]).channels
    head = build_head(own["reads"], channels, from_dict(TransformerConfig, own["transformer"]), own["picture_widths"])
    load_strictly(head, with_prefix(checkpoint, "head."), path, "checkpoint (the head)")
    return head

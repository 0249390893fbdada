"""Reading checkpoints that can classify: the compress-and-classify model, and an AEIC codec with a head."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aeic_lightning.bitstream.stream import Decoded
from aeic_lightning.checkpoints.checkpoint import (
    from_dict,
    load_model,
    load_strictly,
    read_checkpoint,
    solve_prior,
    with_prefix,
)
from aeic_lightning.classification.model import ClassificationConfig, ClassificationModel, PictureClassifier
from aeic_lightning.classification.stream import Streams
from aeic_lightning.classification.transformer import LatentTransformer, TransformerConfig
from aeic_lightning.errors import UserError
from aeic_lightning.images import from_uint8
from aeic_lightning.models.aeic import AEIC


class Classifier:
    """Reads streams and names the classes of what they hold.

    Args:
        model: what writes and reads the streams.
        head: gives the logits (B, classes).
        reads: what the head takes: "y_hat" (B, M, h, w), or "x_hat", decoded pictures (B, 3, H, W) in [-1, 1].
        class_names: by number.
    """

    def __init__(self, model: ClassificationModel | AEIC, head: nn.Module, reads: str, class_names: list[str]) -> None:
        self.model = model.eval()
        self.head = head.eval()
        self.reads = reads
        self.class_names = class_names
        self.streams = Streams(model)

    @torch.inference_mode()
    def logits(self, decoded: Decoded) -> Tensor:
        """Logits (classes,) of a stream's latents; a picture is made only for a head that reads pictures."""
        if self.reads == "y_hat":
            return self.head(decoded.y_hat)[0]
        return self.head(from_uint8(self.streams.picture(decoded))[None])[0]


def load_classifier(path: str | Path) -> Classifier:
    """The classifier of a checkpoint, in evaluation mode.

    Raises UserError when the checkpoint is missing, or has none.
    """
    checkpoint = read_checkpoint(path)
    config = checkpoint["model_config"]
    if "analysis" in config:
        model = _analysis_model(checkpoint, path, "checkpoint")
        head, reads, sizes = model.transformer, "y_hat", config["analysis"]["transformer"]
    elif "head" in config:
        reads, sizes = config["head"]["reads"], config["head"]["transformer"]
        # Latents are classified without the decoder, so its base weights are not read.
        model = load_model(path, receiver=reads == "x_hat")
        head = load_head(checkpoint, path)
    else:
        raise UserError(f"{path} has no classifier; train one with a system of aeic_lightning.classification")
    # A released model of other classes than ImageNet's comes without names.
    names = config.get("class_names") or [str(i) for i in range(sizes["classes"])]
    return Classifier(model, head, reads, names)


def load_streams(path: str | Path, fast: bool = False, receiver: bool = True) -> Streams:
    """What writes and reads the files of a checkpoint of either kind, with or without a classifier.

    With `fast` an AEIC's encoder and decoder compute in bfloat16; without `receiver` its pretrained base is not read,
    and it writes the same files but makes no picture. Raises UserError for a compress-and-classify model
    with `fast`: it has one way only.
    """
    checkpoint = read_checkpoint(path)
    if "analysis" in checkpoint["model_config"]:
        if fast:
            raise UserError(f"{path} is a compress-and-classify model, which has no fast form; leave out --fast")
        return Streams(_analysis_model(checkpoint, path, "checkpoint"))
    return Streams(load_model(path, receiver=receiver), fast)


def load_analysis(path: str | Path, role: str = "checkpoint") -> ClassificationModel:
    """The compress-and-classify model of a checkpoint, in evaluation mode, its prior's tails solved anew."""
    return _analysis_model(read_checkpoint(path, role), path, role)


def _analysis_model(checkpoint: dict[str, Any], path: str | Path, role: str) -> ClassificationModel:
    try:
        config = from_dict(ClassificationConfig, checkpoint["model_config"]["analysis"])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{role}: {path} holds no compress-and-classify model of this version ({error}); "
            "train one with experiments/classification"
        ) from error
    model = ClassificationModel(config)
    load_strictly(model, with_prefix(checkpoint, "model."), path, role)
    solve_prior(model.codec.prior, checkpoint)
    return model.eval()


def build_head(reads: str, channels: int, config: TransformerConfig, widths: list[int]) -> nn.Module:
    """A head for AEIC: `y_hat` reads its latents of so many channels, `x_hat` its decoded pictures."""
    if reads == "y_hat":
        return LatentTransformer(channels, config)
    if reads == "x_hat":
        return PictureClassifier(widths, config)
    raise UserError(f"head: reads is {reads!r}; it must be y_hat or x_hat")


def load_head(checkpoint: dict[str, Any], path: str | Path) -> nn.Module:
    """The head that was trained on an AEIC codec."""
    own = checkpoint["model_config"]["head"]
    channels = checkpoint["model_config"]["codec"]["widths"][-1]
    head = build_head(own["reads"], channels, from_dict(TransformerConfig, own["transformer"]), own["picture_widths"])
    load_strictly(head, with_prefix(checkpoint, "head."), path, "checkpoint (the head)")
    return head

"""Training of a classification head on AEIC, whose streams it classifies."""

from dataclasses import asdict
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from aeic_lightning.checkpoints.checkpoint import model_configs, read_checkpoint
from aeic_lightning.classification.checkpoint import build_head
from aeic_lightning.classification.targets import check_classes, trained_classes
from aeic_lightning.classification.transformer import TransformerConfig
from aeic_lightning.errors import UserError
from aeic_lightning.images import from_uint8, to_uint8
from aeic_lightning.losses.rate_distortion import LossConfig
from aeic_lightning.models.aeic import AEICOutput
from aeic_lightning.systems.compression import CompressionSystem, OptimizationConfig


class AEICClassificationSystem(CompressionSystem):
    """A classification head on an AEIC model: its streams are classified without the diffusion decoder.

    Three ways to train it, which differ in their configs alone:

    - head on a frozen codec: `reads: y_hat`, `train_codec: false`;
    - head and codec together: `reads: y_hat`, `train_codec: true`; alpha CE is added to the loss of rate, distortion
      and perception, and the whole model goes on training from `init_from`;
    - classifier on the decoded pictures: `reads: x_hat`, `train_codec: false`; it sees 8-bit pictures, as a file
      would hold, through an encoder of its own.

    A checkpoint holds the whole AEIC model beside the head, so every command that reads a student's checkpoint reads
    this one too. Heads on one frozen codec read the same files.

    Args:
        init_from: checkpoint of the trained codec, whose sizes are taken over. It must also be there on a resume.
        head: sizes of the transformer.
        loss: weights of rate, distortion and perception, when the codec is trained.
        optimization: as for `CompressionSystem`.
        reads: `y_hat` (decoded latents) or `x_hat` (decoded pictures).
        train_codec: whether the AEIC model is trained too.
        alpha: weight of the cross-entropy beside the other terms, when the codec is trained.
        label_smoothing: share of the target that is spread over all classes.
        picture_widths: channels of the encoder of a classifier of pictures.
        write_streams: see `CompressionSystem`.
        labels: see `CompressionSystem`.
    """

    def __init__(
        self,
        init_from: str,
        head: TransformerConfig,
        loss: LossConfig,
        optimization: OptimizationConfig,
        reads: Literal["y_hat", "x_hat"] = "y_hat",
        train_codec: bool = False,
        alpha: float = 0.3,
        label_smoothing: float = 0.1,
        picture_widths: list[int] = [128, 128, 128, 192],  # noqa: B006 (never changed; LightningCLI shows it)
        write_streams: bool = True,
        labels: dict[str, str | int | float] | None = None,
    ) -> None:
        checkpoint = read_checkpoint(init_from, "init_from")
        super().__init__(*model_configs(checkpoint, init_from), loss, optimization, init_from, write_streams, labels)
        self.imported = not train_codec and bool(checkpoint.get("imported"))
        if train_codec and reads == "x_hat":
            raise UserError(
                "a classifier of pictures is trained on a frozen codec; set train_codec false or read y_hat"
            )
        self.head = build_head(reads, self.model.codec.channels, head, picture_widths)
        self.head_config = {"reads": reads, "transformer": asdict(head), "picture_widths": list(picture_widths)}
        self.reads = reads
        self.train_codec = train_codec
        self.alpha = alpha
        self.label_smoothing = label_smoothing
        self._labels: Tensor | None = None
        if not train_codec:
            self.model.requires_grad_(False)
            self.loss.requires_grad_(False)

    def setup(self, stage: str) -> None:
        check_classes(self.trainer, self.head_config["transformer"]["classes"])
        super().setup(stage)
        if not self.train_codec:
            self.model.requires_grad_(False)  # once more: a pretrained base has come in

    def load_start(self) -> None:
        super().load_start()
        if not self.imported:
            self.model.codec.prior.update_quantiles()

    def step_players(self) -> None:
        prior = self.model.codec.prior
        before = prior.quantiles.clone()
        super().step_players()
        if not self.train_codec:
            prior.quantiles.copy_(before)  # a released prior's medians were not solved for

    def train(self, mode: bool = True) -> "AEICClassificationSystem":
        super().train(mode)
        if not self.train_codec:
            self.model.eval()
        return self

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> STEP_OUTPUT:
        if self.train_codec:
            self._labels = batch["label"]  # for extra_loss
            return super().training_step(batch, batch_idx)
        with torch.no_grad():
            features = self.features(batch["image"])
        loss, terms = self.accuracy_loss(self.head(features), batch["label"])
        self.manual_backward(loss / self.optimization.accumulate)
        self.finish_batch(batch, {"loss": loss} | terms)
        return loss.detach()

    def features(self, x: Tensor) -> Tensor:
        """What the head reads, of a frozen codec; the decoder runs only for a classifier of pictures."""
        if self.reads == "y_hat":
            return self.model.codec(x).y_hat
        return from_uint8(to_uint8(self.model(x).x_hat))

    def extra_loss(self, x: Tensor, output: AEICOutput) -> tuple[Tensor, dict[str, Tensor]]:
        loss, terms = self.accuracy_loss(self.head(output.codec.y_hat), self._labels)
        return self.alpha * loss, terms

    def accuracy_loss(self, logits: Tensor, label: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of logits (B, classes) with classes (B,), and what is logged."""
        loss = F.cross_entropy(logits, label, label_smoothing=self.label_smoothing)
        return loss, {"cross_entropy": loss, "top1": (logits.argmax(1) == label).float().mean()}

    def evaluate_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Adds logits (B, classes) and labels (B,) to what every system returns."""
        output = self.model(batch["image"])
        features = output.codec.y_hat if self.reads == "y_hat" else from_uint8(to_uint8(output.x_hat))
        return {
            "name": batch["name"],
            "x": batch["image"],
            "x_hat": output.x_hat,
            "bits_estimate": output.bits_estimate,
            "logits": self.head(features),
            "label": batch["label"],
        }

    def hparam_columns(self) -> dict[str, Any]:
        own = {"reads": self.reads, "train_codec": self.train_codec, "alpha": self.alpha}
        return super().hparam_columns() | own | self.labels

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["model_config"] |= {"head": self.head_config, "class_names": trained_classes(self.trainer)}
        if self.imported:
            checkpoint["imported"] = True

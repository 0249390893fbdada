"""Training of a classification head on AEIC, whose streams it classifies."""

from dataclasses import asdict
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from aeic_lightning.checkpoints.checkpoint import model_configs, read_checkpoint
from aeic_lightning.classification.checkpoint import build_head
from aeic_lightning.classification.transformer import TransformerConfig
from aeic_lightning.errors import UserError
from aeic_lightning.images import from_uint8, to_uint8
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.systems.compression import CompressionSystem, aeic
from aeic_lightning.systems.optimization import OptimizationConfig
from aeic_lightning.systems.start import Start


class ClassifiedOutput(NamedTuple):
    """What the objective of a head reads."""

    logits: Tensor  # (B, classes)
    bits_estimate: Tensor  # (B,)
    x_hat: Tensor | None  # (B, 3, H, W); None of a frozen codec
    taps: dict[str, Tensor]
    level: Tensor | None = None  # (B,), see `AEICOutput`
    rate_weight: Tensor | None = None  # (B,), see `AEICOutput`


class AEICClassificationSystem(CompressionSystem):
    """A classification head on an AEIC model: its streams are classified without the diffusion decoder.

    Three ways to train it, which differ in their configs alone:

    - head on a frozen codec: `reads: y_hat`, `train_codec: false`;
    - head and codec together: `reads: y_hat`, `train_codec: true`; the objective has rate, distortion and
      perception beside the cross-entropy, and the whole model goes on training from `init_from`;
    - classifier on the decoded pictures: `reads: x_hat`, `train_codec: false`; it sees 8-bit pictures, as a file
      would hold, through an encoder of its own.

    A checkpoint holds the whole AEIC model beside the head, so every command that reads a student's checkpoint reads
    this one too. Heads on one frozen codec read the same files.

    Args:
        init_from: checkpoint of the trained codec, whose sizes are taken over. It must also be there on a resume.
        head: sizes of the transformer.
        objective: as for `CompressionSystem`, with a `CrossEntropy`; of a frozen codec, that alone.
        optimization: as for `CompressionSystem`.
        reads: `y_hat` (decoded latents) or `x_hat` (decoded pictures).
        train_codec: whether the AEIC model is trained too.
        picture_widths: channels of the encoder of a classifier of pictures.
        write_streams: see `CompressionSystem`.
        labels: see `CompressionSystem`.
    """

    def __init__(
        self,
        init_from: str,
        head: TransformerConfig,
        objective: dict[str, Any],
        optimization: OptimizationConfig,
        reads: Literal["y_hat", "x_hat"] = "y_hat",
        train_codec: bool = False,
        picture_widths: list[int] = [128, 128, 128, 192],  # noqa: B006 (never changed; LightningCLI shows it)
        write_streams: bool | int = True,
        labels: dict[str, str | int | float] | None = None,
    ) -> None:
        checkpoint = read_checkpoint(init_from, "init_from")
        codec, decoder = model_configs(checkpoint, init_from)
        start = Start(init_from)
        model = aeic(codec, decoder)
        super().__init__(model, objective, optimization, start, write_streams=write_streams, labels=labels)
        self.imported = not train_codec and bool(checkpoint.get("imported"))
        if optimization.ema:
            raise UserError("optimization.ema averages a codec, not the head beside it; leave it 0")
        if train_codec and reads == "x_hat":
            raise UserError(
                "a classifier of pictures is trained on a frozen codec; set train_codec false or read y_hat"
            )
        self.head = build_head(reads, model.codec.channels, head, picture_widths)
        sizes = {"reads": reads, "transformer": asdict(head), "picture_widths": list(picture_widths)}
        self.further_config = {"head": sizes}
        self.classes = head.classes
        self.reads = reads
        self.train_codec = self.learns = train_codec
        if not train_codec:
            self.model.requires_grad_(False)
            idle = next((name for name, term in self.objective.terms.items() if term.needs_picture), None)
            if idle:
                raise UserError(f"objective: the codec is frozen, {idle} cannot change it; drop it or set train_codec")

    def forward(self, x: Tensor, level: Tensor | float | None = None) -> ClassifiedOutput:
        """Images (B, 3, H, W) in [-1, 1] -> what the objective reads, of a frozen codec no further than the head."""
        if self.train_codec:
            output = self.model(x, level, self.tap_paths)
            logits = self.head(output.codec.y_hat)
            return ClassifiedOutput(
                logits, output.bits_estimate, output.x_hat, output.taps, output.level, output.rate_weight
            )
        with torch.no_grad():
            if self.reads == "y_hat":
                codec = cast(AEIC, self.model).codec(x, level)
                features, bits = codec.y_hat, codec.bits_y + codec.bits_z
            else:
                output = self.model(x, level)
                features, bits = from_uint8(to_uint8(output.x_hat)), output.bits_estimate
        return ClassifiedOutput(self.head(features), bits, None, {})

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
        """Columns of TensorBoard's HParams view beside the run's labels."""
        return {"reads": self.reads, "train_codec": self.train_codec}

"""What systems do in validation, test and predict: reconstructions, estimates, and the bytes of each image's file."""

import sys
from typing import Any, cast

import lightning
import torch
from torch import Tensor

from aeic_lightning.bitstream.stream import Bitstream
from aeic_lightning.codec import Codec
from aeic_lightning.errors import UserError
from aeic_lightning.models.base import CompressionModel
from aeic_lightning.models.layers import full_precision


def check_write_streams(value: bool | int) -> bool | int:
    """The setting as it is. Raises UserError for a number below 0."""
    if value < 0:
        raise UserError(f"write_streams: true, false, or a number of images, 0 or more; not {value}")
    return value


class EvaluatedSystem(lightning.LightningModule):
    """A system with `model` and `evaluate_batch`, whose evaluation steps also write the files of their images.

    The files are those of `compress`, from the same functions. The coder is built from the weights once a validation or
    test; with `write_streams` false it is not, and the metrics have no `bpp`. With a number N the first N images of
    a validation have a file.
    """

    write_streams: bool | int = True
    _bitstream: Bitstream | None = None
    _written = 0  # files of this validation or test, in this process

    def evaluate_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What the callbacks compute metrics from, but for the bytes."""
        raise NotImplementedError

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """`evaluate_batch` with "bytes", the size of each image's file; the callbacks compute the metrics."""
        return self.evaluate_batch(batch) | {"bytes": self.file_sizes(batch["image"])}

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """See `validation_step`."""
        return self.validation_step(batch, batch_idx)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """See `evaluate_batch`; `callbacks.pictures.ReconstructionGrid` writes the pictures."""
        return self.evaluate_batch(batch)

    def file_sizes(self, x: Tensor) -> list[int | None] | None:
        """Bytes of the file of each image of x (B, 3, H, W) in [-1, 1], None for one without; None if none is written.

        Raises UserError for a model whose weights or latents are not finite.
        """
        due = min(len(x), self._due() - self._written)
        if due <= 0:
            return None
        self._written += due
        with full_precision(x):
            return [len(file.data) for file in self.open_bitstream().encode_batch(x[:due])] + [None] * (len(x) - due)

    def open_bitstream(self) -> Bitstream:
        """The writer of this validation's files, with the weights as they are at its first call."""
        if self._bitstream is None:
            with torch.random.fork_rng(devices=[]):  # building layers draws, though their weights are then replaced
                self._bitstream = Codec(cast(CompressionModel, self.model)).bitstream
        return self._bitstream

    def _due(self) -> int:
        """How many files a validation writes in this process."""
        if isinstance(self.write_streams, bool):
            return sys.maxsize if self.write_streams else 0
        rank, processes = self.trainer.global_rank, self.trainer.world_size
        return -(-(self.write_streams - rank) // processes)

    def on_validation_epoch_start(self) -> None:
        self._bitstream = None  # the weights have changed
        self._written = 0

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def on_validation_epoch_end(self) -> None:
        # Lightning would put the number of batches on the x axis.
        self.log("step", float(self.global_step))

"""What the callbacks share: the run folder, the step, the evaluated images, the random state."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torchvision.transforms.functional import to_pil_image

from aeic_lightning.errors import UserError
from aeic_lightning.images import to_uint8


class EvaluatedImage(NamedTuple):
    """One evaluated image, in the 8 bits that a file would hold."""

    name: str
    x: Tensor  # (3, H, W) uint8, the original
    x_hat: Tensor  # (3, H, W) uint8, the reconstruction, cropped to the original's size
    bits: float  # likelihood estimate for the whole image, y and z
    bytes: int | None = None  # of its file; None where no stream was written


class OnEvaluation(Callback):
    """A callback that sees each image of a validation or test. Subclasses override the four lower methods.

    `begin` -> `see` an image ... -> `conclude` (may log) -> `publish` (all metrics are logged, files are written).
    The sanity check before training is passed over. `self.stage` is "val" or "test", the prefix of the tags.
    Raises UserError if a step's output is not the record that the callbacks need, or a name comes twice.
    """

    @property
    def measured(self) -> list[str]:
        """Names of the metrics that it logs, known before the first image: columns of TensorBoard's HParams view."""
        return []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.folder = run_folder(trainer)

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None: ...

    def see(self, trainer: Trainer, pl_module: LightningModule, image: EvaluatedImage) -> None: ...

    def conclude(self, trainer: Trainer, pl_module: LightningModule) -> None: ...

    def publish(self, trainer: Trainer, pl_module: LightningModule) -> None: ...

    def _begin(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.stage = stage
        self._names: set[str] = set()
        if not trainer.sanity_checking:
            self.begin(trainer, pl_module)

    def _see(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, dataloader_idx: int) -> None:
        if trainer.sanity_checking:
            return
        if dataloader_idx > 0:
            raise UserError("one data set a validation or test: metrics pooled over several would mean nothing")
        for image in evaluated_images(outputs, type(pl_module).__name__):
            if image.name in self._names:
                raise UserError(f"two images are called {image.name!r}: give each image of the set a name of its own")
            self._names.add(image.name)
            self.see(trainer, pl_module, image)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer, pl_module, "val")

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer, pl_module, "test")

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self._see(trainer, pl_module, outputs, dataloader_idx)

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self._see(trainer, pl_module, outputs, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.conclude(trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.conclude(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.publish(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.publish(trainer, pl_module)


def evaluated_images(outputs: Any, system: str) -> Iterator[EvaluatedImage]:
    """The images of a step's output; raises UserError if it is not the record that the callbacks need."""
    missing = {"name", "x", "x_hat", "bits_estimate"} - set(outputs if isinstance(outputs, dict) else ())
    if missing:
        raise UserError(f"{system}: validation_step and test_step must return a dict; missing {sorted(missing)}")
    x, x_hat, names, bits = outputs["x"], outputs["x_hat"], outputs["name"], outputs["bits_estimate"]
    sizes = outputs.get("bytes") or [None] * len(x)
    if x.shape != x_hat.shape or not len(names) == len(x) == len(sizes) or bits.shape != x.shape[:1]:
        raise UserError(
            f"{system}: {len(names)} names, x {tuple(x.shape)}, x_hat {tuple(x_hat.shape)}, bits_estimate "
            f"{tuple(bits.shape)} and {len(sizes)} file sizes do not fit: crop x_hat to the original and give one name "
            "and one rate an image"
        )
    for i, name in enumerate(names):
        try:
            yield EvaluatedImage(name, to_uint8(x[i]), to_uint8(x_hat[i]), float(bits[i]), sizes[i])
        except UserError as error:
            raise UserError(f"{name}: {error}") from error


def run_folder(trainer: Trainer) -> Path:
    """The run folder, whatever the loggers, which may write below it."""
    return Path(trainer.default_root_dir)


def tensorboard(trainer: Trainer) -> SummaryWriter | None:
    """The run's TensorBoard writer; None without that logger and on ranks other than 0."""
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                return logger.experiment
    return None


def log_picture(trainer: Trainer, tag: str, picture: Tensor, step: int) -> None:
    """Give a picture, uint8 (3, H, W), to every logger that takes pictures. On rank 0; does nothing on others."""
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(tag, picture, global_step=step)
        elif isinstance(logger, WandbLogger):
            # Weights & Biases counts its own steps; Lightning logs ours beside each value.
            logger.log_image(tag, [to_pil_image(picture)], caption=[f"step {step}"])
        elif isinstance(logger, MLFlowLogger):
            pixels = picture.permute(1, 2, 0).cpu().numpy()
            logger.experiment.log_image(logger.run_id, pixels, f"{tag}/step_{step:06d}.png")


def generator_step(trainer: Trainer, pl_module: LightningModule) -> int:
    """Generator updates so far: `global_step` counts the discriminator's too, so systems count their own."""
    return int(getattr(pl_module, "generator_step", trainer.global_step))


def gather(trainer: Trainer, value: Any) -> list[Any]:
    """Every rank's picklable value, in rank order, on every rank."""
    if trainer.world_size == 1:
        return [value]
    values = [None] * trainer.world_size
    torch.distributed.all_gather_object(values, value)
    return values

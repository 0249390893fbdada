"""Originals beside reconstructions, and the reconstructions themselves as files."""

import json
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from aeic_lightning.errors import UserError
from aeic_lightning.files import file_name, write_whole
from aeic_lightning.images import save_png
from aeic_lightning.metrics.pixels import bits_per_pixel, psnr
from callbacks.base import EvaluatedImage, OnEvaluation, evaluated_images, gather, generator_step, log_picture

CAPTION_HEIGHT = 22  # pixels, below an image of up to 234 pixels; a wider one has larger letters
SMALLEST_FONT = 13  # pixels
LONGEST_CAPTION = 60  # characters of an image's name


class ReconstructionGrid(OnEvaluation):
    """A picture of the first images, original on the left and reconstruction on the right, with PSNR and bpp.

    To every logger that takes pictures (`pictures/val`, which stands before the plots) and to
    `<run folder>/reconstructions/step_XXXXXX.png` (`test_step_XXXXXX.png` of a test).

    Args:
        max_images: rows of the picture: the first images that rank 0 sees.
        every_n_validations: draw after every n-th validation; a test is always drawn.
        max_side: larger images are shrunk to this many pixels for the picture, which then says so.
        save_images: write every image, 8 bits and lossless, as `<run folder>/reconstructions/<name>.png`, and its
            original beside it as `<name>_original.png`. Images of sub-folders keep them in their name, `a/b` as `a__b`;
            names that are long or would be ambiguous so end in a hash, and `names.json` says whose. Each validation
            and test overwrites them, so that the last one's are there however the run ends.

    `predict` writes `<run folder>/predictions/<name>.png`, whatever the arguments.
    """

    def __init__(
        self, max_images: int = 4, every_n_validations: int = 1, max_side: int = 768, save_images: bool = False
    ) -> None:
        if min(max_images, every_n_validations, max_side) < 1:
            raise UserError("ReconstructionGrid: max_images, every_n_validations and max_side start at 1")
        self.max_images = max_images
        self.every_n_validations = every_n_validations
        self.max_side = max_side
        self.save_images = save_images
        self.validations = 0
        self.rows: list[Image.Image] = []
        self.names: dict[str, str] = {}  # file -> image, where they differ

    def state_dict(self) -> dict:
        return {"validations": self.validations}

    def load_state_dict(self, state_dict: dict) -> None:
        self.validations = state_dict["validations"]

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rows = []
        due = self.stage == "test" or self.validations % self.every_n_validations == 0
        self.wanted = self.max_images if due and trainer.is_global_zero else 0
        self.validations += self.stage == "val"

    def see(self, trainer: Trainer, pl_module: LightningModule, image: EvaluatedImage) -> None:
        if self.save_images:
            name = self._file_name(image.name)
            save_png(self.folder / "reconstructions" / f"{name}.png", image.x_hat)
            save_png(self.folder / "reconstructions" / f"{name}_original.png", image.x)
        if len(self.rows) < self.wanted:
            self.rows.append(_row(image, self.max_side))

    def on_predict_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        for image in evaluated_images(outputs, type(pl_module).__name__):
            save_png(self.folder / "predictions" / f"{self._file_name(image.name)}.png", image.x_hat)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write_names(trainer, self.folder / "predictions")

    def _file_name(self, name: str) -> str:
        file = file_name(name)
        if file != name:
            self.names[f"{file}.png"] = name
        return file

    def _write_names(self, trainer: Trainer, folder: Path) -> None:
        names = {file: name for rank in gather(trainer, self.names) for file, name in rank.items()}
        if names and trainer.is_global_zero:
            write_whole(folder / "names.json", json.dumps(names, indent=1, sort_keys=True) + "\n")

    def publish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write_names(trainer, self.folder / "reconstructions")
        if not self.rows:
            return
        picture = pil_to_tensor(_stack(self.rows))
        step = generator_step(trainer, pl_module)
        prefix = "test_" if self.stage == "test" else ""
        save_png(self.folder / "reconstructions" / f"{prefix}step_{step:06d}.png", picture)
        log_picture(trainer, f"pictures/{self.stage}", picture, step)
        self.rows = []


def _row(image: EvaluatedImage, max_side: int) -> Image.Image:
    height, width = image.x.shape[-2:]
    if image.bytes is None:
        rate = f"{bits_per_pixel(image.bits, height, width):.4f} bpp estimated"
    else:
        rate = f"{bits_per_pixel(8 * image.bytes, height, width):.4f} bpp"
    quality = psnr(image.x_hat[None], image.x[None]).item()
    scale = min(1.0, max_side / max(height, width))
    shown = "" if scale == 1 else f"  (shown at {scale:.0%})"
    name = image.name if len(image.name) <= LONGEST_CAPTION else f"...{image.name[-LONGEST_CAPTION:]}"
    original = _captioned(image.x, scale, f"{name}{shown}")
    reconstruction = _captioned(image.x_hat, scale, f"PSNR {quality:.2f} dB  {rate}")
    row = Image.new("RGB", (original.width + reconstruction.width, original.height), "white")
    row.paste(original, (0, 0))
    row.paste(reconstruction, (original.width, 0))
    return row


def _captioned(image: Tensor, scale: float, caption: str) -> Image.Image:
    picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    if scale < 1:
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    # TensorBoard shows a wide picture at a quarter of its size.
    size = largest = max(SMALLEST_FONT, picture.width // 18)
    font = ImageFont.load_default(size=size)
    while size > SMALLEST_FONT and font.getlength(caption) + 8 > picture.width:
        size -= 1
        font = ImageFont.load_default(size=size)
    width = max(picture.width, int(font.getlength(caption)) + 8)
    top = CAPTION_HEIGHT * largest // SMALLEST_FONT
    framed = Image.new("RGB", (width, picture.height + top), "white")
    framed.paste(picture, (0, top))
    ImageDraw.Draw(framed).text((4, top // 7), caption, fill="black", font=font)
    return framed


def _stack(rows: list[Image.Image]) -> Image.Image:
    picture = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        picture.paste(row, (0, top))
        top += row.height
    return picture

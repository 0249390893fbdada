"""Image files as 8-bit RGB, and 8-bit images as the floats that models take.

The only place where image files are decoded and where floats become 8-bit levels: every published value is of the
image that a file would hold.
"""

import contextlib
import io
import os
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from aeic_lightning import pictures
from aeic_lightning.errors import ImageWarning, UserError
from aeic_lightning.files import write_whole
from aeic_lightning.output import shown
from aeic_lightning.pictures import MAX_PIXELS

ROWS = 1024
"""Of a picture that are rounded at a time."""


def read_image(source: Path | str | bytes, name: str | None = None, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image to RGB, (H, W, 3) uint8, C-contiguous and writable.

    The content decides the format, not the suffix: JPEG, PNG, WebP, BMP, TIFF, PPM, GIF or AVIF; of several
    pictures in one file the first, with a warning.

    - The EXIF orientation is applied, and 1-bit, grey, palette, CMYK and YCbCr images are converted.
    - Colours of a file with an ICC profile are converted to sRGB, relative colorimetric with black point compensation;
      a profile that moves no colour by more than two levels changes nothing. Values without one are taken as sRGB.
      A damaged profile, or one of another kind of pixels, is ignored with a warning.
    - Transparency (an alpha channel, or a transparent colour of a palette, grey or RGB image) is laid over white.
    - 16-bit channels keep their high byte, as in libpng's `png_set_strip_16`. This is exact for 8-bit images that were
      widened (v * 257), and at most one level below the nearest 8-bit value otherwise. 32-bit integers are accepted
      when they hold 16-bit values.
    - Floating point must lie in [0, 1], and is rounded to the nearest of 256 levels.
    - Where damaged metadata keeps the file from being read, all of it is left out but an orientation that can be
      read, with a warning.

    Args:
        source: path of a file, or the file's bytes.
        name: what to call the image in errors; by default its path.
        max_pixels: larger images are refused before anything is decoded. Pillow itself refuses above twice
            `PIL.Image.MAX_IMAGE_PIXELS` (179 million), whatever is set here.

    Raises:
        UserError: naming the image and what is wrong with it: missing, unreadable, empty, not an image of these
            formats, cut short or damaged, more than `max_pixels` pixels, values without a known range.
    """
    name = _name(source, name)
    data = _bytes(source, name)
    with _in_words():
        pixels, remarks = pictures.read(data, name, max_pixels)
    _warn(name, remarks)
    return pixels


def pixels_of(image: Image.Image, name: str = "the image") -> np.ndarray:
    """As `read_image`, of an image that Pillow has opened: its pixels as the file of it would be read.

    The orientation of an EXIF block that is still there is applied: a picture that was turned by hand is given as
    `PIL.ImageOps.exif_transpose` gives it. Raises UserError.
    """
    with _in_words():
        pixels, remarks = pictures.pixels_of(image, name)
    _warn(name, remarks)
    return pixels


def to_rgb(image: Image.Image, name: str = "the image") -> Image.Image:
    """A PIL image of any mode as RGB, its colours and orientation as they are. Raises UserError as `read_image`."""
    with _in_words():
        return pictures.to_rgb(image, name)


def image_size(source: Path | str | bytes, name: str | None = None, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(height, width) in pixels from the header alone, before the EXIF orientation. Raises as `read_image` does."""
    name = _name(source, name)
    with _in_words():
        return pictures.size(_bytes(source, name), name, max_pixels)


def to_uint8(image: Tensor) -> Tensor:
    """Float image in [-1, 1], any shape, to uint8 in 0..255: clamped, then rounded to the nearest level.

    Raises UserError for NaN, which a cast would turn into a plausible picture.
    """
    image = image.detach()
    levels = torch.empty_like(image, dtype=torch.uint8)
    # Some rows at a time: a whole picture of floats beside this one may be a gigabyte.
    pieces = (torch.atleast_2d(x).split(ROWS, dim=-2) for x in (image, levels))
    for values, target in zip(*pieces, strict=True):
        if values.isnan().any():
            raise UserError(
                "the image holds NaN: the model has diverged; lower the learning rate or resume from before"
            )
        target.copy_(values.float().clamp(-1, 1).add_(1).mul_(127.5).round_())
    return levels


def from_uint8(image: Tensor) -> Tensor:
    """uint8 in 0..255 to float32 in [-1, 1]; `to_uint8` gives back the same levels."""
    return image.to(torch.float32, copy=True).div_(127.5).sub_(1)  # a plain division gives the default type


def save_png(path: str | Path, image: Tensor) -> None:
    """Write a uint8 image (3, H, W) losslessly as PNG, whole or not at all."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(buffer, "PNG")
    write_whole(path, buffer.getvalue())


def _name(source: Path | str | bytes, name: str | None) -> str:
    if name is not None:
        return name
    return "image" if isinstance(source, bytes) else str(source)


def _bytes(source: Path | str | bytes, name: str) -> bytes:
    if not isinstance(source, bytes):
        try:
            if not stat.S_ISREG(os.stat(source).st_mode):  # a pipe would be waited for
                raise UserError(f"cannot read image {name}: it is no file (a directory, pipe or device); take it out")
            source = Path(source).read_bytes()
        except OSError as error:
            raise UserError(f"cannot read image {name}: {error.strerror or error}; check the path") from error
    if not source:
        raise UserError(f"cannot decode {name}: the file is empty; replace or remove it")
    return source


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except pictures.PictureError as error:
        raise UserError(str(error)) from error


def _warn(name: str, remarks: list[str]) -> None:
    for remark in remarks:
        warnings.warn(f"{shown(name)}: {remark}", ImageWarning, stacklevel=3)

"""Image files as 8-bit RGB, and 8-bit images as the floats that models take.

The only place where image files are decoded and where floats become 8-bit levels: every published value is of the
image that a file would hold.
"""

import contextlib
import io
import os
import stat
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from aeic_lightning.errors import UserError
from aeic_lightning.files import write_whole
from aeic_lightning.image_metadata import without_metadata

# A closed list: Pillow would otherwise try every plugin, among them ones that start other programs (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")
TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What an EXIF orientation asks for; 1 asks for nothing."""

MAX_PIXELS = 80_000_000
"""Default limit on the pixels of one image: 8192 x 8192 (67.1 million) and some slack."""


def read_image(source: Path | str | bytes, name: str | None = None, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image to RGB, (H, W, 3) uint8, C-contiguous and writable.

    The content decides the format, not the suffix: JPEG, PNG, WebP, BMP, TIFF or PPM; the first frame of an animation.

    - The EXIF orientation is applied, and 1-bit, grey, palette, CMYK and YCbCr images are converted. Colour profiles
      are not: values are taken as sRGB.
    - Transparency (an alpha channel, or a transparent colour of a palette, grey or RGB image) is laid over white.
    - 16-bit channels keep their high byte, as in libpng's `png_set_strip_16`. This is exact for 8-bit images that were
      widened (v * 257), and at most one level below the nearest 8-bit value otherwise. 32-bit integers are accepted
      when they hold 16-bit values.
    - Floating point must lie in [0, 1], and is rounded to the nearest of 256 levels.
    - Damaged metadata (EXIF, colour profile, text) is left out, the orientation too where it cannot be read.

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
    try:
        return _decode(data, name, max_pixels)
    except UserError:
        bare, orientation = without_metadata(data)
        with contextlib.suppress(UserError):
            return _decode(bare, name, max_pixels, orientation)
        raise


def image_size(source: Path | str | bytes, name: str | None = None, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(height, width) in pixels from the header alone, before the EXIF orientation. Raises as `read_image` does."""
    name = _name(source, name)
    data = _bytes(source, name)
    try:
        image = _open(data, name, max_pixels)
    except UserError:
        with contextlib.suppress(UserError):
            bare = _open(without_metadata(data)[0], name, max_pixels)
            return bare.height, bare.width
        raise
    return image.height, image.width


def to_uint8(image: Tensor) -> Tensor:
    """Float image in [-1, 1], any shape, to uint8 in 0..255: clamped, then rounded to the nearest level.

    Raises UserError for NaN, which a cast would turn into a plausible picture.
    """
    image = image.detach().float()
    if image.isnan().any():
        raise UserError("the image holds NaN: the model has diverged; lower the learning rate or resume from before")
    return ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def from_uint8(image: Tensor) -> Tensor:
    """uint8 in 0..255 to float32 in [-1, 1]; `to_uint8` gives back the same levels."""
    return image.float() / 127.5 - 1


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


def _decode(data: bytes, name: str, max_pixels: int, orientation: int | None = None) -> np.ndarray:
    """By the orientation that the file tells, or by this one."""
    with _open(data, name, max_pixels) as image:
        try:
            if orientation is None:
                upright = ImageOps.exif_transpose(image)
            else:
                upright = image.transpose(TRANSPOSE[orientation]) if orientation in TRANSPOSE else image
            return np.array(to_rgb(upright, name))
        except UserError:
            raise
        except Exception as error:  # Pillow's decoders raise almost any class on malformed data
            raise UserError(
                f"cannot decode {name}: the file is cut short or damaged ({_one_line(error)}); replace or remove it"
            ) from error


def _open(data: bytes, name: str, max_pixels: int) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # The limit below is ours; Pillow's warning at another one would only confuse.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise UserError(f"refused {name}: {_one_line(error)}; make the image smaller") from error
    except Image.UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise UserError(
            f"cannot decode {name}: its content is not a known image ({known}, up to 16 bits a colour channel)"
            "; replace or remove it"
        ) from error
    except Exception as error:
        raise UserError(
            f"cannot decode {name}: the header is damaged ({_one_line(error)}); replace or remove it"
        ) from error
    if image.width * image.height > max_pixels:
        raise UserError(
            f"refused {name}: {image.width} x {image.height} is more than {max_pixels} pixels"
            "; make the image smaller or raise max_pixels"
        )
    return image


def to_rgb(image: Image.Image, name: str = "the image") -> Image.Image:
    """A PIL image of any mode as RGB; see `read_image`. Raises UserError for values without a known range."""
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow's own conversion of these modes to 8 bits clips.
        image = _to_8_bit_grey(image, name)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _to_8_bit_grey(image: Image.Image, name: str) -> Image.Image:
    values = np.asarray(image)
    upper = 1 if image.mode == "F" else 65535
    if not (values.min() >= 0 and values.max() <= upper):  # also refuses NaN
        raise UserError(
            f"cannot convert {name} to 8 bits: grey values from {values.min():g} to {values.max():g} "
            f"are outside [0, {upper}]; rescale the image"
        )
    grey = np.rint(values * 255) if image.mode == "F" else values >> 8
    grey = Image.fromarray(grey.astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is not None:
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())

"""From a file's bytes or an opened image to pixels: formats, limits, orientation, colours, depth, transparency."""

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageFile

from .colour import signalled, to_srgb
from .metadata import ORIENTATION, without_metadata

# A closed list: Pillow would otherwise try every plugin, among them ones that start other programs (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF", "AVIF")
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


HEAD = 1 << 16
"""So many bytes of a file hold what it says of its colours."""


class PictureError(Exception):
    """What is wrong with an image, in one line that names it."""


def read(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> tuple[np.ndarray, list[str]]:
    """Pixels, uint8 (H, W, 3), and remarks: what of the file was left out or ignored. Raises PictureError."""
    try:
        return _decode(data, name, max_pixels)
    except PictureError:
        bare, orientation = without_metadata(data)
        with contextlib.suppress(PictureError):
            pixels, remarks = _decode(bare, name, max_pixels, orientation)
            return pixels, [*remarks, "its metadata is damaged and was left out, a colour profile included"]
        raise


def size(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(height, width) from the header, before the orientation. Raises PictureError."""
    try:
        image = _open(data, name, max_pixels)
    except PictureError:
        with contextlib.suppress(PictureError):
            bare = _open(without_metadata(data)[0], name, max_pixels)
            return bare.height, bare.width
        raise
    return image.height, image.width


def pixels_of(
    image: Image.Image, name: str = "the image", orientation: int | None = None
) -> tuple[np.ndarray, list[str]]:
    """As `read`, of an image that Pillow has opened or made, which may not be decoded yet.

    `orientation` replaces the one that the image tells. Raises PictureError.
    """
    try:
        remarks, head = [], _head(image)
        with _whole_files_only():
            image.load()  # a TIFF is turned by it, and then has no orientation any more
        upright = _eight_bits(image, name)
        if profile := image.info.get("icc_profile"):
            upright, problem = to_srgb(upright, profile)
            remarks += [problem] if problem else []
        elif signal := signalled(head):
            remarks.append(f"its colours are marked as {signal} and were read as sRGB")
        orientation = _orientation(image) if orientation is None else orientation
        if orientation in TRANSPOSE:
            upright = upright.transpose(TRANSPOSE[orientation])
        pixels = np.array(_over_white(upright))
        if (frames := _frames(image)) > 1:
            remarks.append(f"the first of its {frames} pictures is taken")
        return pixels, remarks
    except PictureError:
        raise
    except Exception as error:  # Pillow's decoders raise almost any class on malformed data
        raise PictureError(
            f"cannot decode {name}: the file is cut short or damaged ({_one_line(error)}); replace or remove it"
        ) from error


def to_rgb(image: Image.Image, name: str = "the image") -> Image.Image:
    """An image of any mode as RGB, its colours and orientation as they are. Raises PictureError."""
    return _over_white(_eight_bits(image, name))


def _decode(data: bytes, name: str, max_pixels: int, orientation: int | None = None) -> tuple[np.ndarray, list[str]]:
    with _open(data, name, max_pixels) as image:
        return pixels_of(image, name, orientation)


def _open(data: bytes, name: str, max_pixels: int) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # The limit below is ours; Pillow's warning at another one would only confuse.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise PictureError(f"refused {name}: {_one_line(error)}; make the image smaller") from error
    except Image.UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise PictureError(
            f"cannot decode {name}: its content is not a known image ({known}, up to 16 bits a colour channel)"
            "; replace or remove it"
        ) from error
    except Exception as error:
        raise PictureError(
            f"cannot decode {name}: the header is damaged ({_one_line(error)}); replace or remove it"
        ) from error
    if image.width * image.height > max_pixels:
        raise PictureError(
            f"refused {name}: {image.width} x {image.height} is more than {max_pixels} pixels"
            "; make the image smaller or raise max_pixels"
        )
    return image


def _head(image: Image.Image) -> bytes:
    """The beginning of an opened image's file, where there is one."""
    try:
        file = image.fp  # pyright: ignore[reportAttributeAccessIssue] (an ImageFile's)
        position = file.tell()
        file.seek(0)
        head = file.read(HEAD)
        file.seek(position)
        return head
    except Exception:  # none, closed, or not seekable
        return b""


_READERS = threading.Lock()
_reading: list[bool] = []
"""What Pillow's switch was for each of those who read at present; the first has what others had set."""


@contextlib.contextmanager
def _whole_files_only() -> Iterator[None]:
    """A file that is cut short is an error, even where other code of this process has had Pillow accept it."""
    with _READERS:
        _reading.append(ImageFile.LOAD_TRUNCATED_IMAGES if not _reading else _reading[0])
        ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        with _READERS:
            before = _reading.pop()
            if not _reading:
                ImageFile.LOAD_TRUNCATED_IMAGES = before


def _frames(image: Image.Image) -> int:
    """Pictures of a file that is at its first one: only once that is decoded, since Pillow reads on to count them."""
    try:
        # Several pictures in a JPEG are a photograph and maps of its depth or brightness.
        return 1 if image.format in ("JPEG", "MPO") or image.tell() else getattr(image, "n_frames", 1)
    except Exception:  # a later picture is damaged
        return 1


def _orientation(image: Image.Image) -> int:
    """By the EXIF block, or by XMP where that has none; 1 where neither can be read."""
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow raises almost any class on malformed EXIF
        return 1


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    """An image whose channels have 8 bits at most. Pillow's own conversion of wider grey clips."""
    if not (image.mode.startswith("I") or image.mode == "F"):
        return image
    values = np.asarray(image)
    upper = 1 if image.mode == "F" else 65535
    if not (values.min() >= 0 and values.max() <= upper):  # also refuses NaN
        raise PictureError(
            f"cannot convert {name} to 8 bits: grey values from {values.min():g} to {values.max():g} "
            f"are outside [0, {upper}]; rescale the image"
        )
    grey = np.rint(values * 255) if image.mode == "F" else values >> 8
    grey = Image.fromarray(grey.astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is not None:
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _over_white(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())

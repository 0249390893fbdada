"""Image files, and opened images, as 8-bit sRGB: the one way in for commands, Python, the page and `send.py`.

Formats, limits, orientation, depth, transparency; then what a file's numbers mean as sRGB, by a colour profile (ICC) or
by numbers that signal it; then files whose metadata is broken and whose pixels are whole.

Python's library, numpy and Pillow alone, and nothing of the rest of the project: `export` copies this file beside
`send.py`, so that a sender without the package sees the same pixels.
"""

import contextlib
import io
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, cast

import numpy as np
from PIL import Image, ImageFile

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
"""The first bytes of a file, which hold what it says of its colours."""


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


# ---------------------------------------------------------------------- colours

NEAR = 2
"""A profile that moves no colour by more than this many levels is sRGB under another name: its pixels stay."""
MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Mode in which an image is handed to a profile of this colour space."""


def to_srgb(image: Image.Image, profile: bytes) -> tuple[Image.Image, str | None]:
    """An 8-bit image in sRGB, and what is wrong with the profile, in which case the image is as it was.

    Relative colorimetric with black point compensation. An alpha channel is kept.
    """
    try:
        mode, transform = _transform(profile)
    except Exception as error:  # littlecms refuses by several classes
        return image, f"its colour profile is damaged and was ignored ({' '.join(str(error).split())})"
    grey = image.mode in ("1", "L", "LA", "La")
    if (mode == "CMYK") != (image.mode == "CMYK") or (mode == "L" and not grey):
        return image, f"its colour profile is one of {mode} and was ignored: the pixels are {image.mode}"
    if transform is None:
        return image, None
    if not image.has_transparency_data:
        return transform.apply(image.convert(mode)), None
    image = image.convert("RGBA")
    alpha = image.getchannel("A")
    converted = transform.apply(image.convert("RGB").convert(mode))
    converted.putalpha(alpha)
    return converted, None


@lru_cache(maxsize=16)
def _transform(profile: bytes) -> tuple[str, Any]:
    """The mode that a profile takes, and its transform to RGB; None where that would change nothing."""
    from PIL import ImageCms

    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = cast(Any, opened.profile).xcolor_space.strip()
    if space not in MODES:
        raise ValueError(f"a profile of {space}")
    mode = MODES[space]
    transform = ImageCms.ImageCmsTransform(
        opened, ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")), mode, "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC, flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )  # fmt: skip
    if mode == "CMYK":
        return mode, transform
    steps = np.arange(0, 256, 15 if mode == "RGB" else 1, dtype=np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3) if mode == "RGB" else steps[None]
    given = Image.fromarray(grid)
    moved = np.array(transform.apply(given), dtype=int) - np.array(given.convert("RGB"))
    return mode, None if abs(moved).max() <= NEAR else transform


PRIMARIES = {1: "BT.709", 9: "BT.2020", 11: "DCI-P3", 12: "Display P3"}
TRANSFERS = {8: "linear", 13: "sRGB", 16: "PQ", 18: "HLG"}
AS_SRGB = (1, 2, 6, 13, 14, 15)
"""Transfers of ITU-T H.273 that browsers show as sRGB: those of BT.709, 601 and 2020, and unspecified ones."""
GAMMA = 45455
"""sRGB's, in PNG's units."""


def signalled(head: bytes) -> str | None:
    """The colours that a file without a profile signals, in words, where they are not sRGB's: PNG's cICP and gAMA, and
    AVIF's nclx.

    Args:
        head: the beginning of the file.
    """
    if head.startswith(b"\x89PNG"):
        chunks = _png_chunks(head)
        if (code := chunks.get(b"cICP", b"")) and len(code) == 4:
            return _code_points(code[0], code[1], "cICP")
        gamma = chunks.get(b"gAMA", b"")
        if len(gamma) == 4 and b"sRGB" not in chunks and abs(struct.unpack(">I", gamma)[0] - GAMMA) > GAMMA // 20:
            return f"of gamma {100_000 / max(1, struct.unpack('>I', gamma)[0]):.3g} (gAMA)"
    if head[4:8] == b"ftyp" and (at := head.find(b"colrnclx")) > 0 and len(head) >= at + 12:
        return _code_points(*struct.unpack_from(">HH", head, at + 8), "nclx")
    return None


def _code_points(primaries: int, transfer: int, kind: str) -> str | None:
    if primaries in (1, 2) and transfer in AS_SRGB:
        return None
    names = PRIMARIES.get(primaries, f"primaries {primaries}"), TRANSFERS.get(transfer, f"transfer {transfer}")
    return f"{names[0]}, {names[1]} ({kind})"


def _png_chunks(head: bytes) -> dict[bytes, bytes]:
    """The chunks before the pixels."""
    found, at = {}, 8
    while at + 8 <= len(head):
        length, kind = struct.unpack_from(">I4s", head, at)
        if kind == b"IDAT":
            break
        found[kind] = head[at + 8 : at + 8 + length]
        at += 12 + length
    return found


# ---------------------------------------------------------------------- broken metadata

# Pillow refuses a file when a text, a colour profile or an EXIF block in it is damaged. `without_metadata` takes out
# what is known to be metadata, in PNG, JPEG, WebP and TIFF, and nothing else. A file that is cut short, or whose
# pixels, palette or transparency are damaged, stays so.

PNG = b"\x89PNG\r\n\x1a\n"
PNG_METADATA = frozenset(b"tEXt zTXt iTXt eXIf iCCP cICP sRGB gAMA cHRM sBIT bKGD hIST pHYs sPLT tIME oFFs".split())
WEBP_METADATA = (b"EXIF", b"XMP ", b"ICCP")
# Size, samples, compression, strips, orientation, predictor, colour map, tiles, alpha, JPEG tables, YCbCr.
TIFF_PIXELS = frozenset(
    (254, 255, 256, 257, 258, 259, 262, 263, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325)
) | frozenset((332, 338, 339, 340, 341, 347, *range(512, 522), *range(529, 533)))
ORIENTATION = 274  # EXIF 2.3


def without_metadata(data: bytes) -> tuple[bytes, int]:
    """The file without its metadata, and the EXIF orientation (1 to 8) that is to be applied to its pixels.

    The orientation is 1 where the EXIF block cannot be read, and for TIFF, which keeps its own. Files of other formats
    come back as they are.
    """
    if data.startswith(PNG):
        return _png(data)
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _tiff(data), 1
    return data, 1


def _png(data: bytes) -> tuple[bytes, int]:
    kept, exif, position = [PNG], b"", len(PNG)
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        chunk = data[position:end]
        if kind == b"eXIf":
            exif = chunk[8:-4]
        # Others that a decoder may ignore go too, but one with a wrong checksum may have been the transparency.
        ignorable = kind[0] & 0x20 and kind != b"tRNS" and chunk[-4:] == struct.pack(">I", zlib.crc32(chunk[4:-4]))
        if kind not in PNG_METADATA and not ignorable:
            kept.append(chunk)
        position = end
    return b"".join(kept), _exif_orientation(exif)


def _jpeg(data: bytes) -> tuple[bytes, int]:
    kept, exif, position = [data[:2]], b"", 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker, length = data[position + 1], struct.unpack_from(">H", data, position + 2)[0]
        if marker == 0xFF:  # padding
            position += 1
            continue
        if marker == 0xDA or length < 2:  # the scan: pixels from here on
            break
        segment = data[position : position + 2 + length]
        if marker == 0xE1 and segment[4:10] == b"Exif\0\0":
            exif = exif or segment[10:]
        # JFIF (APP0, where it is complete) and Adobe (APP14) tell the colour space.
        if (marker == 0xE0 and length >= 16) or marker == 0xEE or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(segment)
        position += 2 + length
    return b"".join(kept) + data[position:], _exif_orientation(exif)


def _webp(data: bytes) -> tuple[bytes, int]:
    kept, exif, position = [], b"", 12
    while position + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, position)
        end = position + 8 + length + length % 2
        if kind not in WEBP_METADATA:
            kept.append(data[position:end])
        elif kind == b"EXIF":
            exif = data[position + 8 : position + 8 + length]
        position = end
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body, _exif_orientation(exif)


def _tiff(data: bytes) -> bytes:
    """Drops the other tags of the first page, and the pages behind it."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    count_format, offset_format, entry_size = (order + "Q", order + "Q", 20) if big else (order + "H", order + "I", 12)
    try:
        (start,) = struct.unpack_from(offset_format, data, 8 if big else 4)
        (count,) = struct.unpack_from(count_format, data, start)
    except struct.error:
        return data
    first = start + struct.calcsize(count_format)
    kept = [entry for entry in _entries(data, first, count, entry_size) if _tag(entry, order) in TIFF_PIXELS]
    page = struct.pack(count_format, len(kept)) + b"".join(kept) + struct.pack(offset_format, 0)
    return data[:start] + page + data[start + len(page) :]


def _entries(data: bytes, first: int, count: int, size: int) -> Iterator[bytes]:
    for position in range(first, min(first + count * size, len(data) - size + 1), size):
        yield data[position : position + size]


def _tag(entry: bytes, order: str) -> int:
    return struct.unpack_from(order + "H", entry)[0]


def _exif_orientation(exif: bytes) -> int:
    if not exif:
        return 1
    found = Image.Exif()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is known to be broken
        try:
            found.load(exif)
            value = found.get(ORIENTATION, 1)
        except Exception:  # Pillow raises almost any class on malformed EXIF
            return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1

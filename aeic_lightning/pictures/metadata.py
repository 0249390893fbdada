"""Image files without their metadata, for files whose metadata is broken and whose pixels are whole.

Pillow refuses a file when a text, a colour profile or an EXIF block in it is damaged. `without_metadata` takes out what
is known to be metadata, in PNG, JPEG, WebP and TIFF, and nothing else. A file that is cut short, or whose pixels,
palette or transparency are damaged, stays so.
"""

import struct
import warnings
import zlib
from collections.abc import Iterator

from PIL import Image

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
    return b"".join(kept), _orientation(exif)


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
    return b"".join(kept) + data[position:], _orientation(exif)


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
    return b"RIFF" + struct.pack("<I", len(body)) + body, _orientation(exif)


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


def _orientation(exif: bytes) -> int:
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

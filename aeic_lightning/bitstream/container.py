"""The `.aeic` file: 11 to 14 bytes of header, then the range coder's bytes. docs/bitstream.md lists the fields."""

import hashlib
import math
from numbers import Real
from typing import NamedTuple

from aeic_lightning.bitstream.send import varint
from aeic_lightning.errors import UserError

MAGIC = 0xAE  # the version is added: 0xAE is version 0
VERSION = 1
LARGEST_SIDE = 8192
LARGEST_FILE = 1 << 28
_MODEL, _FILE, _LATENTS = 2, 3, 3  # bytes of the three check values


class Stream(NamedTuple):
    """The fields of a file."""

    height: int
    width: int
    check: bytes  # of the decoded latents
    payload: bytes
    level: int | None = None  # 0..255, position of the rate dial; None for a model of one rate


def pack(stream: Stream, fingerprint: bytes) -> bytes:
    """The file of a stream that the model of this fingerprint wrote."""
    check_size(stream.height, stream.width)
    front = bytes([MAGIC + VERSION]) + varint(stream.height - 1) + varint(stream.width - 1) + fingerprint[:_MODEL]
    back = stream.check + (b"" if stream.level is None else bytes([stream.level])) + stream.payload
    return front + _file_check(fingerprint, front, back) + back


def unpack(data: bytes, fingerprint: bytes, has_level: bool = False) -> Stream:
    """The fields of a file; the files of a model of many rates have a level.

    Raises UserError unless this model wrote it and every byte is as it was.
    """
    if not data:
        raise UserError("the file is empty; compress the image again")
    if len(data) > LARGEST_FILE:
        raise UserError(f"{len(data)} bytes are more than a stream of {LARGEST_SIDE}x{LARGEST_SIDE} pixels can have")
    if data[0] != MAGIC + VERSION:
        raise UserError(
            f"the file starts with byte 0x{data[0]:02x}, not 0x{MAGIC + VERSION:02x}: it is no .aeic stream of "
            f"version {VERSION}, or it is damaged"
        )
    try:
        height, at = _read_varint(data, 1)
        width, at = _read_varint(data, at)
    except IndexError:
        raise UserError("the file ends within its header; it is damaged") from None
    height, width = height + 1, width + 1
    model_end = at + _MODEL
    file_end = model_end + _FILE
    latents_end = file_end + _LATENTS
    if latents_end + has_level > len(data):
        raise UserError("the file ends within its header; it is damaged")
    if height > LARGEST_SIDE or width > LARGEST_SIDE:
        raise UserError(
            f"the header says {width}x{height} pixels, more than {LARGEST_SIDE} a side; the file is damaged"
        )
    if data[at:model_end] != fingerprint[:_MODEL]:
        raise UserError(
            f"the stream was written with another checkpoint (model {data[at:model_end].hex()}, this one is "
            f"{fingerprint[:_MODEL].hex()}), or its header is damaged; decode it with the checkpoint that wrote it"
        )
    if data[model_end:file_end] != _file_check(fingerprint, data[:model_end], memoryview(data)[file_end:]):
        raise UserError("the check value of the file is wrong: it is damaged, cut short or longer than it was")
    level = data[latents_end] if has_level else None
    return Stream(height, width, data[file_end:latents_end], data[latents_end + has_level :], level)


def model_of(data: bytes) -> bytes:
    """The first bytes of the fingerprint of the model that wrote a file. Raises UserError where there are none."""
    try:
        _, at = _read_varint(data, 1)
        _, at = _read_varint(data, at)
    except IndexError:
        at = len(data)
    if not data or data[0] != MAGIC + VERSION or len(data) < at + _MODEL:
        raise UserError(f"it is no .aeic stream of version {VERSION}, or it is damaged")
    return data[at : at + _MODEL]


def overhead(height: int, width: int, has_level: bool = False) -> int:
    """Bytes before the payload."""
    return has_level + 1 + len(varint(height - 1)) + len(varint(width - 1)) + _MODEL + _FILE + _LATENTS


def check_size(height: int, width: int) -> None:
    """Raise UserError for an image that no stream can hold."""
    if not (1 <= height <= LARGEST_SIDE and 1 <= width <= LARGEST_SIDE):
        raise UserError(f"an image of {width}x{height} pixels; a stream holds 1 to {LARGEST_SIDE} a side")


def check_rate(bpp: float) -> None:
    """Raise UserError for bits per pixel that no file has."""
    check_number("bpp", bpp)
    if not bpp > 0:
        raise UserError(f"{bpp:g} bpp: a rate is above 0")


def check_order(**given: float | None) -> None:
    """Raise UserError for more than one of what a file can be ordered by, or for a value that is no finite number."""
    chosen = {name: value for name, value in given.items() if value is not None}
    if len(chosen) > 1:
        *others, last = given
        raise UserError(f"give one of {', '.join(others)} and {last}")
    for name, value in chosen.items():
        check_number(name, value)


def check_number(name: str, value: object) -> None:
    """Raise UserError unless it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise UserError(f"{name} is {value!r}; it is a finite number")


def bytes_within(bpp: float, height: int, width: int) -> int:
    """The most bytes that a file of so many bits per pixel has. Raises UserError as `check_rate`."""
    check_rate(bpp)
    return int(bpp * height * width / 8)


def latents_check(*latents: bytes) -> bytes:
    """The check value of decoded latents."""
    return hashlib.sha256(b"".join(latents)).digest()[:_LATENTS]


def _file_check(fingerprint: bytes, front: bytes, back: bytes | memoryview) -> bytes:
    """Over the whole fingerprint and every other byte of the file, before and after the check."""
    digest = hashlib.sha256(fingerprint)
    digest.update(front)
    digest.update(back)
    return digest.digest()[:_FILE]


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in (0, 7, 14):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            break
    return value, at

"""What a file's numbers mean, as sRGB: colour profiles (ICC), and colours that a file signals by numbers alone."""

import io
import struct
from functools import lru_cache
from typing import Any, cast

import numpy as np
from PIL import Image

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

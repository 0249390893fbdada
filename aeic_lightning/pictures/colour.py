"""Colour profiles (ICC): what a file's numbers mean, as sRGB."""

import io
from functools import lru_cache
from typing import Any, cast

import numpy as np
from PIL import Image

NEAR = 2
"""A profile that moves no colour by more than so many levels is sRGB under another name: its pixels stay."""
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

"""8-bit images and the two figures that need no network.

Every published figure is of the image that a file would hold, so models' floats go through `to_uint8` first.
"""

import io
import math
import os
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from aeic_lightning import UserError

# Five scales halve the image four times, and the 11-pixel window must still fit with room to spare: the limit that
# torchmetrics sets is side // 16 > 10.
MS_SSIM_SMALLEST_SIDE = 176


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


def psnr(x_hat: Tensor, x: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of uint8 images (B, 3, H, W): (B,) float64, dB, peak 255; inf for equal images."""
    mse = (x_hat.double() - x.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(255.0**2 / mse)


def ms_ssim_fits(height: int, width: int) -> bool:
    """Whether MS-SSIM is defined for this size (pixels)."""
    return min(height, width) >= MS_SSIM_SMALLEST_SIDE


def ms_ssim(x_hat: Tensor, x: Tensor) -> Tensor:
    """Multi-scale structural similarity of uint8 images (B, 3, H, W): (B,) float32, at most 1 (Wang et al. 2003).

    Raises UserError below `MS_SSIM_SMALLEST_SIDE`: another number of scales would be another figure.
    """
    if not ms_ssim_fits(*x.shape[-2:]):
        raise UserError(
            f"MS-SSIM needs sides of at least {MS_SSIM_SMALLEST_SIDE} pixels, got {x.shape[-2]}x{x.shape[-1]}: "
            "leave it out for this image"
        )
    return multiscale_structural_similarity_index_measure(
        x_hat.float(), x.float(), data_range=255.0, reduction="none"
    ).reshape(-1)


def bits_per_pixel(bits: float, height: int, width: int) -> float:
    """Bits over the pixels of the original image; padding never enters the denominator."""
    if not (math.isfinite(bits) and bits >= 0):
        raise UserError(f"{bits} bits for a {height}x{width} image: a rate is finite and not negative")
    return bits / (height * width)


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write a file whole or not at all: beside it first, then renamed. Makes the folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def save_png(path: str | Path, image: Tensor) -> None:
    """Write a uint8 image (3, H, W) losslessly as PNG, whole or not at all."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(buffer, "PNG")
    write_whole(path, buffer.getvalue())


def file_name(name: str) -> str:
    """One path component for an image's name, which may lie in sub-folders but not outside of the data folder."""
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise UserError(f"{name!r} cannot name a file: it leads out of the folder")
    return "__".join(Path(name).parts)

"""Rate, PSNR and MS-SSIM: the metrics that need no network, all of 8-bit images."""

import math

import torch
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from aeic_lightning.errors import UserError

# Five scales halve the image four times, and the 11-pixel window must still fit with room to spare: the limit that
# torchmetrics sets is side // 16 > 10.
MS_SSIM_SMALLEST_SIDE = 176


def psnr(x_hat: Tensor, x: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of uint8 images (B, 3, H, W): (B,) float64, dB, peak 255; inf for equal images."""
    mse = (x_hat.double() - x.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(255.0**2 / mse)


def ms_ssim_fits(height: int, width: int) -> bool:
    """Whether MS-SSIM is defined for this size (pixels)."""
    return min(height, width) >= MS_SSIM_SMALLEST_SIDE


def ms_ssim(x_hat: Tensor, x: Tensor) -> Tensor:
    """Multi-scale structural similarity of uint8 images (B, 3, H, W): (B,) float32, at most 1 (Wang et al. 2003).

    Raises UserError below `MS_SSIM_SMALLEST_SIDE`: another number of scales would be another metric.
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

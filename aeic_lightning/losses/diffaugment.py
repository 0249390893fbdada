"""DiffAugment: differentiable augmentation of what a discriminator sees (Zhao et al. 2020, "Differentiable
Augmentation for Data-Efficient GAN Training")."""

import torch
import torch.nn.functional as F
from torch import Tensor


def diff_augment(x: Tensor) -> Tensor:
    """Colour, translation and cutout of images (B, 3, H, W), drawn for each image from torch's CPU generator.

    Brightness shifts by U(-0.5, 0.5), saturation scales by U(0, 2), contrast by U(0.5, 1.5); the image moves by up to
    an eighth of each side, and a rectangle of half of each side, centred anywhere, is blanked. What comes in is 0,
    mid-grey of [-1, 1]. Values may leave [-1, 1].
    """
    return cutout(translate(colour(x)))


def colour(x: Tensor) -> Tensor:
    brightness, saturation, contrast = torch.rand(3, x.shape[0], 1, 1, 1).to(x.device)
    x = x + (brightness - 0.5)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (2 * saturation)
    level = x.mean((1, 2, 3), keepdim=True)
    return level + (x - level) * (contrast + 0.5)


def translate(x: Tensor) -> Tensor:
    batch, _, height, width = x.shape
    most_down, most_right = (height + 4) // 8, (width + 4) // 8
    padded = F.pad(x, (most_right, most_right, most_down, most_down))
    tops = torch.randint(2 * most_down + 1, (batch,)).tolist()
    lefts = torch.randint(2 * most_right + 1, (batch,)).tolist()
    return torch.stack(
        [
            image[:, top : top + height, left : left + width]
            for image, top, left in zip(padded, tops, lefts, strict=True)
        ]
    )


def cutout(x: Tensor) -> Tensor:
    batch, _, height, width = x.shape
    outside = [_outside_a_half(side, batch) for side in (height, width)]
    keep = outside[0].view(batch, 1, height, 1) | outside[1].view(batch, 1, 1, width)
    return x * keep.to(x)


def _outside_a_half(side: int, batch: int) -> Tensor:
    """(batch, side) bool: False on a random run of side/2 pixels, which may hang over an end by half its length."""
    half = (side + 1) // 2
    start = torch.randint(side + 1 - half % 2, (batch, 1)) - half // 2
    position = torch.arange(side)
    return (position < start) | (position >= start + half)

"""Training images as bytes on the device that trains, where crops are cut, zoomed, flipped and shuffled in one call."""

from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aeic_lightning.images import from_uint8
from datamodules.crops import CropDataset


class PackedCrops(CropDataset):
    """The crops of `CropDataset` in two halves: `dataset[index, sample]` is {"window": int64 (10,), "name": str}, which
    `cut_all` makes images of, a batch at a time, on the device of the batch.

    Crops are those of `CropDataset`; with `max_zoom_out` they differ by one of 255 levels at most. All images are read
    at once, and stay in memory: three bytes a pixel. Those that are too small are enlarged once.

    Args:
        **crops: see `CropDataset`.
    """

    def __init__(self, **crops: Any) -> None:
        super().__init__(**crops)
        found = [self._read(index) for index in range(len(self))]
        images = [self._enlarged(image) for _, image in found]
        self.names = [self.images.names[index] for index, _ in found]  # of a broken image that of another one
        self.sizes = [image.shape[:2] for image in images]
        self.starts = [0, *accumulate(height * width for height, width in self.sizes)]
        self.pixels = torch.from_numpy(np.concatenate([image.reshape(-1, 3) for image in images]))

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        index, sample = key
        height, width = self.sizes[index]
        rng, zoom, channels = self._begin(sample)
        window = self._window(height, width, rng, zoom)
        order = channels if self.shuffle_channels else range(3)
        numbers = [self.starts[index], width, *window, *self._flips(rng), *order]
        return {"window": torch.tensor([int(number) for number in numbers]), "name": self.names[index]}

    def cut_all(self, windows: Tensor) -> Tensor:
        """Images (B, 3, crop, crop) float32 in [-1, 1] of windows (B, 10), on the device of these."""
        self.pixels = self.pixels.to(windows.device)
        start, width, top, left, side, horizontal, vertical = windows[:, :7, None, None].unbind(1)
        most = round(self.crop_size * self.max_zoom_out)
        step = torch.arange(most, device=windows.device)
        inside = step.minimum(side - 1)  # (B, 1, most)
        columns, rows = (torch.where(flip > 0, side - 1 - inside, inside) for flip in (horizontal, vertical))
        window = self.pixels[start + (top + rows.mT) * width + left + columns]  # (B, most, most, 3)
        order = windows[:, None, None, 7:].expand_as(window)
        image = window.gather(3, order).permute(0, 3, 1, 2).float()
        if most > self.crop_size:
            weights = reduction(side, self.crop_size, most)[:, None]
            image = (image @ weights.mT).round_().clamp_(0, 255)  # bytes between the two passes, as in Pillow
            image = (weights @ image).round_().clamp_(0, 255)
        return from_uint8(image.contiguous())


def reduction(side: Tensor, size: int, most: int) -> Tensor:
    """Weights (B, size, most) of the first `side` (B, 1, 1) of `most` samples in each of `size`: Pillow's Lanczos."""
    scale = side / size
    step = torch.arange(most, device=side.device)
    at = (step + 0.5) / scale - (torch.arange(size, device=side.device)[:, None] + 0.5)
    weights = torch.sinc(at) * torch.sinc(at / 3) * ((at.abs() < 3) & (step < side))
    return weights / weights.sum(dim=2, keepdim=True)

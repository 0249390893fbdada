"""Large images in overlapping tiles, so that memory is bounded by the tile."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from aeic_lightning.errors import UserError

GRID = 8  # the U-Net halves three times: tiles on another grid would sample other positions than the whole image


@dataclass
class TilingConfig:
    """Tile sizes in latents (8 pixels). AEIC-ME: U-Net tiles of 96 overlapping by 32; AEIC-SE: 192 and 64.

    Args:
        unet_tile, unet_overlap: side of the denoiser's tiles, and how far neighbours overlap.
        vae_tile, vae_overlap: the same for the VAE decoder.
    """

    unet_tile: int = 96
    unet_overlap: int = 32
    vae_tile: int = 160
    vae_overlap: int = 32

    def check(self) -> None:
        """Raise UserError for tiles that cannot cover an image."""
        for name in ("unet", "vae"):
            tile, overlap = getattr(self, f"{name}_tile"), getattr(self, f"{name}_overlap")
            if tile < GRID or tile % GRID or overlap % GRID or not 0 <= overlap < tile:
                raise UserError(
                    f"decoder.tiling: {name}_tile {tile} and {name}_overlap {overlap} must be multiples of {GRID}, "
                    "the overlap smaller than the tile"
                )


def tile_starts(size: int, tile: int, overlap: int) -> list[int]:
    """Where tiles start that cover [0, size): evenly, the last one aligned to the end; [0] when one is enough."""
    last = max(size - tile, 0)
    return [*range(0, last, tile - overlap), last]


def fits(x: Tensor, tile: int) -> bool:
    """Whether x (B, C, h, w) passes whole: its area, and so what it takes, is at most a tile's."""
    return x.shape[2] * x.shape[3] <= tile**2


def gaussian_window(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """(height, width) blend weights, 1 in the middle: a Gaussian whose standard deviation is a tenth of each side.

    A tile's border, which lacks its surroundings, weighs about 1e-5 of what its neighbour's inside does.
    """

    def profile(size: int) -> Tensor:
        position = (torch.arange(size, device=device, dtype=torch.float32) + 0.5) / size - 0.5
        return torch.exp(-position.square() / (2 * 0.1**2))

    return profile(height)[:, None] * profile(width)


def blend_tiles(function: Callable[[Tensor], Tensor], x: Tensor, tile: int, overlap: int, scale: int) -> Tensor:
    """`function` over tiles of x (B, C, h, w), one at a time: their average (B, C', scale h, scale w), weighted by
    `gaussian_window`.

    `function` maps (B, C, a, b) to (B, C', scale a, scale b). x that is no larger than a tile passes as it is. Tiles
    are squares, as in the released code: smaller ones where a side of x is shorter than `tile`, unless it is so short
    (less than two overlaps) that squares would hardly advance; then strips across it.
    """
    if fits(x, tile):
        return function(x)
    height, width = x.shape[2:]
    side = min(tile, height, width)
    if side >= 2 * overlap:
        tile = side
    total = x.new_zeros(0)  # until the first tile tells how many channels there are
    weight = x.new_zeros(height * scale, width * scale, dtype=torch.float32)
    for top in tile_starts(height, tile, overlap):
        for left in tile_starts(width, tile, overlap):
            out = function(x[:, :, top : top + tile, left : left + tile]).float()
            if not total.numel():
                total = out.new_zeros(*out.shape[:2], height * scale, width * scale)
            window = gaussian_window(*out.shape[2:], device=out.device)
            rows = slice(top * scale, top * scale + out.shape[2])
            columns = slice(left * scale, left * scale + out.shape[3])
            total[:, :, rows, columns] += window * out
            weight[rows, columns] += window
    return total / weight

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

    return _profile(height, device)[:, None] * _profile(width, device)


def _profile(size: int, device: torch.device | None) -> Tensor:
    position = (torch.arange(size, device=device, dtype=torch.float32) + 0.5) / size - 0.5
    return torch.exp(-position.square() / (2 * 0.1**2))


def _profiles(size: int, starts: list[int], tile: int, device: torch.device | None) -> Tensor:
    """The sum of the profiles of tiles that start there, at each of `size` positions."""
    total, one = torch.zeros(size, device=device), _profile(min(tile, size), device)
    for start in starts:
        total[start : start + len(one)] += one
    return total


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
    return _blend(function, x, (tile, tile), overlap, scale)


def blend_evenly(function: Callable[[Tensor], Tensor], x: Tensor, tile: int, overlap: int, scale: int) -> Tensor:
    """As `blend_tiles`, in rectangles that overlap no more than they must: as many as squares of `tile` would be."""
    if fits(x, tile):
        return function(x)
    sides = [_even_side(size, tile, overlap) for size in x.shape[2:]]
    return _blend(function, x, (sides[0], sides[1]), overlap, scale)


def _even_side(size: int, tile: int, overlap: int) -> int:
    count = len(tile_starts(size, tile, overlap))
    return min(-(-(size + (count - 1) * overlap) // (count * GRID)) * GRID, tile)


def _blend(function: Callable[[Tensor], Tensor], x: Tensor, tile: tuple[int, int], overlap: int, scale: int) -> Tensor:
    (height, width), (tall, wide) = x.shape[2:], tile
    tops, lefts = tile_starts(height, tall, overlap), tile_starts(width, wide, overlap)
    total = x.new_zeros(0)  # until the first tile tells how many channels there are
    for top in tops:
        for left in lefts:
            out = function(x[:, :, top : top + tall, left : left + wide]).float()
            if not total.numel():
                total = out.new_zeros(*out.shape[:2], height * scale, width * scale)
            rows = slice(top * scale, top * scale + out.shape[2])
            columns = slice(left * scale, left * scale + out.shape[3])
            total[:, :, rows, columns] += gaussian_window(*out.shape[2:], device=out.device) * out
    # The windows are of one size, so that their sum is a product as well: no second picture of weights.
    rows, columns = (
        _profiles(size * scale, [start * scale for start in starts], side * scale, total.device)
        for size, starts, side in ((height, tops, tall), (width, lefts, wide))
    )
    return total.div_(rows[:, None]).div_(columns)

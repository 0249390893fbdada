"""An encoder in integers for devices that can do little; `export --c` writes it as C.

models/integer.py         its layers
models/codec/micro.py     h_a and h_s of the same kind
docs/integer_sender.md    the arithmetic
"""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from aeic_lightning.errors import UserError
from aeic_lightning.models.integer import (
    LATENT,
    PIXEL,
    POSITIVE,
    IntegerBlock,
    IntegerConv,
    IntegerNetwork,
)

STEM = 4  # pixels a side that the first layer takes at once


class MicroEncoder(IntegerNetwork):
    """g_a: 8-bit image (B, 3, H, W) in [-1, 1] -> y (B, channels, H/s, W/s), s = 2 ** (len(widths) + 1).

    A 1x1 convolution of 4x4 pixels, then at each further stage one of 2x2 positions; after each of them one residual
    block.

    Args:
        widths: channels of each stage, the first at stride 4.
        hidden: channels inside each stage's block; 0 for none.
        kernels: of each block's depthwise convolution.
        channels: M, of y.
        integer: False for the same network in floating point, the control of what integers cost.
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 96, 160),
        hidden: Sequence[int] = (32, 64, 192, 160),
        kernels: Sequence[int] = (3, 3, 5, 5),
        channels: int = 256,
        integer: bool = True,
    ) -> None:
        if not len(widths) == len(hidden) == len(kernels):
            raise UserError("MicroEncoder: widths, hidden and kernels differ in length; give one of each a stage")
        layers: list[nn.Module] = []
        before, inside = PIXEL, 3
        for stage, (width, wide, kernel) in enumerate(zip(widths, hidden, kernels, strict=True)):
            factor = 2 if stage else STEM
            layers.append(nn.PixelUnshuffle(factor))
            # Pixels have a variance of a quarter.
            gain = math.sqrt(2) if stage else 2 * math.sqrt(2)
            layers.append(IntegerConv(factor**2 * inside, width, before, POSITIVE, 1, integer, gain))
            if wide:
                layers.append(IntegerBlock(width, wide, kernel, integer))
            before, inside = POSITIVE, width
        layers.append(IntegerConv(inside, channels, POSITIVE, LATENT, 1, integer, 2.0))
        super().__init__(*layers)
        self.integer = integer

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] (called x)
        return super().forward(((x + 1) * 127.5).round().sub(128) / 128 if self.integer else x)

"""h_a and h_s in integers, beside `encoders/micro.py`."""

import math

from torch import nn

from aeic_lightning.models.integer import COARSE, LATENT, PARAMS, POSITIVE, SIGNED, IntegerConv, IntegerNetwork, OnGrid


class MicroHyperAnalysis(IntegerNetwork):
    """h_a: y (B, M, h, w) -> z (B, width, h/4, w/4).

    Args:
        channels: M, of y.
        width: channels of z and inside.
        integer: see `MicroEncoder`.
    """

    def __init__(self, channels: int, width: int = 64, integer: bool = True) -> None:
        gain = math.sqrt(2)
        super().__init__(
            OnGrid(COARSE, integer),
            IntegerConv(channels, width, COARSE, POSITIVE, 1, integer, gain),
            nn.PixelUnshuffle(2),
            IntegerConv(4 * width, width, POSITIVE, POSITIVE, 1, integer, gain),
            nn.PixelUnshuffle(2),
            IntegerConv(4 * width, width, POSITIVE, LATENT, 1, integer, 2.0),
        )


class MicroHyperSynthesis(IntegerNetwork):
    """h_s: z_hat (B, N, h/4, w/4) -> phi (B, K, h, w). In integers always, since both sides compute it.

    Args:
        channels: N, of z.
        out_channels: K, what the context model takes.
        widths: channels at twice and at four times the resolution of z.
    """

    def __init__(self, channels: int, out_channels: int, widths: tuple[int, int] = (64, 96)) -> None:
        gain = math.sqrt(2)
        middle, last = widths
        super().__init__(
            OnGrid(COARSE),
            IntegerConv(channels, 4 * middle, COARSE, POSITIVE, 1, True, gain),
            nn.PixelShuffle(2),
            IntegerConv(middle, middle, POSITIVE, SIGNED, 3),
            IntegerConv(middle, 4 * last, SIGNED, POSITIVE, 1, True, gain),
            nn.PixelShuffle(2),
            IntegerConv(last, last, POSITIVE, SIGNED, 3),
            IntegerConv(last, out_channels, SIGNED, PARAMS, 1, True, 0.3),
        )

"""The encoder of the paper: AEIC-SE's with one StarBlock a stage, AEIC-ME's with two."""

from collections.abc import Sequence

from torch import nn

from aeic_lightning.models.layers import Down, StarBlock


class StarEncoder(nn.Sequential):
    """g_a: image (B, 3, H, W) in [-1, 1] -> y (B, M, H/s, W/s), s = 2 ** len(widths), M = widths[-1].

    Stage i halves the resolution to `widths[i]` channels and refines with `depths[i]` StarBlocks. The depths are
    what makes the encoder shallow (AEIC-SE: 1 everywhere) or moderate (AEIC-ME: 2).
    """

    def __init__(self, widths: Sequence[int], depths: Sequence[int]) -> None:
        layers: list[nn.Module] = []
        for in_channels, width, depth in zip([3, *widths], widths, depths, strict=False):
            layers += [Down(in_channels, width), *(StarBlock(width) for _ in range(depth))]
        super().__init__(*layers)
        self.channels, self.stride = widths[-1], 2 ** len(widths)

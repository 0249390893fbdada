"""Three transforms of the latent codec, as plain sequences; the fourth, g_a, is in `models/encoders`."""

from collections.abc import Sequence

from torch import nn

from aeic_lightning.models.layers import Adapter, Down, StarBlock, Up


class HyperAnalysis(nn.Sequential):
    """h_a: y (B, M, h, w) -> z (B, N, h/4, w/4).

    Args:
        channels: M, of y.
        width: N, of z and inside; default: M/2, as in the paper.
        depth: StarBlocks.
    """

    def __init__(self, channels: int, width: int | None = None, depth: int = 2) -> None:
        width = width or channels // 2
        super().__init__(Down(channels, width), *(StarBlock(width) for _ in range(depth)), Down(width, width))


class HyperSynthesis(nn.Sequential):
    """h_s: z_hat (B, N, h/4, w/4) -> phi (B, K, h, w).

    Args:
        channels: N, of z.
        out_channels: K, what the context model takes: M, or 2M of a codec without a context.
        width: inside; default: N, as in the paper.
        depth: StarBlocks.
    """

    def __init__(self, channels: int, out_channels: int, width: int | None = None, depth: int = 2) -> None:
        width = width or channels
        super().__init__(Up(channels, width), *(StarBlock(width) for _ in range(depth)), Up(width, out_channels))


class SynthesisTransform(nn.Sequential):
    """g_s: y_hat (B, M, h, w) -> (B, out_channels, H/8, W/8), which the codec splits into l_T and l_res.

    Args:
        channels: M, of y.
        out_channels: of l_T and l_res together.
        widths: channels after the adapter and after each Up.
        depths: StarBlocks at each width.
    """

    def __init__(self, channels: int, out_channels: int, widths: Sequence[int], depths: Sequence[int]) -> None:
        layers: list[nn.Module] = []
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            layers += [Adapter(channels, width) if i == 0 else Up(widths[i - 1], width)]
            layers += [StarBlock(width) for _ in range(depth)]
        super().__init__(*layers, Adapter(widths[-1], out_channels))

"""Three transforms of the latent codec, as plain sequences; the fourth, g_a, is in `models/encoders`."""

from collections.abc import Sequence

from torch import nn

from aeic_lightning.models.layers import Adapter, Down, StarBlock, Up


def hyper_analysis(channels: int, depth: int = 2) -> nn.Sequential:
    """h_a: y (B, M, h, w) -> z (B, M/2, h/4, w/4)."""
    half = channels // 2
    return nn.Sequential(Down(channels, half), *(StarBlock(half) for _ in range(depth)), Down(half, half))


def hyper_synthesis(channels: int, depth: int = 2) -> nn.Sequential:
    """h_s: z_hat (B, M/2, h/4, w/4) -> phi (B, M, h, w)."""
    half = channels // 2
    return nn.Sequential(Up(half, half), *(StarBlock(half) for _ in range(depth)), Up(half, channels))


def synthesis_transform(
    channels: int, widths: Sequence[int], depths: Sequence[int], out_channels: int
) -> nn.Sequential:
    """g_s: y_hat (B, M, h, w) -> (B, out_channels, H/8, W/8), which the codec splits into l_T and l_res."""
    layers: list[nn.Module] = []
    for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        layers += [Adapter(channels, width) if i == 0 else Up(widths[i - 1], width)]
        layers += [StarBlock(width) for _ in range(depth)]
    return nn.Sequential(*layers, Adapter(widths[-1], out_channels))

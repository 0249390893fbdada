"""The transforms of the paper's codec, as plain sequences, and the gains of a codec of many rates."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from aeic_lightning.errors import UserError
from aeic_lightning.models.layers import Adapter, Down, StarBlock, Up


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


# ---------------------------------------------------------------------- gains


class GainUnits(nn.Module):
    """One codec for a range of rates (Cui et al., "Asymmetric Gained Deep Image Compression With Continuous Rate
    Adaptation", CVPR 2021).

    A gain for each channel multiplies y before quantisation, which sets the step of the quantiser in units of the
    channel; an inverse gain multiplies y_hat before g_s. There is one pair of vectors for each rate level. Between two
    levels the logarithms are interpolated, so the rate is a dial. Everything between the two multiplications (h_a, the
    entropy model, the stream) sees y in steps of the quantiser and knows nothing of levels.

    Args:
        channels: of y.
        rate_weights: for each level, what multiplies lambda there. Falling, so that files grow with the level.
    """

    rate_weights: Tensor

    def __init__(self, channels: int, rate_weights: Sequence[float]) -> None:
        super().__init__()
        falling = all(a > b for a, b in pairwise(rate_weights))
        if len(rate_weights) < 2 or min(rate_weights) <= 0 or not falling:
            raise UserError(
                f"codec: rate_levels is {list(rate_weights)}; give at least two falling weights above 0, as in "
                "[8, 2, 0.5], or null for a codec of one rate"
            )
        weights = torch.tensor(rate_weights, dtype=torch.float32)
        self.register_buffer("rate_weights", weights, persistent=False)
        # At high rates the best step falls with the root of lambda.
        start = -0.5 * (weights / weights.log().mean().exp()).log()
        self.log_gain = nn.Parameter(start[:, None].repeat(1, channels))
        self.log_inverse = nn.Parameter(-start[:, None].repeat(1, channels))

    @property
    def levels(self) -> int:
        """How many levels there are: a level is a number from 0 (smallest files) to `levels` - 1."""
        return len(self.rate_weights)

    def draw(self, batch: int) -> Tensor:
        """A level for each crop of a training batch, (B,), as evenly spread over the levels as the batch allows."""
        first = torch.randint(self.levels, ())
        return ((torch.arange(batch) + first) % self.levels).float().to(self.log_gain.device)

    def rate_weight(self, level: Tensor) -> Tensor:
        """What multiplies lambda for crops of these levels, (B,)."""
        return _between(self.rate_weights.log()[:, None], level).exp().flatten()

    def gain(self, level: Tensor) -> Tensor:
        """What multiplies y, (B, C, 1, 1), for levels (B,)."""
        return _between(self.log_gain, level).exp()[..., None, None]

    def inverse(self, level: Tensor) -> Tensor:
        """What multiplies y_hat, (B, C, 1, 1), for levels (B,)."""
        return _between(self.log_inverse, level).exp()[..., None, None]


def _between(table: Tensor, level: Tensor) -> Tensor:
    """Rows of a (L, C) table at levels (B,), linear between two rows -> (B, C)."""
    below = level.floor().clamp(0, len(table) - 2).long()
    share = (level - below)[:, None]
    return table[below] * (1 - share) + table[below + 1] * share

"""The number format that networks compute in, building blocks of encoders and of the latent codec, and its transforms.

All tensors are (B, C, H, W); every convolution has a bias."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aeic_lightning.errors import UserError


def full_precision(x: Tensor) -> torch.autocast:
    """Context in which autocast is off for the device of `x`: a metric must not depend on the trainer's precision."""
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)


_low = False


@contextmanager
def networks_in_bfloat16(low: bool = True) -> Iterator[None]:
    """Context of a training step in which all networks but the entropy model compute in bfloat16 (`lowered`).

    Depthwise convolutions stay in float32 on a processor, which is slower at them in bfloat16; likelihoods, rounding,
    gains, losses, and the parameters themselves do everywhere.
    """
    global _low
    before, _low = _low, low
    try:
        yield
    finally:
        _low = before


def are_networks_in_bfloat16() -> bool:
    return _low


def lowered(x: Tensor) -> AbstractContextManager[Any]:
    """Context of a network's pass: bfloat16 on the device of `x` in `networks_in_bfloat16`, else what it is without."""
    return torch.autocast(x.device.type, torch.bfloat16) if _low and not x.is_meta else nullcontext()


@contextmanager
def frozen_precision(x: Tensor) -> Iterator[None]:
    """Context of a frozen network's pass: bfloat16 in `networks_in_bfloat16`, else float32."""
    with full_precision(x), lowered(x):
        yield


def raised(x: Tensor) -> Tensor:
    """What comes out of `lowered`, for float32 to go on with."""
    return x.float() if _low else x


# ---------------------------------------------------------------------- layers


class Down(nn.Sequential):
    """Halve the resolution: 3x3 convolution to a quarter of the channels, then pixel-unshuffle by 2."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels // 4, 3, padding=1)
        self.rearrange = nn.PixelUnshuffle(2)


class Up(nn.Sequential):
    """Double the resolution: 3x3 convolution to four times the channels, then pixel-shuffle by 2."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels * 4, 3, padding=1)
        self.rearrange = nn.PixelShuffle(2)


class Pointwise(nn.Conv2d):
    """1x1 convolution, computed as a matrix product over the channels of every position.

    A channels-last view of the input costs nothing and is what the product wants, forward and backward. PyTorch's own
    1x1 convolution takes up to twice as long on a CPU, where small batches on one thread miss its fast kernels.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] (called x)
        return pointwise(x, self.weight, self.bias)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B, C, H, W) by a 1x1 kernel (O, C, 1, 1) -> (B, O, H, W), channels last in memory."""
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


class PointwiseHalves(Pointwise):
    """A 1x1 convolution whose two halves of the channels come apart, each in one piece of memory.

    Halves of one tensor lie in stripes, over which elementwise functions take twice as long.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride] (called x)
        (w1, w2), (b1, b2) = self.weight.chunk(2), cast(Tensor, self.bias).chunk(2)
        return pointwise(x, w1, b1), pointwise(x, w2, b2)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of every position."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] (called x)
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class InFloat32(nn.Module):
    """Before the class of a convolution: keeps it in float32 on a processor under autocast.

    For depthwise convolutions, which take longer to train in bfloat16 there.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with full_precision(x):
                return super().forward(x.float())
        return super().forward(x)


class Depthwise(InFloat32, nn.Conv2d):  # pyright: ignore[reportIncompatibleMethodOverride] (called x)
    """Depthwise convolution."""

    def __init__(self, channels: int, kernel: int | tuple[int, int], padding: int | tuple[int, int]) -> None:
        super().__init__(channels, channels, kernel, padding=padding, groups=channels)


class InceptionDepthwise(nn.Module):
    """Depthwise convolution over a split of the channels (InceptionNeXt, Yu et al. 2024).

    The first C - 3 (C // 8) channels pass untouched; then C // 8 channels each go through 3x3, 1x11 and 11x1.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        branch = channels // 8
        self.split = [channels - 3 * branch, branch, branch, branch]
        self.dwconv_hw = Depthwise(branch, 3, padding=1)
        self.dwconv_w = Depthwise(branch, (1, 11), padding=(0, 5))
        self.dwconv_h = Depthwise(branch, (11, 1), padding=(5, 0))

    def forward(self, x: Tensor) -> Tensor:
        same, hw, w, h = x.split(self.split, dim=1)
        return torch.cat([same, self.dwconv_hw(hw), self.dwconv_w(w), self.dwconv_h(h)], dim=1)


class StarBlock(nn.Module):
    """Residual block whose two halves are multiplied (the star operation): the unit of g_a, h_a, h_s and g_s."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = InceptionDepthwise(channels)
        self.norm = ChannelNorm(channels)
        self.fc1 = PointwiseHalves(channels, 4 * channels)
        self.fc2 = Pointwise(2 * channels, channels)
        nn.init.zeros_(self.fc2.weight)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(self.norm(self.dwconv(x)))
        return x + self.fc2(F.gelu(gate) * value)


class Adapter(nn.Module):
    """Change the number of channels: a 1x1 path beside a bottleneck with a 5x5 depthwise convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        hidden = (in_channels + out_channels) // 2
        self.branch1 = nn.Sequential(
            Pointwise(in_channels, hidden),
            nn.GELU(),
            Depthwise(hidden, 5, padding=2),
            nn.GELU(),
            Pointwise(hidden, out_channels),
        )
        self.branch2 = Pointwise(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.branch1(x) + self.branch2(x)


class InceptionNeXt(nn.Module):
    """First half of a context layer; it has no normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthconv = InceptionDepthwise(channels)
        self.conv1 = Pointwise(channels, 2 * channels)
        self.conv2 = Pointwise(2 * channels, channels)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.gelu(self.conv1(self.depthconv(x))))


class GatedCNN(nn.Module):
    """Second half of a context layer: GELU(a) gates a 3x3 depthwise convolution of b."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.fc1 = PointwiseHalves(channels, 4 * channels)
        self.conv = Depthwise(2 * channels, 3, padding=1)
        self.fc2 = Pointwise(2 * channels, channels)
        nn.init.zeros_(self.fc2.weight)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.fc1(self.norm(x))
        return x + self.fc2(F.gelu(a) * self.conv(b))


class ContextLayer(nn.Sequential):
    """One layer of the context network g_c."""

    def __init__(self, channels: int) -> None:
        super().__init__(InceptionNeXt(channels), GatedCNN(channels))


# ---------------------------------------------------------------------- the paper's transforms, as plain sequences


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
        return ((torch.arange(batch) + first) % self.levels).float().to(self.log_gain.device, non_blocking=True)

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

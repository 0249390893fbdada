"""Layers in integers that floats hold exactly: what they compute in training is what a device without floats computes.

Every tensor is a multiple of a power of two, its integer small enough that each partial sum is exact in float32. So the
order of sums cannot matter, and the forward pass below equals its integer form (`bitstream/c/sender.c`) in every bit:

    accumulator = sum of weight (8 bits) x activation (8 bits) + bias        below 2^24
    output      = clamp((accumulator + 2^(shift - 1)) >> shift)              rounds halves up

Weights are w 2^scale for each output channel, so that the only multiplications are those of the sum. Gradients pass
rounding as if it were the identity (straight-through), and end where a value is clamped.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aeic_lightning.errors import UserError
from aeic_lightning.models.layers import pointwise


class Grid(NamedTuple):
    """Values that an activation can take: integers low ... high, divided by 2^fraction."""

    fraction: int
    low: int
    high: int


PIXEL = Grid(7, -128, 127)  # 8-bit levels less 128
POSITIVE = Grid(5, 0, 255)  # with it comes a ReLU
SIGNED = Grid(4, -128, 127)
COARSE = Grid(3, -128, 127)  # of y and z_hat, in steps of their quantisers, before h_a and h_s
LATENT = Grid(6, -(2**15), 2**15 - 1)  # y before its gains, and z
PARAMS = Grid(8, -(2**13), 2**13 - 1)  # means and raw scales of y

WEIGHT = 127  # largest magnitude
BIAS = 2**21
LARGEST_SHIFT = 20
SCALES = 12  # weights are multiples of 2^-12 at the finest


def clamped(x: Tensor, low: int, high: int) -> Tensor:
    """x within these bounds, given as floats: with integers torch.onnx exports no clamp."""
    return x.clamp(float(low), float(high))


def on_grid(x: Tensor, grid: Grid) -> Tensor:
    """The nearest values of a grid, halves rounded up; straight-through where not clamped."""
    unit = 2.0**grid.fraction
    nearest = clamped((x.detach() * unit + 0.5).floor(), grid.low, grid.high) / unit
    if not torch.is_grad_enabled():
        return nearest
    x = x.clamp(grid.low / unit, grid.high / unit)
    return x + (nearest - x).detach()  # exact: both are multiples of one small number


class IntegerConv(nn.Module):
    """A 1x1 convolution, or with a larger kernel a depthwise one, padded with zeros.

    Args:
        inputs, outputs: channels, the same for a depthwise one.
        before, after: grids of the input and of the output.
        kernel: odd.
        integer: False for plain floating point, where a grid is a ReLU or nothing.
        gain: times the standard deviation of the first weights that keeps the variance.
    """

    powers: Tensor

    def __init__(
        self, inputs: int, outputs: int, before: Grid, after: Grid, kernel: int = 1, integer: bool = True, gain=1.0
    ) -> None:
        super().__init__()
        self.before, self.after, self.kernel, self.integer = before, after, kernel, integer
        inside = inputs if kernel == 1 else 1
        if (kernel > 1 and inputs != outputs) or not kernel % 2:
            raise UserError(f"a depthwise convolution of kernel {kernel}, {inputs} to {outputs} channels; keep them")
        fan_in = inside * kernel * kernel
        most = fan_in * WEIGHT * max(before.high, -before.low) + BIAS + 2 ** (LARGEST_SHIFT - 1)
        if most >= 2**24:
            raise UserError(f"{fan_in} inputs of 8 bits add up beyond 24 bits; give this layer fewer channels")
        self.weight = nn.Parameter(torch.randn(outputs, inside, kernel, kernel) * gain * fan_in**-0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))
        lowest = max(after.fraction - before.fraction, 0)  # a shift is never to the left
        powers = torch.tensor([2.0**k for k in range(lowest, SCALES + 1)])
        self.register_buffer("powers", powers, persistent=False)

    def scales(self) -> Tensor:
        """(O,): the powers of two that turn weights into integers, the largest that WEIGHT allows."""
        peak = self.weight.detach().abs().flatten(1).amax(1, keepdim=True)
        return torch.where(peak * self.powers <= WEIGHT, self.powers, self.powers[0]).amax(1)

    def rounded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias as multiples of what their integers stand for."""
        scale = self.scales()
        unit = scale * 2.0**self.before.fraction
        by_row = scale.view(-1, 1, 1, 1)
        weight = clamped((self.weight.detach() * by_row).round(), -WEIGHT, WEIGHT) / by_row
        bias = clamped((self.bias.detach() * unit).round(), -BIAS, BIAS) / unit
        if not torch.is_grad_enabled():
            return weight, bias
        return self.weight + (weight - self.weight).detach(), self.bias + (bias - self.bias).detach()

    def sums(self, x: Tensor) -> Tensor:
        """The convolution before it is rounded to `after`."""
        weight, bias = self.rounded() if self.integer else (self.weight, self.bias)
        if self.kernel == 1:
            return pointwise(x, weight, bias)
        return F.conv2d(x, weight, bias, padding=self.kernel // 2, groups=len(weight))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) on the grid `before` -> (B, O, h, w) on the grid `after`."""
        return self.fit(self.sums(x))

    def fit(self, x: Tensor) -> Tensor:
        """On the grid `after`; in floating point a ReLU where that has no negative values."""
        if self.integer:
            return on_grid(x, self.after)
        return x if self.after.low else x.relu()

    @torch.no_grad()
    def integers(self) -> tuple[Tensor, Tensor, Tensor]:
        """int32 weight (O, I, k, k) and bias (O,), and the shifts (O,) of the accumulator."""
        weight, bias = self.rounded()
        scale = self.scales()
        shift = scale.log2().round() + self.before.fraction - self.after.fraction
        unit = scale * 2.0**self.before.fraction
        return (weight * scale.view(-1, 1, 1, 1)).round().int(), (bias * unit).round().int(), shift.int()


class IntegerBlock(nn.Module):
    """Residual block: depthwise, expand, project; input and output are POSITIVE.

    Args:
        channels: of input and output.
        hidden: channels inside.
        kernel: of the depthwise convolution.
        integer: see `IntegerConv`.
    """

    def __init__(self, channels: int, hidden: int, kernel: int, integer: bool = True) -> None:
        super().__init__()
        wide = Grid(POSITIVE.fraction, -(2**15), 2**15 - 1)
        self.depthwise = IntegerConv(channels, channels, POSITIVE, SIGNED, kernel, integer)
        self.expand = IntegerConv(channels, hidden, SIGNED, POSITIVE, 1, integer, math.sqrt(2))
        self.project = IntegerConv(hidden, channels, POSITIVE, wide, 1, integer)
        nn.init.zeros_(self.project.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.project(self.expand(self.depthwise(x)))
        return x.clamp(0.0, POSITIVE.high / 2**POSITIVE.fraction) if self.project.integer else x.relu()


class OnGrid(nn.Module):
    """The first layer of a network whose input is of any value."""

    def __init__(self, grid: Grid, integer: bool = True) -> None:
        super().__init__()
        self.grid, self.integer = grid, integer

    def forward(self, x: Tensor) -> Tensor:
        return on_grid(x, self.grid) if self.integer else x


class IntegerNetwork(nn.Sequential):
    """A sequence of OnGrid, IntegerConv, IntegerBlock, PixelUnshuffle and PixelShuffle."""


# ---------------------------------------------------------------------- gains

OCTAVE = 256  # steps of a gain's logarithm to the base 2
GAIN_BITS = 14
MOST_OCTAVES = 8  # a gain is between 2^-8 and 2^8
LARGEST_Y = 2**22  # in steps of 1/256
Y_STEPS = 256  # y is a multiple of 1/256 once its gain is applied
DIAL = 255

POWERS_OF_TWO = [round(2 ** (i / OCTAVE) * 2**GAIN_BITS) for i in range(OCTAVE)]


def log_gains(log_gain: Tensor) -> Tensor:
    """Natural logarithms (L, C) in steps of 1/256 octave, int64."""
    steps = (log_gain.detach().double() / math.log(2) * OCTAVE).round()
    return steps.clamp(-MOST_OCTAVES * OCTAVE, MOST_OCTAVES * OCTAVE - 1).long()


def integer_gain(y: Tensor, log_gain: Tensor, level: Tensor) -> Tensor:
    """y (B, C, h, w) of LATENT times the gains of `level` (B,), as a multiple of 1/256.

    A level is taken to the nearest of the dial's 256 positions. `log_gain` is (L, C).
    """
    table, last = log_gains(log_gain), len(log_gain) - 1
    position = (level.double() * DIAL / last).round().long() * last
    below = (position // DIAL).clamp(max=last - 1)
    share = (position - DIAL * below)[:, None]
    steps = (table[below] * (DIAL - share) + table[below + 1] * share).div(DIAL, rounding_mode="floor")
    octave = steps.div(OCTAVE, rounding_mode="floor")
    mantissa = torch.tensor(POWERS_OF_TWO, device=y.device)[steps - OCTAVE * octave]
    powers = torch.tensor([2.0**k for k in range(-MOST_OCTAVES, MOST_OCTAVES)], dtype=torch.float64, device=y.device)
    gain = mantissa.double() * powers[octave + MOST_OCTAVES] * (Y_STEPS / 2**GAIN_BITS)
    scaled = (y.detach().double() * gain[:, :, None, None] + 0.5).floor().clamp(-LARGEST_Y, LARGEST_Y)
    return (scaled / Y_STEPS).float()


# ---------------------------------------------------------------------- parts; `export --c` writes them as C


class MicroEncoder(IntegerNetwork):
    """g_a: 8-bit image (B, 3, H, W) in [-1, 1] -> y (B, channels, H/s, W/s), s = stem * 2 ** (len(widths) - 1).

    A 1x1 convolution of `stem` x `stem` pixels, then at each further stage one of 2x2 positions; after each of them
    residual blocks.

    Args:
        widths: channels of each stage, the first at stride `stem`.
        hidden: channels inside each stage's blocks, 0 for no block; or one number that multiplies the stage's width.
        kernels: of each stage's depthwise convolutions, or one for all.
        channels: M, of y.
        integer: False for the same network in floating point, the control of what integers cost.
        stem: pixels a side that the first layer takes at once, a power of two.
        depth: blocks of a stage.
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 96, 160),
        hidden: Sequence[int] | float = (32, 64, 192, 160),
        kernels: Sequence[int] | int = (3, 3, 5, 5),
        channels: int = 256,
        integer: bool = True,
        stem: int = 4,
        depth: int = 1,
    ) -> None:
        if stem < 2 or stem & (stem - 1) or depth < 0:
            raise UserError(f"MicroEncoder: stem is 2, 4, 8, ... and depth 0 or more, not {stem} and {depth}")
        if isinstance(hidden, int | float):
            hidden = [round(hidden * width) for width in widths]
        if isinstance(kernels, int):
            kernels = [kernels] * len(widths)
        if not len(widths) == len(hidden) == len(kernels):
            raise UserError("MicroEncoder: widths, hidden and kernels differ in length; give one of each a stage")
        layers: list[nn.Module] = []
        before, inside = PIXEL, 3
        for stage, (width, wide, kernel) in enumerate(zip(widths, hidden, kernels, strict=True)):
            factor = 2 if stage else stem
            layers.append(nn.PixelUnshuffle(factor))
            # Pixels have a variance of a quarter.
            gain = math.sqrt(2) if stage else 2 * math.sqrt(2)
            layers.append(IntegerConv(factor**2 * inside, width, before, POSITIVE, 1, integer, gain))
            if wide:
                layers += [IntegerBlock(width, wide, kernel, integer) for _ in range(depth)]
            before, inside = POSITIVE, width
        layers.append(IntegerConv(inside, channels, POSITIVE, LATENT, 1, integer, 2.0))
        super().__init__(*layers)
        self.integer = integer

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] (called x)
        return super().forward(((x + 1) * 127.5).round().sub(128) / 128 if self.integer else x)


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

"""How the compress-and-classify model is coded by `aeic_lightning.bitstream`, in the same container.

The hyperprior's h_s runs in the exact arithmetic of `aeic_lightning.bitstream.exact`, so a stream decodes to the same
latents on every machine. Its convolutions of 3x3 and 5x5 become matrix products of patches; a transposed one is the
convolution of its input with zeros between the values.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from aeic_lightning.bitstream.exact import MEAN_LIMIT, MEAN_STEPS, Linear, from_tokens, patches, to_tokens
from aeic_lightning.bitstream.rows import by_rows
from aeic_lightning.bitstream.stream import Coding, coding
from aeic_lightning.bitstream.tables import Tables
from aeic_lightning.classification.model import ClassificationModel
from aeic_lightning.errors import UserError


class ExactConv(nn.Module):
    """A convolution of stride 1, or a transposed one of stride 2: (B, h, w, K) -> (B, h, w, O) or (B, 2h, 2w, O)."""

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d) -> None:
        super().__init__()
        self.kernel = conv.kernel_size[0]
        self.upsamples = isinstance(conv, nn.ConvTranspose2d)
        if isinstance(conv, nn.ConvTranspose2d):
            matrix = _with_weight(conv.weight.detach().transpose(0, 1).flip(2, 3), cast(Tensor, conv.bias))
        else:
            matrix = conv
        self.conv = Linear(matrix)

    def forward(self, x: Tensor) -> Tensor:
        if self.upsamples:
            wide = x.new_zeros(x.shape[0], 2 * x.shape[1], 2 * x.shape[2], x.shape[3])
            wide[:, ::2, ::2] = x
            x = wide
        (out,) = by_rows(lambda rows: (self.conv(rows),), patches(x, self.kernel))
        return out


class ExactLeakyReLU(nn.Module):
    """One multiplication: the same everywhere."""

    def __init__(self, module: nn.LeakyReLU) -> None:
        super().__init__()
        self.slope = module.negative_slope

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, x * self.slope)


class ExactHyperSynthesis(nn.Module):
    """h_s of the mean-scale hyperprior: z_hat (B, N, h, w) -> (B, 2M, 2h, 2w), scales first."""

    def __init__(self, h_s: nn.Sequential) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(ExactLeakyReLU(m) if isinstance(m, nn.LeakyReLU) else ExactConv(cast(nn.Conv2d, m)) for m in h_s)
        )

    def forward(self, z_hat: Tensor) -> Tensor:
        return from_tokens(self.layers(to_tokens(z_hat)))


class OneStep(nn.Module):
    """What `QuadtreeContext` is to AEIC: all of y in a single step, from h_s's scales and means alone."""

    def forward(self, parameters: Tensor, code: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        scale, mean = parameters.chunk(2, dim=1)
        mean = (mean * MEAN_STEPS).round_().clamp_(-MEAN_LIMIT, MEAN_LIMIT).div_(MEAN_STEPS)
        return code(mean, scale, torch.ones_like(mean, dtype=torch.bool))


@coding.register
def _coding(model: ClassificationModel, fast: bool) -> Coding:
    if fast:
        raise UserError("a compress-and-classify model has no fast form; leave out --fast")
    codec = model.codec
    shared = Tables.of(codec.grid, codec.conditional.skip_threshold, codec.prior)
    return Coding(ExactHyperSynthesis(codec.h_s), OneStep(), shared, _Sender(model))


def _with_weight(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2])
    conv.weight, conv.bias = nn.Parameter(weight.contiguous()), nn.Parameter(bias.detach())
    return conv


class _Sender:
    """g_a and h_a, the image normalised as the model takes it; there is one rate, hence no level."""

    def __init__(self, model: ClassificationModel) -> None:
        self.model = model

    @torch.inference_mode()
    def analyse(self, x: Tensor) -> Tensor:
        return self.model.codec.g_a(self.model.prepare(x))

    @torch.inference_mode()
    def at_level(self, y: Tensor, level: float | None = None) -> tuple[Tensor, Tensor]:
        return y, self.model.codec.h_a(y)

"""The light sender of the compress-and-classify system: a convolutional encoder and a mean-scale hyperprior.

    x -> g_a -> y -> h_a -> z,  h_s(z_hat) -> scales and means of y

The encoder stands where a vision transformer has its patchify stem, so y is what the transformer reads as tokens
(Bai et al., AAAI 2022). Entropy models are those of the latent codec (`aeic_lightning.models.codec.context`).
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from aeic_lightning.models.codec import LatentGrid
from aeic_lightning.models.codec.context import FactorizedPrior, GaussianConditional, add_noise, bits, round_ste

STRIDE = 16  # of y: four halvings, a vision transformer's patch
KERNEL = 5


class CodedLatents(NamedTuple):
    """What the sender computes and the receiver reads back, for an image of H x W, multiples of 16."""

    y: Tensor  # (B, M, H/16, W/16), before quantisation
    y_hat: Tensor  # (B, M, H/16, W/16), what a stream holds; y itself where nothing is quantised
    bits: Tensor  # (B,), likelihood estimate of y and z; of float32 values where nothing is quantised


class MeanScaleCodec(nn.Module):
    """Encoder and entropy model between the image and y_hat.

    Args:
        widths: channels of g_a after each of its four stride-2 convolutions; the last is M.
        hyper_width: channels of z.
    """

    grid = LatentGrid(STRIDE, STRIDE, z_stride=2)

    def __init__(self, widths: Sequence[int], hyper_width: int) -> None:
        super().__init__()
        channels = widths[-1]
        self.g_a = encoder(widths)
        self.h_a = nn.Sequential(
            nn.Conv2d(channels, hyper_width, 3, padding=1),
            nn.LeakyReLU(),
            _conv(hyper_width, hyper_width, 2),
            nn.LeakyReLU(),
            _conv(hyper_width, hyper_width, 1),
        )
        self.h_s = nn.Sequential(
            _conv(hyper_width, channels, 1),
            nn.LeakyReLU(),
            _deconv(channels, channels * 3 // 2),
            nn.LeakyReLU(),
            nn.Conv2d(channels * 3 // 2, 2 * channels, 3, padding=1),
        )
        # Start from scales near 1: from 0, half the symbols would begin on the flat side of the scale floor.
        nn.init.ones_(cast(Tensor, self.h_s[-1].bias)[:channels])
        self.prior = FactorizedPrior(hyper_width)
        self.conditional = GaussianConditional(skip_threshold=None)

    def hyper_decode(self, z_hat: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """z_hat (B, N, ceil(h/2), ceil(w/2)) -> mean and raw scale (before any floor), each (B, M, h, w)."""
        return means_and_scales(self.h_s(z_hat)[..., :height, :width])

    def forward(self, x: Tensor, quantise: bool = True, noisy: bool = False) -> CodedLatents:
        """Normalised images (B, 3, H, W), sides multiples of 16 -> latents and bits.

        In training mode the rate is that of y + U(-1/2, 1/2), while y_hat is rounded with a straight-through gradient;
        in evaluation mode both are of the rounded values. With `noisy`, as the released training has it, y_hat and
        z_hat too carry the noise of the rate in training mode. With `quantise=False` y_hat is y, and its bits are those
        of 32-bit floating point, which is what sending y as it is would take.
        """
        y = self.g_a(x)
        if not quantise:
            return CodedLatents(y, y, torch.full(y.shape[:1], 32.0 * y[0].numel(), device=y.device))
        z = self.h_a(y)
        if self.training and noisy:
            y_noisy, z_noisy = add_noise(y), add_noise(z)
            mean, scale = self.hyper_decode(z_noisy, *y.shape[2:])
            bits_y = bits(self.conditional.likelihood(y_noisy, mean, scale))
            return CodedLatents(y, y_noisy, bits_y + bits(self.prior.likelihood(z_noisy)))
        z_hat = self.prior.quantise(z)
        mean, scale = self.hyper_decode(z_hat, *y.shape[2:])
        residual = round_ste(y - mean)
        if self.training:
            bits_z = bits(self.prior.likelihood(add_noise(z)))
            bits_y = bits(self.conditional.likelihood(add_noise(y), mean, scale))
        else:
            bits_z = bits(self.prior.likelihood(z_hat))
            bits_y = bits(self.conditional.likelihood(residual, torch.zeros_like(mean), scale))
        return CodedLatents(y, residual + mean, bits_y + bits_z)


def means_and_scales(phi: Tensor, step: int = 0) -> tuple[Tensor, Tensor]:
    """What h_s gives (B, 2M, h, w) -> mean and raw scale; it has scales first, AEIC's context models means."""
    scale, mean = phi.chunk(2, dim=1)
    return mean, scale


def encoder(widths: Sequence[int]) -> nn.Sequential:
    """g_a: normalised image (B, 3, H, W) -> y (B, widths[-1], H/16, W/16)."""
    convs = [_conv(before, width, 2) for before, width in zip([3, *widths], widths, strict=False)]
    # Keep the variance, so that y starts with a spread of whole steps. With PyTorch's default every convolution shrinks
    # it threefold, and rounding would turn all of y into zeros.
    for conv in convs:
        nn.init.kaiming_normal_(conv.weight, a=0.01, nonlinearity="leaky_relu")
        nn.init.zeros_(cast(Tensor, conv.bias))
    layers = [layer for conv in convs for layer in (conv, nn.LeakyReLU())]
    return nn.Sequential(*layers[:-1])


def decoder(in_channels: int, widths: Sequence[int]) -> nn.Sequential:
    """g_s: features (B, in_channels, h, w) -> normalised image (B, 3, 16 h, 16 w)."""
    layers: list[nn.Module] = []
    for before, width in zip([in_channels, *widths], [*widths, 3], strict=True):
        layers += [_deconv(before, width), nn.LeakyReLU()]
    return nn.Sequential(*layers[:-1])


def _conv(in_channels: int, out_channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, KERNEL, stride=stride, padding=KERNEL // 2)


def _deconv(in_channels: int, out_channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(in_channels, out_channels, KERNEL, stride=2, padding=KERNEL // 2, output_padding=1)

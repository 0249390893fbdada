"""The receiver's decoder: one denoiser pass, plus l_res, through a VAE decoder."""

from dataclasses import dataclass, field
from typing import NamedTuple

from diffusers.models.autoencoders.vae import Decoder
from torch import Tensor, nn

from aeic_lightning import UserError
from aeic_lightning.decoder.denoiser import Denoiser, UNetConfig


@dataclass
class VAEConfig:
    """Sizes of the VAE decoder. The defaults are those of the half-width decoder of the paper.

    Args:
        widths: channels from full resolution (first) to stride 8 (last).
        layers: resnets in a block, less one.
        groups: groups of every GroupNorm.
        attention: whether the middle block, at stride 8, has attention.
    """

    widths: list[int] = field(default_factory=lambda: [64, 128, 256, 256])
    layers: int = 2
    groups: int = 32
    attention: bool = True

    def check(self) -> None:
        """Raise UserError where the sizes do not fit together."""
        if len(self.widths) != 4:
            raise UserError(f"decoder: the VAE decoder needs 4 widths (strides 1, 2, 4, 8), not {len(self.widths)}")
        if any(width % self.groups for width in self.widths):
            raise UserError(f"decoder: every VAE width must be a multiple of its {self.groups} groups")


@dataclass
class DecoderConfig:
    """Sizes of the one-step decoder."""

    unet: UNetConfig = field(default_factory=UNetConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)


class DecoderOutput(NamedTuple):
    """x_hat (B, 3, 8h, 8w); l_0 and the hidden states are taps for distillation."""

    x_hat: Tensor
    l_0: Tensor
    hidden: list[Tensor]


class OneStepDecoder(nn.Module):
    """x_hat = vae(denoiser(l_T) + l_res), with l_T and l_res at stride 8.

    There is no noise schedule and no latent scaling: l_0 + l_res enters the VAE decoder as it is.
    """

    def __init__(self, l_T_channels: int, l_res_channels: int, config: DecoderConfig) -> None:
        super().__init__()
        config.vae.check()
        self.config = config
        self.denoiser = Denoiser(l_T_channels, l_res_channels, config.unet)
        vae = config.vae
        self.vae = Decoder(
            in_channels=l_res_channels,
            out_channels=3,
            up_block_types=("UpDecoderBlock2D",) * len(vae.widths),
            block_out_channels=tuple(vae.widths),
            layers_per_block=vae.layers,
            norm_num_groups=vae.groups,
            mid_block_add_attention=vae.attention,
        )
        for module in self.vae.modules():
            if type(module).__name__ == "ResnetBlock2D":
                nn.init.zeros_(module.conv2.weight)

    def forward(self, l_T: Tensor, l_res: Tensor) -> DecoderOutput:
        """Latents (B, C, h, w) -> x_hat, clamped to [-1, 1] in evaluation mode.

        In training mode x_hat is not clamped, since a pixel beyond the range would get no gradient to come back.
        """
        l_0, hidden = self.denoiser(l_T)
        x_hat = self.vae(l_0 + l_res)
        return DecoderOutput(x_hat if self.training else x_hat.clamp(-1, 1), l_0, hidden)

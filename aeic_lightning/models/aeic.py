"""The whole compression model: latent codec and one-step decoder, from image to image."""

from dataclasses import asdict
from typing import NamedTuple

import torch
from torch import Tensor

from aeic_lightning.models.base import CompressionModel
from aeic_lightning.models.codec import CodecConfig, CodecOutput, LatentCodec
from aeic_lightning.models.codec.entropy import FactorizedPrior
from aeic_lightning.models.decoder import DecoderConfig, DecoderOutput, OneStepDecoder


class AEICOutput(NamedTuple):
    """One pass of the model for images (B, 3, H, W)."""

    x_hat: Tensor  # (B, 3, H, W), cropped to the size of the input
    bits_estimate: Tensor  # (B,), likelihood bits of the whole image, padding included
    codec: CodecOutput
    decoder: DecoderOutput

    @property
    def taps(self) -> dict[str, Tensor]:
        """Every named tensor that distillation can match."""
        return codec_taps(self.codec) | decoder_taps(self.decoder.l_0, self.decoder.hidden)


def codec_taps(output: CodecOutput) -> dict[str, Tensor]:
    """y, z, phi, y_hat, l_T, l_res by name."""
    return {name: getattr(output, name) for name in ("y", "z", "phi", "y_hat", "l_T", "l_res")}


def decoder_taps(l_0: Tensor, hidden: list[Tensor]) -> dict[str, Tensor]:
    """l_0 and h_0, h_1, ... by name."""
    return {"l_0": l_0} | {f"h_{n}": h for n, h in enumerate(hidden)}


class AEIC(CompressionModel):
    """x -> codec -> l_T, l_res -> decoder -> x_hat."""

    generative = True

    def __init__(self, codec: CodecConfig, decoder: DecoderConfig) -> None:
        super().__init__()
        self.codec = LatentCodec(codec)
        self.decoder = OneStepDecoder(codec.l_T_channels, codec.l_res_channels, decoder)

    @property
    def config(self) -> dict:
        """The sizes as plain values, which a checkpoint carries, and which base weights it was trained on, if any."""
        config = {"codec": asdict(self.codec.config), "decoder": asdict(self.decoder.config)}
        return config | {"base": self.decoder.base_digests}

    @property
    def prior(self) -> FactorizedPrior:
        return self.codec.prior

    @property
    def rate_levels(self) -> int:
        return 0 if self.codec.gains is None else self.codec.gains.levels

    def estimate_bits(self, x: Tensor, level: float | None = None) -> Tensor:
        output = self.codec(x, level)
        return output.bits_y + output.bits_z

    def reconstruct(self, y_hat: Tensor, level: float | None = None) -> Tensor:
        return self.decoder(*self.codec.synthesise(y_hat, self.codec.levels(len(y_hat), level))).x_hat

    def forward(self, x: Tensor, level: Tensor | float | None = None) -> AEICOutput:
        """Images (B, 3, H, W) in [-1, 1] of any size -> x_hat of the same size, bits and taps.

        `level` sets the rate of a codec with `rate_levels` (`LatentCodec.levels`).

        Under autocast only the decoder computes in low precision: rounding to integers and differences of cumulatives
        need the codec's float32.
        """
        with torch.autocast(x.device.type, enabled=False):
            codec = self.codec(x.float(), level)
        decoder = self.decoder(codec.l_T, codec.l_res)
        height, width = x.shape[2:]
        return AEICOutput(decoder.x_hat.float()[..., :height, :width], codec.bits_y + codec.bits_z, codec, decoder)

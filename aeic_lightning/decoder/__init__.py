"""The one-step diffusion decoder."""

from aeic_lightning.decoder.denoiser import Denoiser, UNetConfig
from aeic_lightning.decoder.one_step import DecoderConfig, DecoderOutput, OneStepDecoder, VAEConfig

__all__ = ["DecoderConfig", "DecoderOutput", "Denoiser", "OneStepDecoder", "UNetConfig", "VAEConfig"]

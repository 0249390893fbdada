"""The one-step diffusion decoder."""

from aeic_lightning.models.decoder.denoiser import Denoiser, UNetConfig
from aeic_lightning.models.decoder.one_step import (
    DecoderConfig,
    DecoderOutput,
    OneStepDecoder,
    PretrainedConfig,
    VAEConfig,
)
from aeic_lightning.models.decoder.tiling import TilingConfig

__all__ = [
    "DecoderConfig",
    "DecoderOutput",
    "Denoiser",
    "OneStepDecoder",
    "PretrainedConfig",
    "TilingConfig",
    "UNetConfig",
    "VAEConfig",
]

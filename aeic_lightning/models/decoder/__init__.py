"""The one-step diffusion decoder."""

from aeic_lightning.models.decoder.config import (
    DecoderConfig,
    PretrainedConfig,
    RestorationConfig,
    UNetConfig,
    VAEConfig,
)
from aeic_lightning.models.decoder.denoiser import Denoiser
from aeic_lightning.models.decoder.one_step import DecoderOutput, OneStepDecoder
from aeic_lightning.models.decoder.tiling import TilingConfig

__all__ = [
    "DecoderConfig",
    "DecoderOutput",
    "Denoiser",
    "OneStepDecoder",
    "PretrainedConfig",
    "RestorationConfig",
    "TilingConfig",
    "UNetConfig",
    "VAEConfig",
]

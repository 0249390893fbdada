"""The one-step diffusion decoder."""

from typing import TYPE_CHECKING, Any

from aeic_lightning.models.decoder.config import DecoderConfig, PretrainedConfig, UNetConfig, VAEConfig
from aeic_lightning.models.decoder.tiling import TilingConfig

if TYPE_CHECKING:
    from aeic_lightning.models.decoder.denoiser import Denoiser
    from aeic_lightning.models.decoder.one_step import DecoderOutput, OneStepDecoder

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


def __getattr__(name: str) -> Any:
    # diffusers and peft take ten seconds to import, and a sender does without the networks.
    if name in ("DecoderOutput", "Denoiser", "OneStepDecoder"):
        from aeic_lightning.models.decoder import denoiser, one_step

        return getattr(denoiser if name == "Denoiser" else one_step, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

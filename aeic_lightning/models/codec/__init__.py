"""The latent codec: transforms, entropy model, taps."""

from aeic_lightning.models.codec.latent_codec import (
    CodecConfig,
    CodecOutput,
    LatentCodec,
    LatentGrid,
    Stored,
    StoredEncoder,
    reflect_pad,
)

__all__ = ["CodecConfig", "CodecOutput", "LatentCodec", "LatentGrid", "Stored", "StoredEncoder", "reflect_pad"]

"""The latent codec: transforms, entropy models, context, taps."""

from aeic_lightning.models.codec.latent_codec import CodecConfig, CodecOutput, LatentCodec, LatentGrid, reflect_pad

__all__ = ["CodecConfig", "CodecOutput", "LatentCodec", "LatentGrid", "reflect_pad"]

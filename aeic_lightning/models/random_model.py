"""Models with random weights, for what does not depend on training."""

from pathlib import Path

import torch

from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.decoder import DecoderConfig, UNetConfig, VAEConfig

_SMALL_RECEIVER = {
    "synthesis_widths": [16, 16, 16],
    "synthesis_depths": [1, 1, 1],
    "l_T_channels": 8,
    "l_res_channels": 8,
}
CODECS = {
    "tiny": CodecConfig([16, 32, 48, 64, 96], context_width=96, context_depth=2, **_SMALL_RECEIVER),
    "AEIC-SE": CodecConfig(**_SMALL_RECEIVER),
}
"""Sizes of the sender: that of the tiny study, and AEIC-SE's."""


def random_model(codec: CodecConfig, seed: int = 0) -> AEIC:
    """A codec with random weights in every layer, none of them zero, and a decoder too small to matter.

    For tests and measurements of what does not depend on training: arithmetic, sizes, speed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _random_model(codec)


def _random_model(codec: CodecConfig) -> AEIC:
    decoder = DecoderConfig(
        UNetConfig(widths=[16, 16], heads=[1, 1], layers=1, groups=8),
        VAEConfig(widths=[8, 8, 8, 8], layers=0, groups=4, attention=False),
    )
    model = AEIC(codec, decoder)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "prior." in name:
                noise = torch.rand(parameter.shape) - 0.5
                parameter.copy_(noise + (1.0 if "matrices" in name else 0.0))
            else:
                fan_in = parameter[0].numel() if parameter.dim() > 1 else 16
                parameter.add_(torch.randn(parameter.shape) * 0.5 * fan_in**-0.5)
    model.codec.prior.update_quantiles()
    return model.eval()


def save(model: AEIC, path: Path) -> None:
    """As a checkpoint that `load_model` reads."""
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"model_config": model.config, "state_dict": state}, path)

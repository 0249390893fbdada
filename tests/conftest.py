"""Sizes that build in milliseconds, shared by the tests of models, systems and commands."""

import pytest
import torch

from aeic_lightning.codec import CodecConfig
from aeic_lightning.decoder import DecoderConfig, UNetConfig, VAEConfig

torch.set_num_threads(1)


@pytest.fixture
def codec_config() -> CodecConfig:
    """Five stages, M = 32: the paper's shape with other numbers."""
    return CodecConfig(
        widths=[8, 8, 16, 16, 32],
        depths=[1, 1, 1, 1, 1],
        context_width=16,
        context_depth=1,
        synthesis_widths=[32, 24, 16],
        synthesis_depths=[1, 1, 1],
        l_T_channels=12,
        l_res_channels=8,
    )


@pytest.fixture
def decoder_config() -> DecoderConfig:
    """Four resolutions each for the U-Net and the VAE decoder."""
    return DecoderConfig(
        unet=UNetConfig(widths=[8, 16, 16, 16], heads=[1, 2, 2, 2], layers=1, groups=4),
        vae=VAEConfig(widths=[8, 8, 8, 16], layers=0, groups=4),
    )


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)

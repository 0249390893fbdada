"""A small Stable Diffusion: the files that a full-size base comes in, made by the libraries that write them."""

from pathlib import Path

import pytest
from diffusers import UNet2DConditionModel
from diffusers.models.autoencoders.vae import Decoder
from small_release import save_base, small_unet, small_vae

from aeic_lightning.models.decoder import DecoderConfig, PretrainedConfig, UNetConfig, VAEConfig

WIDTHS, HEADS = [8, 16], [1, 2]


@pytest.fixture
def unet() -> UNet2DConditionModel:
    return small_unet(WIDTHS, HEADS)


@pytest.fixture
def vae() -> Decoder:
    return small_vae()


@pytest.fixture
def base_files(tmp_path, unet, vae) -> tuple[Path, Path]:
    """A diffusers folder, and a checkpoint of the VAE decoder."""
    return save_base(tmp_path, unet, vae)


@pytest.fixture
def pretrained(base_files) -> DecoderConfig:
    """A decoder over that base."""
    turbo, half = base_files
    return DecoderConfig(
        unet=UNetConfig(widths=WIDTHS, heads=HEADS, layers=1, groups=4),
        vae=VAEConfig(widths=[8, 8, 8, 16], layers=0, groups=4),
        pretrained=PretrainedConfig(unet=str(turbo), vae=str(half), rank=4, alpha=1.0),
    )

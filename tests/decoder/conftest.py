"""A small Stable Diffusion: the files that a full-size base comes in, made by the libraries that write them."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.autoencoders.vae import Decoder

from aeic_lightning.decoder import DecoderConfig, PretrainedConfig, UNetConfig, VAEConfig

WIDTHS, HEADS = [8, 16], [1, 2]


def small_unet() -> UNet2DConditionModel:
    """With time embedding and cross-attention, randomly filled throughout."""
    unet = UNet2DConditionModel(
        block_out_channels=WIDTHS,
        attention_head_dim=HEADS,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
        use_linear_projection=True,
    )
    for p in unet.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return unet.eval()


def small_vae() -> Decoder:
    """Four latent channels, as every Stable Diffusion decoder."""
    vae = Decoder(
        in_channels=4, block_out_channels=(8, 8, 8, 16), up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=0,
        norm_num_groups=4,
    )  # fmt: skip
    for p in vae.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return vae.eval()


@pytest.fixture
def unet() -> UNet2DConditionModel:
    return small_unet()


@pytest.fixture
def vae() -> Decoder:
    return small_vae()


@pytest.fixture
def base_files(tmp_path, unet, vae) -> tuple[Path, Path]:
    """A diffusers folder, and a checkpoint of the VAE decoder."""
    unet.save_pretrained(tmp_path / "turbo" / "unet")
    state = {f"decoder.{name}": tensor for name, tensor in vae.state_dict().items()}
    torch.save({"state_dict": state | {"loss.weight": torch.ones(1)}}, tmp_path / "half.ckpt")
    return tmp_path / "turbo", tmp_path / "half.ckpt"


@pytest.fixture
def pretrained(base_files) -> DecoderConfig:
    """A decoder over that base."""
    turbo, half = base_files
    return DecoderConfig(
        unet=UNetConfig(widths=WIDTHS, heads=HEADS, layers=1, groups=4),
        vae=VAEConfig(widths=[8, 8, 8, 16], layers=0, groups=4),
        pretrained=PretrainedConfig(unet=str(turbo), vae=str(half), rank=4, alpha=1.0),
    )

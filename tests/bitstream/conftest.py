"""Models with random weights: arithmetic and formats do not depend on training."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from aeic_lightning.bitstream.export import export
from aeic_lightning.bitstream.stream import Bitstream
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.decoder.tiling import TilingConfig
from aeic_lightning.models.random_model import CODECS, random_model
from tests.bitstream.small import LEVELS, small

MINIATURE = CodecConfig(
    widths=[8, 8, 16, 16, 32], context_width=32, context_depth=1, synthesis_widths=[16, 16, 16],
    synthesis_depths=[1, 1, 1], l_T_channels=8, l_res_channels=8,
)  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model():
    return random_model(MINIATURE)


@pytest.fixture(scope="session")
def bitstream(model):
    return Bitstream(model)


@pytest.fixture(scope="session")
def model_of_levels():
    """Three rates."""
    return small(LEVELS)


@pytest.fixture(scope="session")
def levelled(model_of_levels):
    return Bitstream(model_of_levels)


@pytest.fixture(scope="session")
def tiled(model_of_levels) -> AEIC:
    """`model_of_levels` with tiles of 32 latents (256 pixels)."""
    tiled = copy.deepcopy(model_of_levels)
    tiled.decoder.config = replace(tiled.decoder.config, tiling=TilingConfig(32, 8, 40, 8))
    return tiled


@pytest.fixture(scope="session")
def exported(tiled, made_once) -> Path:
    """Both halves of `tiled`."""
    return made_once("export", lambda folder: export(Bitstream(tiled), folder))  # checks the golden vectors itself


@pytest.fixture(scope="session")
def se_codec():
    """AEIC-SE's sender."""
    return random_model(CODECS["AEIC-SE"]).codec


@pytest.fixture
def picture():
    """x (1, 3, H, W): noise over waves, from a seed."""

    def make(height: int, width: int, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        down, right = torch.linspace(-4, 4, height)[:, None], torch.linspace(-4, 4, width)[None]
        waves = torch.stack([(down + right).sin(), (down * 2 - right).cos(), (down * right).sin()])
        return (0.6 * waves + 0.3 * torch.randn(3, height, width, generator=generator)).clamp(-1, 1)[None]

    return make

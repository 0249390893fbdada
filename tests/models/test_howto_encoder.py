"""The page on encoders says what works: its encoder, taken out of the page, is trained, sent and named in results."""

import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from importable import importable
from skimage.data import coffee

from aeic_lightning.bitstream.stream import Bitstream
from aeic_lightning.errors import UserError
from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.parts import build_encoder
from aeic_lightning.models.random_model import random_model
from aeic_lightning.systems import OptimizationConfig, TeacherSystem

PAGE = (Path(__file__).parents[2] / "docs" / "howto_encoder.md").read_text()


@pytest.fixture
def config(codec_config, tmp_path) -> Iterator[CodecConfig]:
    """The small codec with the page's encoder, as the page's line of YAML names it."""
    code, *_ = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    line, *_ = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)  # what follows is of other parts
    assert len(code.splitlines()) <= 25
    assert len(line.splitlines()) == 1
    (tmp_path / "my_encoder.py").write_text(code)
    with importable(tmp_path):
        yield CodecConfig(**asdict(codec_config) | yaml.safe_load(line)["model"]["init_args"]["codec"])


def test_it_trains_and_is_sent(config, decoder_config, loader, trainer):
    system = TeacherSystem(config, decoder_config, {"rate": 1.0, "mse": 2.0}, OptimizationConfig())
    (batch,) = loader(1)
    with torch.no_grad():
        y = system.model.codec.g_a(batch["image"])
    assert y.shape == (1, 64, 4, 4)
    fitted = trainer(2)
    fitted.fit(system, loader(2))
    assert fitted.callback_metrics["train/loss"] > 0
    bitstream = Bitstream(random_model(config))
    sent = bitstream.encode_fully(batch["image"])
    assert torch.equal(bitstream.decode(sent.data).y_hat, sent.y_hat)


@pytest.mark.parametrize("images", ["gradients", "photo"])
def test_y_starts_with_the_deviation_that_the_page_asks_for(config, loader, images):
    """From any seed."""
    (batch,) = loader(1)
    photo = torch.from_numpy(coffee()[:256, :256].copy()).permute(2, 0, 1)[None] / 127.5 - 1
    for seed in range(10):
        torch.manual_seed(seed)
        encoder, _, _ = build_encoder(config.encoder)
        with torch.no_grad():
            assert encoder(batch["image"] if images == "gradients" else photo).std() > 1


def test_results_name_it_as_the_page_says(config):
    assert f"`{config.labels['encoder']}`" in PAGE


def test_the_limits_that_the_page_gives_are_those_of_the_code(config):
    config.check_encoder(16, 32)
    for channels, stride in ((8, 32), (20, 32), (64, 48), (64, 4)):
        with pytest.raises(UserError):
            config.check_encoder(channels, stride)

"""A compress-and-classify model that builds in milliseconds, and data for it."""

import pytest

from aeic_lightning.classification import ClassificationConfig, TransformerConfig
from datamodules.labelled import SampleDigits


@pytest.fixture
def sizes() -> ClassificationConfig:
    """Five blocks of which the decoder reads two, and a 4 x 4 grid of latents."""
    return ClassificationConfig(
        encoder_widths=[8, 8, 8, 12],
        hyper_width=6,
        decoder_widths=[8, 8, 8],
        aggregate=[1, 3],
        transformer=TransformerConfig(width=24, depth=5, heads=3, grid=[4, 4], classes=7),
    )


@pytest.fixture
def digits() -> SampleDigits:
    return SampleDigits(batch_size=8, samples_per_epoch=64, eval_batch_size=100)

"""Sizes that build in milliseconds, a small data set and a trainer that leaves nothing behind, shared by all tests."""

from pathlib import Path

import lightning
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.decoder import DecoderConfig, UNetConfig, VAEConfig

torch.set_num_threads(1)

LONGEST = [
    *("study/test_sweeps.py", "test_experiments.py", "bitstream/test_export.py", "test_paper_experiments.py"),
    *("robustness/test_robustness.py", "test_foreign_parts.py", "bitstream/test_levels.py"),
    *("study/test_sweep_processes.py", "checkpoints/test_checkpoint_files.py"),
    *("classification/test_classification_experiments.py", "bitstream/test_commands.py", "test_installation.py"),
    *("models/test_encoder_seam.py", "conformance/test_released_decoder.py", "test_run_folder.py", "test_cli.py"),
]
"""Files that take longest. They begin, since a long one at the end would leave all workers but one idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {Path(__file__).parent / name: rank for rank, name in enumerate(LONGEST)}
    assert all(path.is_file() for path in ranks), "LONGEST names a file that is gone"
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


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


class SmoothImages(Dataset):
    """`count` fixed colour gradients of `size` x `size` pixels."""

    def __init__(self, count: int, size: int = 128) -> None:
        generator = torch.Generator().manual_seed(0)
        seeds = torch.randn(count, 3, 4, 4, generator=generator)
        self.images = torch.nn.functional.interpolate(seeds, size=(size, size), mode="bicubic").clamp(-1, 1)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        return {"image": self.images[index], "name": f"image{index}"}


@pytest.fixture
def loader():
    """loader(count, batch_size): batches in a fixed order."""
    return lambda count, batch_size=1: DataLoader(SmoothImages(count), batch_size=batch_size)


@pytest.fixture
def trainer(tmp_path):
    """trainer(max_steps, ...): CPU, no logger, no progress bar."""

    def make(max_steps: int, **kwargs) -> lightning.Trainer:
        defaults = {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": -1,
            "max_steps": max_steps,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": tmp_path,
        }
        return lightning.Trainer(**defaults | kwargs)

    return make

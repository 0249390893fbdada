"""A data set of smooth random images, and a trainer that leaves nothing behind."""

import lightning
import pytest
import torch
from torch.utils.data import DataLoader, Dataset


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

"""`data.on_device`: crops cut from bytes on the device are those of the loader."""

from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode

from datamodules import ImageFolder
from datamodules.crops import CropDataset
from datamodules.packed import PackedCrops
from tests.conftest import quiet_trainer

SIZES = [(300, 280), (150, 170), (100, 90)]
"""The last is enlarged for crops of 128."""


@pytest.fixture
def pictures():
    rng = np.random.default_rng(0)
    seeds = [rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8) for height, width in SIZES]
    return [
        np.asarray(Image.fromarray(seed).resize((width, height), Image.Resampling.BICUBIC))
        for seed, (height, width) in zip(seeds, SIZES, strict=True)
    ]


@pytest.mark.parametrize("zoom", [1.0, 2.5])
def test_packed_crops_are_those_that_pillow_cuts(pictures, zoom):
    source = SimpleNamespace(names=["a", "b", "c"], read=pictures.__getitem__)
    options = {"crop_size": 128, "vertical_flip": True, "shuffle_channels": True, "max_zoom_out": zoom}
    plain, packed = CropDataset(source, **options), PackedCrops(images=source, **options)
    keys = [(sample % 3, sample) for sample in range(48)]
    found = packed.cut_all(torch.stack([packed[key]["window"] for key in keys]))
    expected = torch.stack([plain[key]["image"] for key in keys])
    assert [packed[key]["name"] for key in keys] == [plain[key]["name"] for key in keys]
    if zoom == 1:
        assert torch.equal(found, expected)
        assert found.is_contiguous()
    levels = ((found - expected) * 127.5).abs().round()
    assert levels.max() <= 1
    assert (levels > 0).float().mean() < 0.01


def test_nothing_waits_for_the_device_that_cuts(pictures):
    packed = PackedCrops(
        images=SimpleNamespace(names=["a"], read=pictures.__getitem__), crop_size=128, max_zoom_out=2.0
    )
    with FakeTensorMode():  # tensors that have no numbers: to ask for one fails
        packed.pixels = torch.empty(packed.pixels.shape, dtype=torch.uint8, device="cuda")
        images = packed.cut_all(torch.empty(4, 10, dtype=torch.int64, device="cuda"))
    assert images.is_cuda
    assert images.shape == (4, 3, 128, 128)


class Sees(lightning.LightningModule):
    """Keeps the batches of a run."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization, self.batches, self.validated = False, [], []

    def training_step(self, batch, batch_idx):
        self.batches.append((batch["name"], batch["image"]))

    def validation_step(self, batch, batch_idx):
        self.validated.append(batch["image"])

    def configure_optimizers(self):
        return None


def test_a_run_sees_the_same_crops(pictures, tmp_path):
    """A file that cannot be read is skipped for the same other one."""
    (tmp_path / "train").mkdir()
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"train/{number}.png")
    (tmp_path / "train/1.png").write_bytes(b"no image")
    runs = []
    for on_device in (False, True):
        folder = str(tmp_path / "train")
        data = ImageFolder(folder, val_count=1, crop_size=128, batch_size=2, on_error="skip", on_device=on_device)
        module = Sees()
        with pytest.warns(UserWarning, match="skipped a training image"):
            quiet_trainer(tmp_path, -1, max_epochs=2, num_sanity_val_steps=0).fit(module, datamodule=data)
        runs.append((module.batches, module.validated))
    for (names, crops), (others, theirs) in zip(runs[0][0], runs[1][0], strict=True):
        assert names == others
        assert torch.equal(crops, theirs)
    assert len(runs[0][0]) == 2
    torch.testing.assert_close(runs[1][1], runs[0][1], rtol=0, atol=0)

"""Data sets of Hugging Face: files on this machine, splits, and what cannot be read."""

import socket

import datasets
import numpy as np
import pytest

from aeic_lightning.errors import UserError
from datamodules import HuggingFaceImages
from tests.datamodules.written import RNG, encoded, pixels_of, write


@pytest.fixture(autouse=True)
def _cache_in_tmp(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.05)  # five seconds after each pass
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")
    datasets.disable_progress_bars()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_parquet(tmp_path, num_workers):
    stored = [RNG.integers(0, 256, (130, 160, 3), dtype=np.uint8) for _ in range(4)]
    table = datasets.Dataset.from_dict({"photo": [{"bytes": encoded(a, 6), "path": None} for a in stored]})
    table = table.cast_column("photo", datasets.Image())
    table.to_parquet(tmp_path / "train.parquet")
    table.select([0, 1]).to_parquet(tmp_path / "val.parquet")
    module = HuggingFaceImages(
        "parquet",
        data_files={"train": str(tmp_path / "train.parquet"), "validation": str(tmp_path / "val.parquet")},
        image_column="photo",
        crop_size=128,
        batch_size=2,
        num_workers=num_workers,
        crops_by_area=True,
    )
    module.setup()
    batches = list(module.val_dataloader())
    assert [batch["name"] for batch in batches] == [["validation-000000"], ["validation-000001"]]
    for batch, pixels in zip(batches, stored, strict=False):
        np.testing.assert_array_equal(pixels_of(batch), np.rot90(pixels, -1))  # the EXIF orientation is applied
    crops = list(module.train_dataloader())
    assert [batch["image"].shape for batch in crops] == [(2, 3, 128, 128)] * 2
    assert sorted(name for batch in crops for name in batch["name"]) == [f"train-00000{i}" for i in range(4)]


def test_parquet_of_plain_bytes(tmp_path):
    pixels = RNG.integers(0, 256, (130, 160, 3), dtype=np.uint8)
    datasets.Dataset.from_dict({"image": [encoded(pixels)], "n": [3]}).to_parquet(tmp_path / "a.parquet")
    files = {"validation": str(tmp_path / "a.parquet")}
    module = HuggingFaceImages("parquet", data_files=files, train_split=None)
    module.setup()
    np.testing.assert_array_equal(pixels_of(next(iter(module.test_dataloader()))), pixels)
    with pytest.raises(UserError, match=r'"picture" is not in parquet; it has image, n'):
        HuggingFaceImages("parquet", data_files=files, train_split=None, image_column="picture").setup()
    with pytest.raises(UserError, match=r'"n" of parquet does not hold images'):
        HuggingFaceImages("parquet", data_files=files, train_split=None, image_column="n").setup()
    with pytest.raises(UserError, match='cannot load split "train"'):
        HuggingFaceImages("parquet", data_files=files).setup()


def test_broken_row_is_named(tmp_path):
    datasets.Dataset.from_dict({"image": [b"text"]}).to_parquet(tmp_path / "a.parquet")
    module = HuggingFaceImages(
        "parquet", data_files={"validation": str(tmp_path / "a.parquet")}, train_split=None, num_workers=1
    )
    module.setup()
    with pytest.raises(UserError, match=r"^cannot decode parquet validation-000000"):
        list(module.val_dataloader())


def test_a_row_of_nulls_is_skipped_or_named(tmp_path):
    images = [
        None,
        {"bytes": None, "path": None},
        {"bytes": encoded(RNG.integers(0, 256, (130, 130, 3), np.uint8)), "path": None},
    ]
    features = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    datasets.Dataset.from_dict({"image": images}, features=features).to_parquet(tmp_path / "a.parquet")
    options = {"data_files": {"train": str(tmp_path / "a.parquet")}, "val_split": None, "crop_size": 128,
               "batch_size": 1}  # fmt: skip
    module = HuggingFaceImages("parquet", on_error="skip", **options)
    module.setup()
    with pytest.warns(UserWarning, match="the row holds no image"):
        names = [batch["name"] for batch in module.train_dataloader()]
    assert names == [["train-000002"]] * 3
    assert sorted(module.skipped) == ["train-000000", "train-000001"]
    module = HuggingFaceImages("parquet", **options)
    module.setup()
    with pytest.raises(UserError, match=r"train-00000\d: the row holds no image"):
        list(module.train_dataloader())


def test_a_broken_parquet_file_says_why(tmp_path):
    datasets.Dataset.from_dict({"image": [RNG.bytes(5000)] * 3}).to_parquet(tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[:4] + b"\xff" * 2000 + data[2004:])  # the footer is whole
    module = HuggingFaceImages("parquet", data_files={"train": str(tmp_path / "a.parquet")}, val_split=None)
    with pytest.raises(
        UserError, match=r"cannot load split.*DatasetGenerationError.*caused by OSError: .*page header"
    ) as caught:
        module.setup()
    assert "\n" not in str(caught.value)


def test_imagefolder_without_any_network_access(tmp_path, monkeypatch):
    looked_up = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: looked_up.append(host) or [])
    for name in ["train/a.png", "train/b.png", "validation/c.png"]:
        pixels = write(tmp_path / "photos" / name)
    module = HuggingFaceImages("imagefolder", data_dir=str(tmp_path / "photos"), crop_size=128, batch_size=2)
    module.setup()
    np.testing.assert_array_equal(pixels_of(next(iter(module.val_dataloader()))), pixels)
    assert sorted(next(iter(module.train_dataloader()))["name"]) == ["train-000000", "train-000001"]
    assert looked_up == []


def test_slices_of_one_split(tmp_path):
    for i in range(4):
        write(tmp_path / "photos" / f"{i}.png")
    module = HuggingFaceImages(
        "imagefolder", data_dir=str(tmp_path / "photos"), train_split="train[:3]", val_split="train[3:]"
    )
    module.setup()
    assert (len(module.train_images.names), len(module.val_images.names)) == (3, 1)
    with pytest.raises(UserError, match="also an evaluation split"):
        HuggingFaceImages("imagefolder", train_split="train", val_split="train")


def test_hub_name_that_is_not_in_the_cache(monkeypatch):
    import huggingface_hub.constants

    # What HF_HUB_OFFLINE=1 sets when the libraries are imported.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"someone/photos.*in the cache if offline") as caught:
        HuggingFaceImages("someone/photos").setup()
    assert "\n" not in str(caught.value)

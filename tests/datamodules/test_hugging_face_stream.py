"""A streamed data set: every row once a pass, in an order that follows from the seed, wherever a run begins."""

import io
import tarfile
from collections import Counter

import datasets
import numpy as np
import pytest
import torch

from aeic_lightning.errors import UserError
from datamodules import HuggingFaceStream
from datamodules.hf_stream import StreamSampler
from tests.datamodules.test_resumed_data import Recorder, SaveAfter, fit
from tests.datamodules.written import RNG, encoded, pixels_of

datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0  # once for each stream that is dropped: half a minute in all

FILES, ROWS = 3, 4


@pytest.fixture(autouse=True)
def _cache_in_tmp(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")
    # After each pass the library waits five seconds for pyarrow's threads, which the end of a process could meet.
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.05)
    datasets.disable_progress_bars()


@pytest.fixture
def files(tmp_path):
    """Twelve grey images in three parquet files; a crop's value says which image it is of."""
    for file in range(FILES):
        greys = [np.full((140, 150, 3), 10 * (ROWS * file + i), np.uint8) for i in range(ROWS)]
        table = datasets.Dataset.from_dict({"image": [encoded(grey) for grey in greys], "n": [0] * ROWS})
        table.to_parquet(tmp_path / f"train-{file}.parquet")
    return {"train": str(tmp_path / "train-*.parquet"), "validation": str(tmp_path / "train-1.parquet")}


def stream(files, **settings):
    options = {"crop_size": 128, "batch_size": 2, "samples_per_epoch": 8, "shuffle_buffer": 3, "val_count": 2}
    module = HuggingFaceStream("parquet", data_files=files, **options | settings)
    module.setup()
    return module


def seen(loader, epochs=1):
    """Name and image of each sample, in order."""
    batches = [(batch["name"], pixels_of(batch | {"image": batch["image"][i : i + 1]})[0, 0, 0])
               for _ in range(epochs) for batch in loader for i in range(len(batch["name"]))]  # fmt: skip
    return [(names[i % len(names)], int(value) // 10) for i, (names, value) in enumerate(batches)]


def test_every_row_once_a_pass_in_a_new_order(files):
    samples = seen(stream(files).train_dataloader(), epochs=3)
    passes = [samples[:12], samples[12:]]
    assert sorted(row for _, row in passes[0]) == sorted(row for _, row in passes[1]) == list(range(12))
    assert [row for _, row in passes[0]] != [row for _, row in passes[1]]
    assert [name for name, _ in passes[1]] == [f"train-pass1-{place:06d}" for place in range(12)]
    assert seen(stream(files).train_dataloader(), epochs=3) == samples
    assert seen(stream(files, seed=1).train_dataloader(), epochs=3) != samples


def test_workers_and_the_beginning_have_no_influence(files):
    samples = seen(stream(files).train_dataloader(), epochs=3)
    assert seen(stream(files, num_workers=2).train_dataloader(), epochs=3) == samples
    for first in (2, 12, 14):
        loader = stream(files).train_dataloader()
        loader.next_sample = first
        assert seen(loader, epochs=1) == samples[first : first + 8]


def test_processes_share_the_stream_of_one(files):
    module = stream(files)
    rows = module.train_rows
    whole = [(row.name, sample) for (row, _), sample in StreamSampler(rows, "train", 3, 8, 4, seed=0)]
    parts = [StreamSampler(rows, "train", 3, 8, 2, seed=0, rank=rank, world_size=2) for rank in range(2)]
    shared = [(row.name, sample) for part in parts for (row, _), sample in part]
    assert sorted(shared) == whole
    assert Counter(sample % 2 for _, sample in shared) == {0: 4, 1: 4}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_run_sees_what_the_undisturbed_one_saw(files, tmp_path, monkeypatch, num_workers):
    def train(module, callbacks=(), ckpt_path=None):
        monkeypatch.setattr("tests.datamodules.test_resumed_data.SamplePhotos", lambda **_: stream(files, **settings))
        return fit(tmp_path, module, callbacks, ckpt_path, limits={"max_steps": 2 * 9, "max_epochs": -1})

    settings = {"num_workers": num_workers, "samples_per_epoch": 10, "val_split": "validation"}
    whole, first, second = Recorder(), Recorder(), Recorder()
    train(whole)
    train(first, [SaveAfter(tmp_path / "a.ckpt", batch=7)])
    train(second, ckpt_path=tmp_path / "a.ckpt")
    assert len(whole.seen) == 9
    assert first.seen + second.seen == whole.seen
    assert torch.equal(second.weight, whole.weight)


def test_the_first_validation_images_are_kept(files):
    module = stream(files)
    batches = list(module.val_dataloader())
    assert [batch["name"] for batch in batches] == [["validation-000000"], ["validation-000001"]]
    assert [pixels_of(batch)[0, 0, 0] for batch in batches] == [40, 50]
    assert batches[0]["image"].shape == (1, 3, 140, 150)
    assert len(module.test_images.names) == 2


def test_a_row_that_is_no_image(tmp_path):
    images = [encoded(RNG.integers(0, 256, (130, 130, 3), np.uint8)), b"text"]
    datasets.Dataset.from_dict({"image": images}).to_parquet(tmp_path / "a.parquet")
    files = {"train": str(tmp_path / "a.parquet")}
    settings = {"val_split": None, "batch_size": 1, "samples_per_epoch": 2, "shuffle_buffer": 1}
    with pytest.raises(UserError, match=r"cannot decode parquet train-pass0-000001"):
        list(stream(files, **settings).train_dataloader())
    with pytest.warns(UserWarning, match="skipped a training image: cannot decode parquet train-pass0-000001"):
        names = [batch["name"] for batch in stream(files, on_error="skip", **settings).train_dataloader()]
    assert names == [["train-pass0-000000"], ["train-pass1-000000"]], "the row behind it takes its place"
    datasets.Dataset.from_dict({"image": [b"text"] * 2}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="cannot be decoded"), pytest.warns(UserWarning, match="skipped"):
        list(stream(files, on_error="skip", **settings).train_dataloader())


def test_a_tar_of_images(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(3):
            data = encoded(np.full((130, 130, 3), 10 * i, np.uint8))
            entry = tarfile.TarInfo(f"{i}.png")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    module = HuggingFaceStream(
        "webdataset", data_files={"train": str(tmp_path / "a.tar")}, image_column="png", val_split=None,
        crop_size=128, batch_size=1, samples_per_epoch=3,
    )  # fmt: skip
    module.setup()
    assert sorted(row for _, row in seen(module.train_dataloader())) == [0, 1, 2]


def test_what_a_stream_cannot_do_is_said(files):
    for settings, message in (
        ({"samples_per_epoch": None}, "a stream has no length"),
        ({"cache": True}, "data.cache needs all images at once"),
        ({"on_device": True}, "data.on_device needs all images at once"),
        ({"crops_by_area": True}, "data.crops_by_area needs"),
        ({"small_images": "drop"}, "data.small_images: drop needs"),
        ({"shuffle_buffer": 0}, "both are at least 1"),
        ({"image_column": "photo"}, 'data.image_column "photo" is not in parquet; it has image, n'),
        ({"train_split": "test", "val_split": None}, 'cannot load split "test"'),
    ):
        with pytest.raises(UserError, match=message):
            stream(files, **settings)
    module = stream(files, train_split=None)
    with pytest.raises(UserError, match="no training images"):
        module.train_dataloader()

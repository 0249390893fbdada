"""Sample photos and folders of images: where they look, how they split, what they refuse."""

import os

import numpy as np
import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel
from PIL import Image

from aeic_lightning.errors import UserError
from aeic_lightning.files import find_images, image_names
from datamodules import ImageFolder, SamplePhotos
from datamodules.image_folder import _real
from tests.datamodules.written import RNG, pixels_of, write

# --- arguments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop_size": 192}, "multiple of 128"),
        ({"crop_size": 0}, "multiple of 128"),
        ({"batch_size": 0}, "batch_size"),
        ({"num_workers": -1}, "num_workers"),
        ({"seed": -1}, "seed"),
        ({"on_error": "ignore"}, "on_error"),
        ({"small_images": "crop"}, "small_images"),
        ({"val_max_size": [384]}, "val_max_size"),
    ],
)
def test_arguments_that_cannot_work(arguments, message):
    with pytest.raises(UserError, match=message):
        SamplePhotos(**arguments)


def test_small_images_are_dropped_and_counted(tmp_path, capsys):
    for name, size in (("high", (300, 127)), ("just", (128, 128)), ("large", (140, 150)), ("wide", (100, 300))):
        write(tmp_path / f"{name}.png", *size)
    data = ImageFolder(train_dir=str(tmp_path), crop_size=128, batch_size=2, samples_per_epoch=16, small_images="drop")
    data.setup()
    assert {name for batch in data.train_dataloader() for name in batch["name"]} == {"just", "large"}
    assert capsys.readouterr().err == "dropped 2 of 4 training images: a side below data.crop_size, 128 pixels\n"

    (tmp_path / "just.png").unlink()
    (tmp_path / "large.png").unlink()
    data.setup()
    with pytest.raises(UserError, match=r"all 2 training images have a side below data\.crop_size, 128 pixels"):
        data.train_dataloader()


def test_a_broken_header_is_left_to_on_error(tmp_path):
    write(tmp_path / "small.png", 100, 100)
    write(tmp_path / "large.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    arguments = {"train_dir": str(tmp_path), "crop_size": 128, "batch_size": 1, "small_images": "drop"}
    skipping = ImageFolder(**arguments, on_error="skip")
    skipping.setup()
    with pytest.warns(UserWarning, match="skipped a training image"):
        assert {name for batch in skipping.train_dataloader() for name in batch["name"]} == {"large"}
    raising = ImageFolder(**arguments)
    raising.setup()
    with pytest.raises(UserError, match="broken"):
        raising.train_dataloader()


def test_batch_larger_than_the_epoch():
    photos = SamplePhotos(samples_per_epoch=None, batch_size=9)
    photos.setup()
    with pytest.raises(UserError, match=r"samples_per_epoch to 9 or more, or lower data\.batch_size"):
        photos.train_dataloader()


def test_command_line_knows_every_argument(tmp_path):
    def build(*arguments):
        trainer = ["--trainer.logger=false", "--trainer.accelerator=cpu", f"--trainer.default_root_dir={tmp_path}"]
        cli = LightningCLI(
            BoringModel, subclass_mode_data=True, run=False, save_config_callback=None, args=[*trainer, *arguments]
        )
        return cli.datamodule

    photos = build("--data=datamodules.SamplePhotos", "--data.seed=5", "--data.crop_size=128", "--data.on_error=skip")
    assert (photos.seed, photos.crop_size, photos.on_error, photos.cache) == (5, 128, "skip", True)
    assert photos.val_max_size == [384, 512]
    table = build("--data=datamodules.HuggingFaceImages", "--data.path=x", "--data.batch_size=3")
    assert (table.path, table.batch_size) == ("x", 3)
    folder = build("--data=datamodules.ImageFolder", "--data.train_dir=x", "--data.val_count=3")
    assert (folder.train_dir, folder.val_count) == ("x", 3)


# --- sample photos -----------------------------------------------------------------------------------------------


def test_sample_photos_are_the_packaged_ones():
    photos = SamplePhotos(val_max_size=None, batch_size=4)
    photos.setup()
    assert len(photos.train_images.names) == 8
    assert {path.resolve() for path in photos.train_images.paths}.isdisjoint(photos.val_images.paths)
    images = {batch["name"][0]: pixels_of(batch) for batch in photos.val_dataloader()}
    assert {name: image.shape for name, image in images.items()} == {
        "chelsea": (300, 451, 3),
        "china": (427, 640, 3),
        "flower": (427, 640, 3),
    }
    from sklearn.datasets import load_sample_image

    np.testing.assert_array_equal(images["china"], load_sample_image("china.jpg"))
    batch = next(iter(photos.train_dataloader()))
    assert batch["image"].shape == (4, 3, 256, 256)
    assert set(batch["name"]) <= set(photos.train_images.names)


def test_sample_photos_validation_size():
    photos = SamplePhotos()
    photos.setup()
    shapes = [tuple(batch["image"].shape) for batch in photos.val_dataloader()]
    assert shapes == [(1, 3, 300, 451), (1, 3, 384, 512), (1, 3, 384, 512)]
    assert [b["name"] for b in photos.test_dataloader()] == [["chelsea"], ["china"], ["flower"]]


def test_seed_reaches_the_crops():
    def first(seed):
        photos = SamplePhotos(crop_size=128, seed=seed)
        photos.setup()
        return next(iter(photos.train_dataloader()))["image"]

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_crops_by_area():
    photos = SamplePhotos(crop_size=128, samples_per_epoch=800, crops_by_area=True)
    photos.setup()
    names = photos.train_images.names
    count = np.bincount([index for index, _ in photos.train_dataloader().sampler], minlength=8) / 800
    areas = np.array([photos.train_images.read(i)[..., 0].size for i in range(8)])
    np.testing.assert_allclose(count, areas / areas.sum(), atol=0.01)
    assert count.argmax() == names.index("retina")


# --- image folder ------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path):
    for name in ["a.png", "a.JPG", "sub/b.webp", "sub/deep/c.TIFF", "d.jpeg", "e.bmp", "f.ppm", "g.tif"]:
        write(tmp_path / "train" / name)
    (tmp_path / "train" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "._a.png").write_bytes(b"a resource fork")
    for name in ["v.png", "w.png"]:
        write(tmp_path / "val" / name)
    write(tmp_path / "test" / "t.png")
    return tmp_path


def test_folders_are_drawn_by_their_weights(tmp_path):
    for name in ["few/a.png", "few/b.png", *(f"many/{i}.png" for i in range(6)), "alone.png"]:
        write(tmp_path / name)
    photos = ImageFolder(str(tmp_path), val_dir=None, crop_size=128, samples_per_epoch=1300, folder_weights={"few": 3})
    photos.setup()
    names = photos.train_images.names
    drawn = np.bincount([index for index, _ in photos.train_dataloader().sampler], minlength=9) / 1300
    expected = [3 / 13 if name.startswith("few/") else 1 / 13 for name in names]
    np.testing.assert_allclose(drawn, expected, atol=0.01)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [({"fewer": 2}, "no training image is in the folder fewer.*did you mean few"), ({"few": 0}, "must be above 0")],
)
def test_wrong_folder_weights(weights, expected, tmp_path):
    write(tmp_path / "few/a.png")

    def load():
        photos = ImageFolder(str(tmp_path), crop_size=128, folder_weights=weights)
        photos.setup()
        photos.train_dataloader()

    with pytest.raises(UserError, match=expected):
        load()


def test_folder_names_and_contents(folders):
    module = ImageFolder(str(folders / "train"), str(folders / "val"), str(folders / "test"))
    module.setup()
    assert module.train_images.names == ["a.JPG", "a.png", "d", "e", "f", "g", "sub/b", "sub/deep/c"]
    assert [batch["name"] for batch in module.val_dataloader()] == [["v"], ["w"]]
    assert [batch["name"] for batch in module.test_dataloader()] == [["t"]]
    shown = pixels_of(next(iter(module.test_dataloader())))
    np.testing.assert_array_equal(shown, np.asarray(Image.open(folders / "test" / "t.png")))


def test_names_stay_unique_in_the_worst_case(tmp_path):
    paths = [tmp_path / name for name in ("a.jpg", "a.png", "a.png.tif", "b.png")]
    assert image_names(tmp_path, paths) == ["a.jpg", "a.png", "a.png.tif", "b.png"]


def test_linked_folders_are_searched_once(folders, tmp_path):
    (folders / "val" / "linked").symlink_to(folders / "test")
    (folders / "val" / "loop").symlink_to(folders / "val")
    module = ImageFolder(val_dir=str(folders / "val"))
    module.setup()
    assert module.val_images.names == ["linked/t", "v", "w"]


def test_folder_that_is_missing_or_empty(tmp_path):
    with pytest.raises(UserError, match=r"data\.train_dir: there is no folder"):
        ImageFolder(str(tmp_path / "gone")).setup()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match=r"data\.val_dir: no image in .*empty"):
        ImageFolder(val_dir=str(tmp_path / "empty")).setup()
    with pytest.raises(UserError, match="no folder of images is given"):
        ImageFolder()


def test_every_known_suffix_is_read_and_other_files_are_counted(tmp_path, capsys):
    for name, kind in {"a.jfif": "JPEG", "b.PGM": "PPM", "c.jpe": "JPEG", "d.pbm": "PPM", "e.apng": "PNG"}.items():
        Image.fromarray(RNG.integers(0, 256, (130, 130), dtype=np.uint8)).save(tmp_path / name, kind)
    for name in ("notes.txt", "more.txt", "f.pdf", "README", ".hidden"):
        (tmp_path / name).write_text("no image")
    module = ImageFolder(val_dir=str(tmp_path))
    module.setup()
    assert module.val_images.names == ["a", "b", "c", "d", "e"]
    assert len(list(module.val_dataloader())) == 5
    said = capsys.readouterr().err
    assert f"passed over 4 of 9 files in {tmp_path}: 2 .txt" in said
    assert "1 .pdf" in said
    assert "1 no suffix" in said


def test_validation_images_inside_the_training_folder_are_refused(folders):
    with pytest.raises(UserError, match=r"2 image\(s\) are in data\.train_dir and in data\.val_dir"):
        ImageFolder(str(folders), str(folders / "val")).setup()
    with pytest.raises(UserError, match=r"data\.test_dir"):
        ImageFolder(str(folders / "train"), str(folders / "val"), str(folders / "train")).setup()


def test_real_paths_are_those_of_the_system(folders):
    """Links to files, to folders and to links, `..`, and a folder that is itself reached by a link."""
    (folders / "train" / "link.png").symlink_to(folders / "val" / "v.png")
    (folders / "train" / "again.png").symlink_to("link.png")
    (folders / "linked").symlink_to(folders / "train", target_is_directory=True)
    (folders / "train" / "inner").symlink_to(folders / "test", target_is_directory=True)
    for root in (folders / "train", folders / "linked", folders / "val" / ".." / "train"):
        paths = find_images(root)
        assert len(paths) == 11
        assert _real(paths) == {str(path.resolve()) for path in paths}


def test_a_training_image_that_links_to_a_validation_image_is_refused(folders):
    (folders / "train" / "sub" / "link.png").symlink_to(folders / "val" / "v.png")
    with pytest.raises(UserError, match=r"1 image\(s\) are in data\.train_dir and in data\.val_dir, .*v\.png"):
        ImageFolder(str(folders / "train"), str(folders / "val")).setup()


def test_folders_are_looked_up_once(monkeypatch, folders):
    looked = []
    real = os.path.realpath
    paths = find_images(folders / "train")
    monkeypatch.setattr("os.path.realpath", lambda path: looked.append(str(path)) or real(path))
    _real(paths)
    assert sorted(looked) == sorted(str(folders / "train" / name) for name in (".", "sub", "sub/deep"))


def test_split_of_the_training_folder(folders):
    def split(**arguments):
        module = ImageFolder(str(folders / "train"), val_count=3, **arguments)
        module.setup()
        return module.train_images.names, module.val_images.names

    train, val = split()
    assert (len(train), len(val)) == (5, 3)
    assert set(train).isdisjoint(val)
    assert split(seed=9) == (train, val)  # the seed of a run does not move images between the sides
    assert len({tuple(split(split_seed=s)[1]) for s in range(10)}) > 3
    with pytest.raises(UserError, match="has only 8 images"):
        ImageFolder(str(folders / "train"), val_count=8).setup()
    with pytest.raises(UserError, match="val_count"):
        ImageFolder(str(folders / "train"), str(folders / "val"), val_count=2)


def test_missing_side_is_named(folders):
    module = ImageFolder(val_dir=str(folders / "val"))
    module.setup()
    with pytest.raises(UserError, match="no training images"):
        module.train_dataloader()
    module = ImageFolder(str(folders / "train"))
    module.setup()
    with pytest.raises(UserError, match="no validation images"):
        module.val_dataloader()


@pytest.mark.filterwarnings("ignore:skipped a training image")
def test_skipped_files_are_shown(folders, capsys):
    (folders / "train" / "d.jpeg").write_bytes(b"")
    module = ImageFolder(
        str(folders / "train"),
        crop_size=128,
        batch_size=2,
        on_error="skip",
        crops_by_area=True,
        samples_per_epoch=40000,
    )
    module.setup()
    loader = module.train_dataloader()
    assert loader.dataset[module.train_images.names.index("d"), 0]["name"] == "e"
    assert module.skipped == ["d"]
    module.teardown("fit")
    assert "1 of 8 training images could not be read: d" in capsys.readouterr().out

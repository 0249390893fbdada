"""Data with classes."""

import random
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from torchvision import transforms

from aeic_lightning.errors import UserError
from aeic_lightning.systems.optimization import seed_batch
from datamodules.crops import to_tensor
from datamodules.labelled import LabelledFolder, SampleDigits
from datamodules.labelled_hf import LabelledHuggingFace

COLOURS = {"blue": (0, 0, 255), "red": (255, 0, 0)}


@pytest.fixture
def folder(tmp_path) -> Path:
    """train/ and val/ with two classes of plain colour; sizes differ."""
    for part, count in (("train", 4), ("val", 2)):
        for name, colour in COLOURS.items():
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (40 + 8 * i, 56), colour).save(tmp_path / part / name / f"{part}{i}.png")
    return tmp_path


def colour_of(image: torch.Tensor) -> str:
    mean = ((image.mean((1, 2)) + 1) * 127.5).round().int().tolist()
    return {v: k for k, v in COLOURS.items()}[tuple(mean)]


def batches(data, loader: str) -> list[dict]:
    data.setup("fit")
    return list(getattr(data, loader)())


# ---------------------------------------------------------------------------------------------------- digits


def test_digits_are_scikit_learns_and_no_image_is_on_both_sides():
    data = SampleDigits(crop_size=64)
    data.setup("fit")
    digits = load_digits()
    seen = {}
    for part, images in (("train", data.train_images), ("val", data.val_images)):
        for i, name in enumerate(images.names):
            row = int(name.removeprefix("digit-"))
            assert data.labels[part][name] == digits.target[row]
            seen.setdefault(part, {})[images.read(i).tobytes()] = row
    assert len(seen["train"]) == 1397  # also: no image comes twice
    assert len(seen["val"]) == 400
    assert not set(seen["train"]) & set(seen["val"])
    assert set(data.labels["val"].values()) == set(range(10))
    # The enlargement keeps what is there: shrunk again it is the original, ink for ink.
    image = Image.fromarray(data.val_images.read(0)).convert("L").resize((8, 8), Image.Resampling.BOX)
    ink = (255 - np.asarray(image, float)) * 16 / 255
    assert np.abs(ink - digits.images[1397]).mean() < 1.0


def test_a_nearest_neighbour_does_as_well_as_the_docstring_says():
    digits = load_digits()
    model = KNeighborsClassifier(1).fit(digits.data[:1397], digits.target[:1397])
    assert 0.96 <= model.score(digits.data[1397:], digits.target[1397:]) <= 0.99


def test_digit_batches():
    data = SampleDigits(batch_size=8, eval_batch_size=50, samples_per_epoch=16)
    train, val = batches(data, "train_dataloader"), list(data.val_dataloader())
    assert [len(batch["name"]) for batch in train] == [8, 8]
    assert len(val) == 8
    for batch in (*train, *val):
        assert batch["image"].shape[1:] == (3, 64, 64)
        assert batch["image"].abs().max() <= 1
        assert batch["label"].dtype == torch.int64
    again = batches(SampleDigits(batch_size=8, samples_per_epoch=16), "train_dataloader")
    assert torch.equal(train[1]["image"], again[1]["image"])
    other = batches(SampleDigits(batch_size=8, samples_per_epoch=16, seed=1), "train_dataloader")
    assert train[0]["name"] != other[0]["name"]


# ---------------------------------------------------------------------------------------------------- folders


def test_a_folder_for_each_class(folder):
    data = LabelledFolder(train_dir=str(folder / "train"), val_dir=str(folder / "val"), crop_size=32, batch_size=4)
    found = [*batches(data, "train_dataloader"), *data.val_dataloader()]
    assert data.class_names == ["blue", "red"]
    assert sum(len(batch["name"]) for batch in found) == 12
    for batch in found:
        for image, label, name in zip(batch["image"], batch["label"].tolist(), batch["name"], strict=True):
            assert colour_of(image) == data.class_names[label] == name.split("/")[0]


def test_validation_images_are_torchvisions_resized_centre_crops(tmp_path):
    (tmp_path / "a").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a" / "x.png")
    data = LabelledFolder(train_dir=None, val_dir=str(tmp_path), crop_size=32, resize=48)
    (batch,) = batches(data, "val_dataloader")
    reference = transforms.Compose(
        [transforms.Resize(48, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(32)]
    )(Image.fromarray(noise))
    assert torch.equal(batch["image"][0], to_tensor(np.asarray(reference)))


def test_crops_show_between_the_least_and_the_most_area(tmp_path):
    # A picture whose levels are positions: the corners of a crop tell what it shows.
    (tmp_path / "a").mkdir()
    y, x = np.mgrid[0:256, 0:256]
    Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8)).save(tmp_path / "a" / "x.png")
    data = LabelledFolder(
        train_dir=str(tmp_path), crop_size=64, crop_scale=[0.2, 0.5], batch_size=1, samples_per_epoch=60,
        horizontal_flip=False,
    )  # fmt: skip
    shares = []
    for batch in batches(data, "train_dataloader"):
        levels = (batch["image"][0] + 1) * 127.5
        width, height = levels[0].max() - levels[0].min(), levels[1].max() - levels[1].min()
        shares.append(float(width * height / 256**2))
        assert 0.7 < width / height < 1.4
    assert 0.18 < min(shares) < 0.25
    assert 0.42 < max(shares) < 0.51


def noise_folder(tmp_path, side=64):
    (tmp_path / "a").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a" / "x.png")
    return noise


def test_timms_transforms_end_in_the_range_of_this_package(tmp_path):
    """Those that leave an image as it is give its bytes back."""
    noise = noise_folder(tmp_path)
    augment = {"color_jitter": None, "interpolation": "bicubic", "ratio": [1.0, 1.0]}
    data = LabelledFolder(
        train_dir=str(tmp_path), crop_size=64, crop_scale=[1.0, 1.0], batch_size=1, horizontal_flip=False,
        augment=augment,
    )  # fmt: skip
    (batch,) = batches(data, "train_dataloader")
    torch.testing.assert_close(batch["image"][0], to_tensor(noise), atol=1e-5, rtol=0)
    data = LabelledFolder(
        train_dir=str(tmp_path), crop_size=64, crop_scale=[1.0, 1.0], batch_size=1, samples_per_epoch=12,
        vertical_flip=True, augment=augment,
    )  # fmt: skip
    flipped = [to_tensor(part) for part in (noise, noise[:, ::-1], noise[::-1], noise[::-1, ::-1])]
    found = {
        next(i for i, one in enumerate(flipped) if torch.allclose(batch["image"][0], one, atol=1e-5))
        for batch in batches(data, "train_dataloader")
    }
    assert found == {0, 1, 2, 3}


def test_erased_pixels_are_noise_of_the_normalised_image(tmp_path):
    noise_folder(tmp_path)
    arguments = {"train_dir": str(tmp_path), "crop_size": 64, "batch_size": 1, "samples_per_epoch": 80}
    augment = {"color_jitter": None, "re_prob": 0.25, "re_mode": "pixel"}
    plain = batches(LabelledFolder(**arguments, augment=augment | {"re_prob": 0.0}), "train_dataloader")
    erased = batches(LabelledFolder(**arguments, augment=augment), "train_dataloader")
    assert max(batch["image"].abs().max().item() for batch in plain) <= 1 + 1e-5
    beyond = [batch["image"] for batch in erased if batch["image"].abs().max() > 1 + 1e-5]
    assert 10 <= len(beyond) <= 32  # a quarter of 80


def test_what_timm_draws_follows_from_seed_and_sample_alone(tmp_path):
    """Whichever random state the process is in, whichever sample came before; and that state goes on unmoved."""
    noise = noise_folder(tmp_path)
    augment = {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.5, "re_mode": "pixel"}
    data = LabelledFolder(train_dir=str(tmp_path), crop_size=32, batch_size=1, augment=augment)
    data.setup("fit")
    data.train_dataloader()
    first = [data._crops.cut(noise, sample) for sample in range(6)]
    assert len({image.sum().item() for image in first}) == 6

    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    seed_batch(123, 0, 0)
    before = states()
    assert all(torch.equal(data._crops.cut(noise, sample), first[sample]) for sample in (5, 2, 0))
    assert states() == before
    other = LabelledFolder(train_dir=str(tmp_path), crop_size=32, batch_size=1, augment=augment, seed=1)
    other.setup("fit")
    other.train_dataloader()
    assert not torch.equal(other._crops.cut(noise, 0), first[0])


def test_the_strongest_posterization_is_black(tmp_path):
    """A magnitude of 10 keeps no bit; all others are Pillow's."""
    noise = Image.fromarray(noise_folder(tmp_path))
    data = LabelledFolder(train_dir=str(tmp_path), augment={"auto_augment": "rand-m10-inc1"})
    (augment,) = (part for part in data._transform().transforms if hasattr(part, "ops"))
    (op,) = (op for op in augment.ops if op.name == "PosterizeIncreasing")
    op.prob = 1.0
    assert not np.asarray(op(noise)).any()
    op.magnitude = 5
    assert np.array_equal(op(noise), ImageOps.posterize(noise, 2))


def test_augmentations_that_cannot_be(tmp_path):
    for augment, message in (
        ({"colour_jitter": 0.4}, "create_transform does not take it.*colour_jitter"),
        ({"auto_augment": 3}, "create_transform does not take it"),
        ({"hflip": 0.5}, "data.augment.hflip follows from"),
    ):
        with pytest.raises(UserError, match=message):
            LabelledFolder(train_dir=str(tmp_path), augment=augment)
    with pytest.raises(UserError, match="shuffle_channels"):
        LabelledFolder(train_dir=str(tmp_path), augment={}, shuffle_channels=True)


def test_the_class_follows_the_image_that_takes_a_broken_ones_place(folder):
    for broken in (folder / "train" / "blue").iterdir():
        broken.write_bytes(b"not an image")
    data = LabelledFolder(train_dir=str(folder / "train"), crop_size=32, batch_size=8, on_error="skip")
    with pytest.warns(UserWarning, match="skipped"):
        (batch,) = batches(data, "train_dataloader")
    assert batch["label"].tolist() == [1] * 8
    assert {colour_of(image) for image in batch["image"]} == {"red"}


def test_folder_errors(folder):
    (folder / "val" / "green").mkdir()
    Image.new("RGB", (40, 40)).save(folder / "val" / "green" / "x.png")
    data = LabelledFolder(train_dir=str(folder / "train"), val_dir=str(folder / "val"), crop_size=32)
    with pytest.raises(UserError, match="green"):
        data.setup("fit")
    Image.new("RGB", (40, 40)).save(folder / "train" / "loose.png")
    with pytest.raises(UserError, match="loose is in no class folder"):
        LabelledFolder(train_dir=str(folder / "train"), crop_size=32).setup("fit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop_size": 40}, "multiple of 16"),
        ({"crop_size": 64, "resize": 48}, "smaller than data.crop_size"),
        ({"crop_scale": [0.5, 1.5]}, "crop_scale"),
        ({"eval_batch_size": 0}, "eval_batch_size"),
        ({"crops_by_area": True}, "do nothing for images with classes"),
        ({"on_device": True}, "does nothing for images with classes"),
    ],
)
def test_arguments_that_cannot_work(arguments, message):
    with pytest.raises(UserError, match=message):
        LabelledFolder(train_dir="x", **arguments)


# ---------------------------------------------------------------------------------------------------- Hugging Face


@pytest.fixture
def parquet(tmp_path, monkeypatch):
    """parquet(labels, feature): a file of plain images whose red level is the row."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(name: str, labels: list, feature) -> str:
        images = [Image.new("RGB", (32, 32), (10 * i, 0, 0)) for i in range(len(labels))]
        features = datasets.Features({"image": datasets.Image(), "kind": feature})
        table = datasets.Dataset.from_dict({"image": images, "kind": labels}, features)
        table.to_parquet(tmp_path / name)
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize(
    ("feature", "labels", "names", "numbers"),
    [
        (datasets.ClassLabel(names=["cat", "dog", "owl"]), [1, 0, 1], ["cat", "dog", "owl"], [1, 0, 1]),
        (datasets.Value("string"), ["dog", "cat", "dog"], ["cat", "dog"], [1, 0, 1]),
        (datasets.Value("int64"), [7, 3, 7], ["3", "7"], [1, 0, 1]),
    ],
)
def test_hugging_face_classes(parquet, feature, labels, names, numbers):
    files = {"train": parquet("train.parquet", labels, feature), "validation": parquet("val.parquet", labels, feature)}
    data = LabelledHuggingFace(
        path="parquet", data_files=files, label_column="kind", crop_size=32, resize=32, batch_size=3
    )
    (batch,) = batches(data, "val_dataloader")
    assert data.class_names == names
    assert batch["label"].tolist() == numbers
    assert ((batch["image"][:, 0, 0, 0] + 1) * 12.75).round().tolist() == [0, 1, 2]
    (train,) = data.train_dataloader()
    rows = ((train["image"][:, 0, 0, 0] + 1) * 12.75).round().int().tolist()
    assert [numbers[row] for row in rows] == train["label"].tolist()


def test_hugging_face_errors(parquet):
    words = datasets.Value("string")
    files = {"train": parquet("a.parquet", ["x", "y"], words), "validation": parquet("b.parquet", ["x", "z"], words)}
    data = LabelledHuggingFace(path="parquet", data_files=files, label_column="kind", crop_size=32)
    with pytest.raises(UserError, match="'z'"):
        data.setup("fit")
    data = LabelledHuggingFace(path="parquet", data_files=files, label_column="class", crop_size=32)
    with pytest.raises(UserError, match='"class" is not in parquet; it has image, kind'):
        data.setup("fit")

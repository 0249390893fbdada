"""Images with classes: ImageNet's folders, Hugging Face data sets, and handwritten digits that need no download.

Batches are those of `ImageDataModule` with "label", (B,) int64, added; all images of a batch have the same size, in
validation too, since a classifier is trained for one size.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader

from aeic_lightning.errors import UserError
from aeic_lightning.torch_settings import own_random_states
from datamodules.base import Z_STRIDE, ImageDataModule
from datamodules.crops import (
    CropDataset,
    ImageSource,
    WholeImages,
    centre_crop,
    numbered_rng,
    to_tensor,
)
from datamodules.image_folder import ImageFolder

PATCH = 16
"""Crops are a multiple of it, the stride of the compress-and-classify encoder."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of images in [0, 1]: what timm's transforms normalise with."""


class LabelledData(ImageDataModule):
    """Mixed into a data module, adds classes. A subclass sets `class_names` and `labels` in `setup`, beside the images.

    Training images are random resized crops (an area, an aspect ratio and a place are drawn, and resized to the crop),
    as classifiers are trained; validation images are resized and cropped at the centre.

    Args:
        crop_size: side of all images in pixels, a multiple of 16.
        crop_scale: [least, most] share of an image's area that a training crop shows.
        augment: arguments of timm's `create_transform`, which then makes the training images, such as `{auto_augment:
            rand-m9-mstd0.5-inc1, re_prob: 0.25, re_mode: pixel, interpolation: bicubic}`. Its crops and flips follow
            `crop_size`, `crop_scale`, `horizontal_flip` and `vertical_flip`; what it draws follows from (seed, sample)
            alone. Pixels that it erases are noise, which may leave [-1, 1]. null: crops and flips of this package.
        resize: shorter side that a validation or test image is resized to before its centre is cropped; null keeps its
            proportion to the crop at ImageNet's 256 : 224.
        eval_batch_size: validation and test images a step and process.
        **kwargs: the arguments of the data module that this is mixed into.
    """

    def __init__(
        self,
        crop_size: int = 224,
        crop_scale: list[float] = [0.08, 1.0],  # noqa: B006 (never changed; LightningCLI shows it in --help)
        augment: dict[str, Any] | None = None,
        resize: int | None = None,
        eval_batch_size: int = 32,
        **kwargs: Any,
    ) -> None:
        # The base class asks for multiples of 128, the stride of the other codec's z.
        super().__init__(crop_size=Z_STRIDE, **kwargs)
        if crop_size < 1 or crop_size % PATCH:
            raise UserError(f"data.crop_size is {crop_size}; it must be a positive multiple of {PATCH}")
        if len(crop_scale) != 2 or not 0 < crop_scale[0] <= crop_scale[1] <= 1:
            raise UserError(f"data.crop_scale is {crop_scale}; it must be [least, most] within 0 and 1")
        resize = round(crop_size * 256 / 224) if resize is None else resize
        if resize < crop_size:
            raise UserError(f"data.resize is {resize}, smaller than data.crop_size {crop_size}; raise it")
        if eval_batch_size < 1:
            raise UserError(f"data.eval_batch_size is {eval_batch_size}; it must be at least 1")
        if self.max_zoom_out != 1 or self.crops_by_area or self.val_max_size is not None or self.small_images == "drop":
            raise UserError(
                "data.max_zoom_out, crops_by_area, val_max_size and small_images do nothing for images with classes; "
                "crop_scale and resize take their place"
            )
        if self.on_device:
            raise UserError("data.on_device does nothing for images with classes; leave it out")
        self.crop_size = crop_size
        self.crop_scale = crop_scale
        self.augment = augment
        if augment is not None and self.shuffle_channels:
            raise UserError("data.shuffle_channels does nothing beside data.augment; drop one")
        self._transform()  # refuses arguments that timm does not know before anything is read
        self.resize = resize
        self.eval_batch_size = eval_batch_size
        self.class_names: list[str] = []
        self.labels: dict[str, dict[str, int]] = {}
        """For each of "train", "val" and "test": class of each image by its name."""

    def val_dataloader(self) -> DataLoader:
        return self._evaluation(self._require(self.val_images, "validation"), self.labels["val"])

    def test_dataloader(self) -> DataLoader:
        return self._evaluation(self._require(self.test_images, "test"), self.labels["test"])

    def _dataset(self, images: ImageSource) -> "LabelledCrops":
        own = self.labels["train"], self.crop_scale, self._transform()
        return LabelledCrops(*own, images=images, cache=self.cache, **self._cropping())

    def _transform(self) -> Callable[[Image.Image], torch.Tensor] | None:
        """timm's transform of training images, whose result is normalised with ImageNet's mean and deviation."""
        if self.augment is None:
            return None
        from timm.data import create_transform  # takes seconds to import

        own = {
            "input_size": self.crop_size,
            "is_training": True,
            "scale": self.crop_scale,
            "hflip": 0.5 * self.horizontal_flip,
            "vflip": 0.5 * self.vertical_flip,
        }
        fixed = next((name for name in self.augment if name in {*own, "mean", "std", "separate"}), None)
        if fixed:
            raise UserError(f"data.augment.{fixed} follows from the other settings of data; drop it")
        try:
            return _with_posterize(create_transform(**own, **self.augment))
        except (TypeError, ValueError, KeyError, AssertionError) as error:
            raise UserError(
                f"data.augment {self.augment}: timm's create_transform does not take it: {error or 'see its arguments'}"
            ) from error

    def _evaluation(self, images: ImageSource, labels: dict[str, int]) -> DataLoader:
        return self._whole(LabelledImages(images, labels, self.resize, self.crop_size), self.eval_batch_size)


def _with_posterize(transform: Any) -> Any:
    """timm's transform, whose strongest posterization keeps 0 bits: black, which Pillow no longer makes."""
    for part in transform.transforms:
        for op in getattr(part, "ops", []):
            if op.name.startswith("Posterize"):
                op.aug_fn = _posterize
    return transform


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    return ImageOps.posterize(image, bits) if bits else Image.new(image.mode, image.size)


class LabelledCrops(CropDataset):
    """Random resized crops with classes: adds "label" (int) to what `CropDataset` gives.

    Args:
        labels: class by image name.
        scale: least and most share of the area.
        transform: makes a training image of a whole one in their place, normalised with ImageNet's mean and deviation.
        **crops: see `CropDataset`.
    """

    def __init__(
        self,
        labels: dict[str, int],
        scale: Sequence[float],
        transform: Callable[[Image.Image], torch.Tensor] | None = None,
        **crops: Any,
    ) -> None:
        super().__init__(**crops)
        self.labels = labels
        self.scale = scale
        self.transform = transform

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        item = super().__getitem__(key)
        # By name: a broken image may have been replaced by another one.
        return item | {"label": self.labels[item["name"]]}

    def cut(self, image: np.ndarray, sample: int) -> torch.Tensor:
        if self.transform is None:
            return super().cut(image, sample)
        with own_random_states(int(numbered_rng(self.seed, 1, sample).integers(2**63))):
            normalised = self.transform(Image.fromarray(image))
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        return 2 * (normalised * std + mean) - 1

    def _random_crop(self, image: np.ndarray, rng: np.random.Generator, zoom: float = 1.0) -> np.ndarray:
        # `zoom` is always 1: the share of the area does its work.
        height, width = image.shape[:2]
        least, most = self.scale
        for _ in range(10):
            area = rng.uniform(least, most) * height * width
            ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
            if w <= width and h <= height:
                break
        else:
            w = h = min(width, height)
        left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
        size, box = (self.crop_size, self.crop_size), (left, top, left + w, top + h)
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC, box=box))


class LabelledImages(WholeImages):
    """Resized centre crops with classes: {"image": float32 (3, crop, crop) in [-1, 1], "name", "label"}.

    Args:
        images: where the images come from.
        labels: class by image name.
        resize: shorter side before the crop, in pixels.
        crop_size: side of the crop.
    """

    def __init__(self, images: ImageSource, labels: dict[str, int], resize: int, crop_size: int) -> None:
        super().__init__(images)
        self.labels = labels
        self.resize = resize
        self.crop_size = crop_size

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.images.read(index)
        height, width = image.shape[:2]
        factor = self.resize / min(height, width)
        if factor != 1:
            size = (max(self.resize, round(width * factor)), max(self.resize, round(height * factor)))
            image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
        name = self.images.names[index]
        image = centre_crop(image, self.crop_size, self.crop_size)
        return {"image": to_tensor(image), "name": name, "label": self.labels[name]}


class LabelledFolder(LabelledData, ImageFolder):
    """A folder for each class, as ImageNet is laid out: train_dir/n01440764/x.JPEG, val_dir/n01440764/y.JPEG.

    Classes are numbered by the sorted names of the training folders (of the evaluation folders without training ones).

    Args:
        **kwargs: the arguments of `LabelledData` and of `ImageFolder`.

    Raises:
        UserError: in `setup`, for an image outside of a class folder or of a class that training does not have; and
            whatever `ImageFolder` raises.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        parts = {"train": self.train_images, "val": self.val_images, "test": self.test_images}
        folders = {part: _class_folders(images) for part, images in parts.items() if images is not None}
        known = next(iter(folders.values()))
        self.class_names = sorted(set(known.values()))
        number = {name: i for i, name in enumerate(self.class_names)}
        for part, names in folders.items():
            foreign = next((folder for folder in names.values() if folder not in number), None)
            if foreign is not None:
                raise UserError(
                    f"the {part} images have a class {foreign} that the training images lack; add or remove it"
                )
            self.labels[part] = {name: number[folder] for name, folder in names.items()}


def _class_folders(images: ImageSource) -> dict[str, str]:
    for name in images.names:
        if "/" not in name:
            raise UserError(f"{name} is in no class folder; put the images of each class into a folder of its own")
    return {name: name.split("/")[0] for name in images.names}


class DigitImages:
    """scikit-learn's handwritten digits as an `ImageSource`, enlarged to `side` x `side` pixels, dark on white."""

    def __init__(self, first: int, last: int, side: int) -> None:
        from sklearn.datasets import load_digits  # takes a second to import

        digits: Any = load_digits()
        self.values = digits.images[first:last]  # 0..16, ink
        self.targets = digits.target[first:last].tolist()
        self.names = [f"digit-{i:04d}" for i in range(first, last)]
        self.side = side

    def read(self, index: int) -> np.ndarray:
        paper = Image.fromarray(np.rint(255 - self.values[index] * (255 / 16)).astype(np.uint8))
        return np.array(paper.resize((self.side, self.side), Image.Resampling.BICUBIC).convert("RGB"))

    def size(self, index: int) -> tuple[int, int]:
        return self.side, self.side


class SampleDigits(LabelledData):
    """1797 real handwritten digits that scikit-learn carries (part of UCI's Optical Recognition of Handwritten Digits).

    Each is a scan of its own, 8 x 8 pixels of 17 levels, enlarged here by bicubic interpolation. A classifier on them
    means something: the classes are shapes, which no mean colour gives away; each image is its own sample, unlike
    patches of a few photographs; and how well other methods do is known (a nearest neighbour: 96 to 99 %). What they
    are not is photographs: rates say nothing about photographs, and 33 bytes hold a digit without loss.

    The last 400 are for validation and test (which are the same), the other 1397 for training. The order of the file is
    kept, as in scikit-learn's own example, rather than shuffled: neighbours in it are by one writer.

    Args:
        crop_size: as in `LabelledData`.
        crop_scale: as in `LabelledData`.
        horizontal_flip: as in `ImageDataModule`; a mirrored digit is none.
        **kwargs: the other arguments of `LabelledData`.
    """

    VALIDATION = 400
    COUNT = 1797

    def __init__(
        self,
        crop_size: int = 64,
        crop_scale: list[float] = [0.7, 1.0],  # noqa: B006
        horizontal_flip: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            crop_size=crop_size, crop_scale=crop_scale, horizontal_flip=horizontal_flip, resize=crop_size, **kwargs
        )

    def setup(self, stage: str | None = None) -> None:
        border = self.COUNT - self.VALIDATION
        self.train_images = DigitImages(0, border, self.crop_size)
        self.val_images = self.test_images = DigitImages(border, self.COUNT, self.crop_size)
        self.class_names = [str(digit) for digit in range(10)]
        for part, images in (("train", self.train_images), ("val", self.val_images), ("test", self.val_images)):
            self.labels[part] = dict(zip(images.names, images.targets, strict=True))

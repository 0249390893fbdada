"""Images in folders."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from aeic_lightning.errors import UserError, did_you_mean
from aeic_lightning.files import SUFFIXES, find_images, image_names
from datamodules.base import ImageDataModule, ImageFiles, ImageSource


class ImageFolder(ImageDataModule):
    """Folders of image files, searched with their subfolders (and links to folders).

    Files count by their suffix, in any case (`aeic_lightning.files.SUFFIXES`: jpg, jfif, png, webp, bmp, tif,
    ppm, pgm and more); what begins with a dot is left out. The number of other files is reported. An image's name is
    its path within the folder without the suffix; where two files would share it (a.png and a.jpg), they keep it.

    Args:
        train_dir: training images; not needed for evaluation alone.
        val_dir: validation images.
        test_dir: test images; by default the validation images.
        val_count: without a val_dir, take this many images out of the training folder for validation.
        split_seed: of that choice; apart from `seed`, so that runs with other seeds keep the same validation images.
        folder_weights: how often an image is drawn for a training crop, by the folder below train_dir that it is in
            (its first part alone): {wallpapers: 4} draws each of them four times as often as the others, whose weight
            is 1.
        **kwargs: the arguments of `ImageDataModule`.

    Raises:
        UserError: in `setup`, for a folder that is missing or holds no image, for a file that is both in the training
            and in an evaluation folder, and when val_count leaves nothing to train on.
    """

    def __init__(
        self,
        train_dir: str | None = None,
        val_dir: str | None = None,
        test_dir: str | None = None,
        val_count: int = 0,
        split_seed: int = 0,
        folder_weights: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if train_dir is None and val_dir is None and test_dir is None:
            raise UserError("no folder of images is given; set data.train_dir, data.val_dir or data.test_dir")
        if val_count < 0 or split_seed < 0:
            raise UserError(f"data.val_count is {val_count} and data.split_seed {split_seed}; neither may be negative")
        if val_count and (train_dir is None or val_dir is not None):
            raise UserError("data.val_count takes images from data.train_dir when there is no data.val_dir; drop one")
        self.train_dir = train_dir
        self.val_dir = val_dir
        self.test_dir = test_dir
        self.val_count = val_count
        self.split_seed = split_seed
        for folder, weight in (folder_weights or {}).items():
            if not 0 < weight < math.inf:
                raise UserError(f"data.folder_weights: the weight of {folder} is {weight}; it must be above 0")
        self.folder_weights = folder_weights

    def setup(self, stage: str | None = None) -> None:
        train = self._folder(self.train_dir, "train_dir")
        val = self._folder(self.val_dir, "val_dir")
        if self.val_count and train is not None:
            train, val = self._split(train)
        test = self._folder(self.test_dir, "test_dir") or val
        for argument, images in (("val_dir", val), ("test_dir", test)):
            if train is not None and images is not None:
                _check_disjoint(argument, train, images)
        self.train_images, self.val_images, self.test_images = train, val, test

    def _folder(self, folder: str | None, argument: str) -> ImageFiles | None:
        if folder is None:
            return None
        root = Path(folder).expanduser()
        if not root.is_dir():
            raise UserError(f"data.{argument}: there is no folder {folder}; check the path")
        paths = find_images(root)
        if not paths:
            raise UserError(f"data.{argument}: no image in {folder} or below it (looked for {', '.join(SUFFIXES)})")
        return ImageFiles(paths, image_names(root, paths), self.max_pixels)

    def _shares(self, images: ImageSource) -> np.ndarray | None:
        if not self.folder_weights:
            return super()._shares(images)
        folders = [name.partition("/")[0] if "/" in name else "" for name in images.names]
        unknown = sorted(set(self.folder_weights) - set(folders))
        if unknown:
            raise UserError(
                f"data.folder_weights: no training image is in the folder {unknown[0]} of {self.train_dir}"
                f"{did_you_mean(unknown[0], set(folders))}"
            )
        weights = np.array([self.folder_weights.get(folder, 1.0) for folder in folders])
        areas = super()._shares(images)
        return weights if areas is None else weights * areas

    def _split(self, images: ImageFiles) -> tuple[ImageFiles, ImageFiles]:
        """What is left for training, and what is taken out of it for validation."""
        if self.val_count >= len(images.paths):
            raise UserError(
                f"data.val_count is {self.val_count}, but {self.train_dir} has only {len(images.paths)} images"
            )
        order = np.random.default_rng(self.split_seed).permutation(len(images.paths))

        def part(indices: np.ndarray) -> ImageFiles:
            chosen = sorted(indices)
            return ImageFiles([images.paths[i] for i in chosen], [images.names[i] for i in chosen], self.max_pixels)

        return part(order[self.val_count :]), part(order[: self.val_count])


def _check_disjoint(argument: str, train: ImageFiles, images: ImageFiles) -> None:
    shared = _real(train.paths) & _real(images.paths)
    if shared:
        raise UserError(
            f"{len(shared)} image(s) are in data.train_dir and in data.{argument}, such as {min(shared)}"
            "; folders are searched with their subfolders, so keep them apart"
        )


def _real(paths: list[Path]) -> set[str]:
    """What `os.path.realpath` gives for each, which asks the system for every part of the path, once a folder alone."""
    folders: dict[str, str] = {}
    real = set()
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        file = os.path.join(folders[folder], name)
        real.add(os.path.realpath(file) if os.path.islink(file) else file)
    return real

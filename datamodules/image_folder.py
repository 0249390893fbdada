"""Images in folders."""

import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_only

from aeic_lightning.errors import UserError
from aeic_lightning.images import SUFFIXES
from datamodules.base import ImageDataModule, ImageFiles


class ImageFolder(ImageDataModule):
    """Folders of image files, searched with their subfolders (and links to folders).

    Files count by their suffix, in any case (`aeic_lightning.images.SUFFIXES`: jpg, jfif, png, webp, bmp, tif, ppm, pgm
    and others); what begins with a dot is left out. The number of other files is reported. An image's name is its path
    within the folder without the suffix; where two files would share it (a.png and a.jpg), they keep their suffix.

    Args:
        train_dir: training images; not needed for evaluation alone.
        val_dir: validation images.
        test_dir: test images; by default the validation images.
        val_count: without a val_dir, take this many images out of the training folder for validation.
        split_seed: of that choice; apart from `seed`, so that runs with other seeds keep the same validation images.
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
    shared = {path.resolve() for path in train.paths} & {path.resolve() for path in images.paths}
    if shared:
        raise UserError(
            f"{len(shared)} image(s) are in data.train_dir and in data.{argument}, such as {min(shared)}"
            "; folders are searched with their subfolders, so keep them apart"
        )


def find_images(root: Path) -> list[Path]:
    """Image files below `root`, sorted by path; links to folders are followed, each folder once.

    The first process reports on standard error how many other files were passed over, by suffix.
    """
    found, seen, others = [], set(), Counter()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in files:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                found.append(Path(folder, name))
            elif not name.startswith("."):
                others[Path(name).suffix.lower() or "no suffix"] += 1
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
        more = ", ..." if len(others) > 5 else ""
        rank_zero_only(print)(
            f"passed over {others.total()} of {len(found) + others.total()} files in {root}: {kinds}{more}",
            file=sys.stderr,
        )
    return sorted(found)


def image_names(root: Path, paths: list[Path]) -> list[str]:
    """Unique names: relative to `root`, with forward slashes, and without the suffix wherever that is unambiguous.

    Bytes that are not UTF-8 become escapes (`\\xff`), so that a name can be printed and recorded anywhere. Raises
    UserError where two names are equal then.
    """
    full = [_text(path.relative_to(root)) for path in paths]
    short = [_text(path.relative_to(root).with_suffix("")) for path in paths]
    count = Counter(short)
    names = [a if count[a] == 1 else b for a, b in zip(short, full, strict=True)]
    # a.png, a.jpg and a.png.tif: the third's short name is the first's full one.
    names = names if len(set(names)) == len(names) else full
    if twice := [name for name, number in Counter(names).items() if number > 1]:
        raise UserError(f"two files below {root} are called {twice[0]}; rename one")
    return names


def _text(path: Path) -> str:
    return os.fsencode(path.as_posix()).decode(errors="backslashreplace")

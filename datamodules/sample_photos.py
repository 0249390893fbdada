"""Eleven real photographs that the scikit-image and scikit-learn packages carry: nothing to download."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from aeic_lightning.errors import UserError
from datamodules.base import ImageDataModule, ImageFiles

# The two motorcycles are a stereo pair, so they stay on one side.
TRAIN = (
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/coffee.png"),
    ("skimage", "data/hubble_deep_field.jpg"),
    ("skimage", "data/ihc.png"),
    ("skimage", "data/motorcycle_left.png"),
    ("skimage", "data/motorcycle_right.png"),
    ("skimage", "data/retina.jpg"),
    ("skimage", "data/rocket.jpg"),
)
VAL = (
    ("skimage", "data/chelsea.png"),
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
)


class SamplePhotos(ImageDataModule):
    """Eight photographs to train on and three others for validation and test (which are the same).

    The files are read from the installed packages, never from the network. For trying out and teaching: three images
    are far too few for results that generalise.

    Args:
        samples_per_epoch: as in `ImageDataModule`; the default gives eight crops of each photograph.
        val_max_size: as in `ImageDataModule`; the default keeps validation quick on a CPU.
        cache: as in `ImageDataModule`; the eight decoded photographs take 15 MB.
        **kwargs: the other arguments of `ImageDataModule`.
    """

    def __init__(
        self,
        samples_per_epoch: int | None = 64,
        val_max_size: list[int] | None = [384, 512],  # noqa: B006 (never changed; LightningCLI shows it in --help)
        cache: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(samples_per_epoch=samples_per_epoch, val_max_size=val_max_size, cache=cache, **kwargs)

    def setup(self, stage: str | None = None) -> None:
        self.train_images = self._files(TRAIN)
        self.val_images = self.test_images = self._files(VAL)

    def _files(self, files: tuple[tuple[str, str], ...]) -> ImageFiles:
        paths = [_package_folder(package) / file for package, file in files]
        return ImageFiles(paths, [path.stem for path in paths], self.max_pixels)


def photographs() -> dict[str, Path]:
    """Six of the photographs that are pleasant to look at, by name. Raises UserError where a package is missing."""
    chosen = [*VAL, *(file for file in TRAIN if Path(file[1]).stem in ("coffee", "astronaut", "rocket"))]
    paths = [_package_folder(package) / file for package, file in chosen]
    return {path.stem: path for path in paths}


def _package_folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"the sample photographs need the package {package}; pip install scikit-image scikit-learn")
    return Path(spec.origin).parent

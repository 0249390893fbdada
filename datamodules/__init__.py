"""Where images come from. A data set of your own: subclass `ImageDataModule` and set its images in `setup`."""

from typing import TYPE_CHECKING

from datamodules.base import ImageDataModule, ImageFiles
from datamodules.image_folder import ImageFolder
from datamodules.sample_photos import SamplePhotos

if TYPE_CHECKING:
    from datamodules.hf_images import HuggingFaceImages

__all__ = ["HuggingFaceImages", "ImageDataModule", "ImageFiles", "ImageFolder", "SamplePhotos"]


def __getattr__(name: str):
    # `datasets` takes a second to import, and most runs do without it.
    if name == "HuggingFaceImages":
        from datamodules.hf_images import HuggingFaceImages

        return HuggingFaceImages
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

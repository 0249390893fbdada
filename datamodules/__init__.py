"""Where images come from. A data set of your own: subclass `ImageDataModule` and set its images in `setup`."""

from pkgutil import extend_path
from typing import TYPE_CHECKING, Any

from aeic_lightning.own_classes import own_attribute
from datamodules.base import ImageDataModule, ImageFiles
from datamodules.image_folder import ImageFolder
from datamodules.sample_photos import SamplePhotos

if TYPE_CHECKING:
    from datamodules.hf_images import HuggingFaceImages

__path__ = extend_path(__path__, __name__)  # a folder `datamodules` in the working folder comes second
__all__ = ["HuggingFaceImages", "ImageDataModule", "ImageFiles", "ImageFolder", "SamplePhotos"]


def __getattr__(name: str) -> Any:
    # `datasets` takes a second to import, and most runs do without it.
    if name == "HuggingFaceImages":
        from datamodules.hf_images import HuggingFaceImages

        return HuggingFaceImages
    return own_attribute(__name__, name)

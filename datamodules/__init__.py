"""Where images come from. A data set of your own: subclass `ImageDataModule` and set its images in `setup`."""

from pkgutil import extend_path
from typing import Any

from aeic_lightning.own_classes import own_attribute
from datamodules.base import ImageDataModule, ImageFiles
from datamodules.hf_images import HuggingFaceImages
from datamodules.hf_stream import HuggingFaceStream
from datamodules.image_folder import ImageFolder
from datamodules.sample_photos import SamplePhotos

__path__ = extend_path(__path__, __name__)  # a folder `datamodules` in the working folder comes second
__all__ = ["HuggingFaceImages", "HuggingFaceStream", "ImageDataModule", "ImageFiles", "ImageFolder", "SamplePhotos"]


def __getattr__(name: str) -> Any:
    return own_attribute(__name__, name)

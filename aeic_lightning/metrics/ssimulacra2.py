"""SSIMULACRA2 (Cloudinary 2022) by way of the PyPI package `ssimulacra2`."""

import io
from importlib.metadata import version
from typing import Any

from PIL import Image
from torch import Tensor

from aeic_lightning.extras import require
from aeic_lightning.images import to_uint8


class SSIMULACRA2:
    """Agreement of two pictures as people rate it: 100 for equal ones, 70 and above for high quality, below 0 for bad.

    It was fitted to ratings of compressed pictures of medium and high quality; negative values order pictures that
    nobody rated. The package follows libjxl's program, not to its last digit.

    Use: `metrics: [{class_path: aeic_lightning.metrics.ssimulacra2.SSIMULACRA2, higher: true}]`.
    """

    def __init__(self) -> None:
        require("SSIMULACRA2", "ssimulacra2")

    @property
    def info(self) -> dict[str, Any]:
        """For `metric_info`."""
        return {"version": f"ssimulacra2 {version('ssimulacra2')}", "options": {"range": "sRGB, 8 bits"}}

    def __call__(self, x_hat: Tensor, x: Tensor) -> float:
        """Of 8-bit images (1, 3, H, W) in [-1, 1]."""
        from ssimulacra2 import compute_ssimulacra2

        return float(compute_ssimulacra2(_file(x), _file(x_hat)))


def _file(image: Tensor) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(to_uint8(image[0]).permute(1, 2, 0).cpu().numpy()).save(file, "BMP")
    file.seek(0)
    return file

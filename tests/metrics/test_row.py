"""One row of metrics: shared passes give the figures of passes made one by one."""

import torch

from aeic_lightning.metrics.features import DISTS, LPIPS
from aeic_lightning.metrics.quality import ImageQuality
from aeic_lightning.models.backbones import Lite0


def images(seed, count):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8, generator=generator) for _ in range(count)]


def alone(x, x_hat):
    row = ImageQuality().row("a", x, x_hat)
    return row["lpips_lite0"], row["dists_lite0"]


def test_rows_of_one_object_are_those_of_a_new_one_for_each():
    quality = ImageQuality()
    x, other, first, second = images(0, 4)
    for original, picture in ((x, first), (x, second), (other, second), (x, first)):
        row = quality.row("a", original, picture)
        assert (row["lpips_lite0"], row["dists_lite0"]) == alone(original, picture)


def test_an_original_that_was_changed_in_place_counts_as_new():
    quality = ImageQuality()
    x, picture = images(1, 2)
    quality.row("a", x, picture)
    x[:] = 255 - x
    row = quality.row("a", x, picture)
    assert (row["lpips_lite0"], row["dists_lite0"]) == alone(x, picture)


def test_a_network_passes_once_over_each_picture_and_once_over_their_original(monkeypatch):
    passes = []
    features = Lite0.features
    monkeypatch.setattr(Lite0, "features", lambda self, x: passes.append(1) or features(self, x))
    quality = ImageQuality()
    assert [type(network) for network in quality.networks] == [LPIPS, DISTS]
    x, *pictures = images(2, 4)
    for picture in pictures:
        quality.row("a", x, picture)
    assert len(passes) == 1 + len(pictures)

"""The names of metrics."""

import pytest

from aeic_lightning.metrics.table import find_metric


@pytest.mark.parametrize(
    ("name", "full", "higher"),
    [
        ("psnr", "PSNR (dB)", True),
        ("lpips_lite0", "LPIPS, EfficientNet-Lite0", False),
        ("lpips_alex", "LPIPS, AlexNet", False),
        ("dists", "DISTS, VGG-16", False),
        ("fid", "FID, Inception-v3", False),
    ],
)
def test_metrics_name_their_backbone(name, full, higher):
    metric = find_metric(name)
    assert (metric.full, metric.higher) == (full, higher)


def test_what_is_no_quality_is_no_metric():
    assert [find_metric(name) for name in ("bpp", "bpp_estimate", "encode_seconds", "lpips_mystery")] == [None] * 4

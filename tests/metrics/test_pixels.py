import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.signal import convolve
from skimage import data
from skimage.metrics import peak_signal_noise_ratio

from aeic_lightning.errors import UserError
from aeic_lightning.files import write_whole
from aeic_lightning.images import from_uint8, save_png, to_uint8
from aeic_lightning.metrics.pixels import bits_per_pixel, ms_ssim, ms_ssim_fits, psnr


def noisy_pair(height=200, width=190, seed=0):
    x = data.astronaut()[:height, :width]
    noise = np.random.default_rng(seed).normal(0, 12, x.shape)
    x_hat = np.clip(np.round(x + noise), 0, 255).astype(np.uint8)
    return x, x_hat


def batch(array):
    return torch.from_numpy(array).permute(2, 0, 1)[None]


def test_every_level_survives_the_way_to_float_and_back():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(levels)), levels)
    assert from_uint8(levels)[[0, -1]].tolist() == [-1, 1]


@given(st.floats(-3, 3, width=32))
def test_the_nearest_level_is_taken_and_the_rest_clamped(value):
    level = to_uint8(torch.tensor(value)).item()
    nearest = min(range(256), key=lambda k: abs((k / 127.5 - 1) - value))
    # At the middle between two levels either is nearest.
    assert abs((level / 127.5 - 1) - value) == pytest.approx(abs((nearest / 127.5 - 1) - value), abs=1e-6)


def test_nan_does_not_become_a_picture():
    with pytest.raises(UserError, match="NaN"):
        to_uint8(torch.tensor([0.0, math.nan]))


def test_psnr_is_that_of_scikit_image():
    pairs = [noisy_pair(seed=seed) for seed in (0, 1)]
    ours = psnr(torch.cat([batch(x_hat) for _, x_hat in pairs]), torch.cat([batch(x) for x, _ in pairs]))
    theirs = [peak_signal_noise_ratio(x, x_hat, data_range=255) for x, x_hat in pairs]
    assert ours.tolist() == pytest.approx(theirs, rel=1e-12)


def test_equal_images():
    x, _ = noisy_pair()
    assert psnr(batch(x), batch(x)).item() == math.inf
    assert ms_ssim(batch(x), batch(x)).item() == pytest.approx(1, abs=1e-6)


def test_ms_ssim_is_that_of_the_paper():
    """Wang, Simoncelli and Bovik 2003, written out with scipy in float64, a channel at a time."""
    x, x_hat = (image.astype(float) for image in noisy_pair())
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    weights = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
    levels = []
    for scale in range(5):
        luminance, contrast = [], []
        for channel in range(3):
            a, b = x[..., channel], x_hat[..., channel]
            mean_a, mean_b, aa, bb, ab = (convolve(image, window, "valid") for image in (a, b, a * a, b * b, a * b))
            var_a, var_b, cov = aa - mean_a**2, bb - mean_b**2, ab - mean_a * mean_b
            cs = (2 * cov + c2) / (var_a + var_b + c2)
            contrast.append(cs.mean())
            luminance.append(((2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1) * cs).mean())
        levels.append(np.mean(luminance if scale == 4 else contrast))
        height, width = (side // 2 * 2 for side in x.shape[:2])
        x, x_hat = (
            image[:height, :width].reshape(height // 2, 2, width // 2, 2, 3).mean((1, 3)) for image in (x, x_hat)
        )
    expected = np.prod([level**weight for level, weight in zip(levels, weights, strict=True)])
    original, reconstruction = noisy_pair()
    assert ms_ssim(batch(reconstruction), batch(original)).item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("side", "fits"), [(175, False), (176, True)])
def test_the_smallest_side_for_ms_ssim_is_the_librarys(side, fits):
    image = torch.zeros(1, 3, side, 300, dtype=torch.uint8)
    assert ms_ssim_fits(side, 300) is ms_ssim_fits(300, side) is fits
    if fits:
        assert ms_ssim(image, image).isfinite().all()
    else:
        with pytest.raises(UserError, match="176"):
            ms_ssim(image, image)


def test_bits_per_pixel():
    assert bits_per_pixel(156 * 8, 512, 512) == 1248 / 262144
    for bits in (-1.0, math.nan, math.inf):
        with pytest.raises(UserError, match="rate"):
            bits_per_pixel(bits, 8, 8)


def test_a_png_is_lossless(tmp_path):
    x, _ = noisy_pair()
    save_png(tmp_path / "folder" / "a.png", batch(x)[0])
    assert np.array_equal(np.asarray(Image.open(tmp_path / "folder" / "a.png")), x)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "figures.json"
    write_whole(path, "old")

    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(OSError, match="space"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]

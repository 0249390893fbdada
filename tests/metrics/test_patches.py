"""FID and KID on patches, against scipy and the formulas of the papers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from aeic_lightning.errors import UserError
from aeic_lightning.metrics.patches import FeatureCache, distances, network_digest, two_grids


def frechet(real, fake):
    """Heusel et al. 2017, eq. 6, with scipy's matrix square root."""
    covariances = [np.cov(side, rowvar=False) for side in (real, fake)]
    root = sqrtm(covariances[0] @ covariances[1]).real
    return np.square(real.mean(0) - fake.mean(0)).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([32, 64, 128]))
def test_number_of_patches(height, width, size):
    def count(h, w):
        return max(h, 0) // size * (max(w, 0) // size)

    patches = two_grids(torch.zeros(3, height, width, dtype=torch.uint8), size)
    assert len(patches) == count(height, width) + count(height - size // 2, width - size // 2)
    assert patches.shape[1:] == (3, size, size)


def test_patches_are_the_cut_outs():
    image = torch.arange(3 * 100 * 140).reshape(3, 100, 140)
    corners = [(0, 0), (0, 32), (0, 64), (0, 96), (32, 0), (32, 32), (32, 64), (32, 96), (64, 0), (64, 32), (64, 64)]
    corners += [(64, 96)] + [(16 + 32 * i, 16 + 32 * j) for i in range(2) for j in range(3)]
    expected = torch.stack([image[:, top : top + 32, left : left + 32] for top, left in corners])
    assert torch.equal(two_grids(image, 32), expected)


def test_fid_is_that_of_scipy():
    generator = np.random.default_rng(0)
    real = generator.normal(size=(300, 12)) @ generator.normal(size=(12, 12))
    fake = generator.normal(size=(280, 12)) @ generator.normal(size=(12, 12)) + 0.5
    fid, _, _ = distances(torch.from_numpy(real), torch.from_numpy(fake))
    assert fid == pytest.approx(frechet(real, fake), rel=1e-9)


def test_kid_is_the_unbiased_mmd():
    """With a subset as large as the set, every subset is the set: Binkowski et al. 2018, eq. 4, cubic kernel."""
    generator = np.random.default_rng(1)
    real, fake = generator.normal(size=(40, 6)), generator.normal(size=(40, 6)) + 0.3

    def kernel(a, b):
        return (a @ b.T / 6 + 1) ** 3

    n = len(real)
    within = sum((kernel(side, side).sum() - np.trace(kernel(side, side))) / (n * (n - 1)) for side in (real, fake))
    _, kid, kid_std = distances(torch.from_numpy(real), torch.from_numpy(fake), kid_subset_size=1000)
    assert kid == pytest.approx(within - 2 * kernel(real, fake).mean(), rel=1e-9)
    assert kid_std == pytest.approx(0, abs=1e-9)


def test_distances_draw_nothing_and_repeat():
    real, fake = torch.randn(50, 8), torch.randn(50, 8)
    state = torch.get_rng_state()
    assert distances(real, fake, 20) == distances(real, fake, 20)
    assert torch.equal(torch.get_rng_state(), state)


def test_equal_sets_are_at_distance_zero():
    features = torch.randn(60, 100, generator=torch.Generator().manual_seed(0))  # fewer than dimensions
    fid, kid, _ = distances(features, features)
    assert fid == pytest.approx(0, abs=1e-4)
    assert kid < 1e-9  # the unbiased estimate of 0 for equal sets lies below it


def test_a_broken_cache_is_not_read(tmp_path):
    path = tmp_path / "features.npz"
    path.write_bytes(b"PK no zip")
    with pytest.raises(UserError, match="delete it"):
        FeatureCache(path)


def test_the_digest_changes_with_the_weights():
    network = torch.nn.Linear(2, 2)
    before = network_digest(network)
    with torch.no_grad():
        network.bias[1] += 1e-6
    assert before != network_digest(network)

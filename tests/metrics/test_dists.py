from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchmetrics.functional.image.dists as torchmetrics_dists
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import correlate
from skimage import filters

from aeic_lightning.errors import UserError
from aeic_lightning.losses import Objective
from aeic_lightning.losses.term import EdgeAwareDISTSTerm
from aeic_lightning.metrics.features import (
    DISTS,
    Distance,
    EdgeAwareDISTS,
    ReleasedEdgeAwareDISTS,
    luma,
    patch_starts,
    released_edges,
    sobel_magnitude,
    whole,
)


@pytest.fixture(scope="module")
def lite0():
    return DISTS()


@pytest.fixture(scope="module")
def edge_aware():
    return EdgeAwareDISTS()


@pytest.fixture(scope="module")
def released():
    return ReleasedEdgeAwareDISTS()


def photo_and_noise(height=64, width=64):
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(2, 3, 8, 8, generator=generator) * 1.6 - 0.8
    photo = torch.nn.functional.interpolate(small, size=(height, width), mode="bicubic").clamp(-1, 1)
    return photo, torch.randn(photo.shape, generator=generator)


def test_vgg_equals_torchmetrics(tmp_path, monkeypatch):
    torch.manual_seed(0)
    with torch.device("meta"):
        features = torchvision.models.vgg16(weights=None).features
    features = features.to_empty(device="cpu")
    for parameter in features.parameters():
        torch.nn.init.kaiming_normal_(parameter) if parameter.dim() > 1 else torch.nn.init.zeros_(parameter)
    torch.save({f"features.{key}": tensor for key, tensor in features.state_dict().items()}, tmp_path / "vgg.pth")
    # torchmetrics can only download VGG16; everything after that is its own.
    monkeypatch.setattr(torchmetrics_dists, "vgg16", lambda weights: SimpleNamespace(features=features))
    reference = torchmetrics_dists.DISTSNetwork()

    metric = DISTS("vgg", str(tmp_path / "vgg.pth"))
    assert metric.name == "dists"
    x, noise = photo_and_noise(72, 64)
    x_hat = (x + 0.3 * noise).clamp(-1, 1)
    with torch.no_grad():
        expected = reference((x_hat + 1) / 2, (x + 1) / 2)
    assert expected.min() > 0.01
    torch.testing.assert_close(metric(x_hat, x), expected, rtol=1e-4, atol=1e-5)


def test_lite0_formula(lite0):
    x, noise = photo_and_noise()
    x_hat = x + 0.3 * noise
    levels_hat = [(x_hat + 1) / 2, *lite0.backbone.features(x_hat)]
    levels = [(x + 1) / 2, *lite0.backbone.features(x)]
    expected = []
    for image in range(2):
        similarity = []
        for f, g in zip(levels_hat, levels, strict=True):
            channels = []
            for a, b in zip(f[image].double().flatten(1).numpy(), g[image].double().flatten(1).numpy(), strict=True):
                texture = (2 * a.mean() * b.mean() + 1e-6) / (a.mean() ** 2 + b.mean() ** 2 + 1e-6)
                structure = (2 * np.cov(a, b, ddof=0)[0, 1] + 1e-6) / (a.var() + b.var() + 1e-6)
                channels.append((texture + structure) / 2)
            similarity.append(np.mean(channels))
        expected.append(1 - np.mean(similarity))
    np.testing.assert_allclose(lite0(x_hat, x).numpy(), expected, rtol=1e-4)
    assert lite0.name == "dists_lite0"


@pytest.mark.parametrize("metric", ["lite0", "edge_aware", "released"])
def test_zero_for_equal_images_and_grows_with_noise(metric, request):
    metric = request.getfixturevalue(metric)
    x, noise = photo_and_noise()
    distances = torch.stack([metric(x + sigma * noise, x) for sigma in (0, 0.05, 0.1, 0.2, 0.4)])
    assert distances.shape == (5, 2)
    torch.testing.assert_close(distances[0], torch.zeros(2), rtol=0, atol=2e-6)
    assert (distances.diff(dim=0) > 0).all()


@pytest.mark.parametrize("metric", ["lite0", "edge_aware", "released"])
def test_gradients_reach_the_reconstruction_alone_and_are_finite_on_flat_images(metric, request):
    metric = request.getfixturevalue(metric)
    x, _ = photo_and_noise()
    x.requires_grad_()
    x_hat = torch.zeros(2, 3, 64, 64, requires_grad=True)
    metric(x_hat, x).sum().backward()
    assert x.grad is None
    assert x_hat.grad.isfinite().all()
    assert x_hat.grad.abs().sum() > 0


def test_edge_aware_is_the_weighted_sum_over_patches(lite0, edge_aware):
    x, noise = photo_and_noise(100, 420)
    x_hat = x + 0.2 * noise
    as_image = [2 * sobel_magnitude(luma(image)).repeat(1, 3, 1, 1) - 1 for image in (x_hat, x)]
    expected = torch.zeros(2)
    for left in (0, 168, 196):  # 420 - 224
        window = slice(left, left + 224)
        expected += 1.5 / 3 * lite0(x_hat[..., window], x[..., window])
        expected += 0.5 / 3 * lite0(as_image[0][..., window], as_image[1][..., window])
    torch.testing.assert_close(edge_aware(x_hat, x), expected, rtol=1e-5, atol=1e-6)
    assert edge_aware.name == "edge_dists_lite0"


class Cubes(Distance):
    """In DISTS's place on large images, where it takes seconds: as sensitive to the range of what goes in."""

    def compare(self, pair, view=whole):
        x_hat, x = pair.seen(view)
        return ((((x_hat + 1) / 2) ** 3 - ((x + 1) / 2) ** 3).abs()).mean((1, 2, 3))


@pytest.mark.parametrize(
    ("side", "starts", "network"), [(512, (0, 144, 288), Cubes), (448, (0, 224), Cubes), (96, (0,), DISTS)]
)
def test_the_released_form_is_that_of_the_published_code(side, starts, network):
    """A plain re-computation: each number is a literal, edges are SciPy's correlation, and DISTS is fed by hand."""
    x, noise = photo_and_noise(side, side)
    x, x_hat = x[:1], (x + 0.2 * noise)[:1].clamp(-1, 1)
    kernel = np.array([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    dists = network()

    def edges(image):
        grey = 0.299 * image[0, 0] + 0.587 * image[0, 1] + 0.114 * image[0, 2]  # in [-1, 1]
        gx, gy = (correlate(grey.double().numpy(), k, mode="constant", cval=0.0) for k in (kernel, kernel.T))
        return torch.tensor(np.sqrt(gx**2 + gy**2 + 1e-6)).float().expand(1, 3, -1, -1)

    def plain_dists(a, b):
        """DISTS of values that it takes for [0, 1], without a change of range."""
        return dists(2 * a - 1, 2 * b - 1)

    of_images, of_edges = (x_hat, x), (edges(x_hat), edges(x))
    windows = [np.s_[..., top : top + 224, left : left + 224] for top in starts for left in starts]
    expected = np.mean([1.5 * plain_dists(*(v[w] for v in of_images)) + 0.5 * plain_dists(*(v[w] for v in of_edges))
                        for w in windows])  # fmt: skip
    metric = ReleasedEdgeAwareDISTS()
    metric.dists = dists
    assert metric(x_hat, x).item() == pytest.approx(expected, rel=1e-4)


def test_the_two_forms_are_told_apart(edge_aware, released):
    x, noise = photo_and_noise()
    assert (edge_aware(x + 0.2 * noise, x) - released(x + 0.2 * noise, x)).abs().min() > 0.01
    flat = released_edges(torch.zeros(1, 3, 8, 8))
    torch.testing.assert_close((flat + 1) / 2, torch.full((1, 3, 8, 8), 1e-3), rtol=1e-4, atol=0)


def test_a_crop_may_be_one_patch_whatever_its_size(lite0):
    x, noise = photo_and_noise(240, 256)
    x_hat = x + 0.2 * noise
    as_image = [2 * sobel_magnitude(luma(image)).repeat(1, 3, 1, 1) - 1 for image in (x_hat, x)]
    expected = 1.5 * lite0(x_hat, x) + 0.5 * lite0(*as_image)
    torch.testing.assert_close(EdgeAwareDISTS(whole=True)(x_hat, x), expected, rtol=1e-5, atol=1e-6)
    assert EdgeAwareDISTSTerm.describe(whole=True).sees(3, 240, 256) == (6, 240, 256)
    assert not torch.allclose(EdgeAwareDISTS()(x_hat, x), expected, rtol=1e-4)


def test_patches_of_the_released_form():
    """Those of a crop of stage 3, of an odd side, and of one that is smaller than a patch."""
    assert ReleasedEdgeAwareDISTS.starts(1024) == [0, 200, 400, 600, 800]
    assert ReleasedEdgeAwareDISTS.starts(501) == [0, 139, 277]
    assert ReleasedEdgeAwareDISTS.starts(100) == ReleasedEdgeAwareDISTS.starts(224) == [0]
    sees = EdgeAwareDISTSTerm.describe(form="released").sees
    assert sees(3, 448, 512) == (2 * 3 * 2 * 3, 224, 224)
    assert EdgeAwareDISTSTerm.describe().sees(3, 448, 512) == (2 * 3 * 3 * 3, 224, 224)


def test_each_form_has_a_name_of_its_own():
    images = torch.zeros(1, 3, 64, 64)
    terms = Objective({"edge_dists": {"form": "released"}})(
        {"image": images}, SimpleNamespace(x_hat=images + 0.1)
    ).terms
    assert list(terms) == ["released_edge_dists"]
    assert terms["released_edge_dists"] == ReleasedEdgeAwareDISTS()(images + 0.1, images)
    assert ReleasedEdgeAwareDISTS().name == "released_edge_dists_lite0"
    with pytest.raises(UserError, match="form is ours or released, not 'theirs'"):
        EdgeAwareDISTSTerm(form="theirs")


@given(st.integers(1, 2000), st.integers(1, 300), st.data())
def test_patches_cover_a_side_and_stay_inside(side, patch, data):
    stride = data.draw(st.integers(1, patch))
    starts = patch_starts(side, patch, stride)
    covered = np.zeros(side, dtype=bool)
    for start in starts:
        assert start >= 0
        assert start + min(patch, side) <= side
        covered[start : start + patch] = True
    assert covered.all()
    assert len(starts) == len(set(starts))


def test_patch_starts_of_a_training_crop():
    assert patch_starts(512, 224, 168) == [0, 168, 288]
    assert patch_starts(224, 224, 168) == patch_starts(128, 224, 168) == [0]
    assert patch_starts(392, 224, 168) == [0, 168]


def test_sobel_and_luma_agree_with_scikit_image_and_itu():
    x, noise = photo_and_noise(33, 40)
    grey = luma((x + 0.2 * noise).clamp(-1, 1))
    for image, edges in zip(grey, sobel_magnitude(grey), strict=True):
        np.testing.assert_allclose(edges[0].numpy(), filters.sobel(image[0].numpy()), atol=2e-6)
    primaries = torch.eye(3).view(3, 3, 1, 1) * 2 - 1
    torch.testing.assert_close(luma(primaries).flatten(), torch.tensor([0.299, 0.587, 0.114]))


def test_saves_and_trains_nothing(edge_aware):
    assert not edge_aware.state_dict()
    assert not list(edge_aware.parameters())


def test_bad_choices_are_refused():
    with pytest.raises(UserError, match="choose lite0, lite2, hed or vgg"):
        DISTS("alex")

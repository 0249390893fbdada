import pytest
import timm
import torch
from skimage import data, transform

from aeic_lightning.errors import UserError
from aeic_lightning.metrics.features import ClassAgreement
from aeic_lightning.metrics.quality import ImageQuality
from aeic_lightning.metrics.table import find_metric
from aeic_lightning.models.backbone_files import lite_file
from aeic_lightning.models.frozen import read_state_dict


def photo(image, side=128):
    scaled = transform.resize(image, (side, side), anti_aliasing=True)
    return torch.from_numpy(scaled).float().permute(2, 0, 1)[None] * 2 - 1


@pytest.fixture(scope="module")
def agreement():
    return ClassAgreement()


def test_it_is_timms_own_classifier(agreement):
    net = timm.create_model("tf_efficientnet_lite2", pretrained=False).eval()
    net.load_state_dict(dict(zip(net.state_dict(), read_state_dict(lite_file(2)).values(), strict=True)))
    cat, rocket = photo(data.cat()), photo(data.rocket())
    classes = net(torch.cat([cat, rocket])).argmax(1)
    assert classes[0] != classes[1]
    assert agreement._class(torch.cat([cat, rocket])).tolist() == classes.tolist()
    assert 281 <= classes[0] <= 285, "one of ImageNet's cats"


def test_a_picture_agrees_with_itself_and_not_with_another(agreement):
    cat, rocket = photo(data.cat(), 300), photo(data.rocket(), 300)
    assert agreement(torch.cat([cat, rocket]), torch.cat([cat, cat])).tolist() == [1.0, 0.0]
    assert agreement((cat + 0.01 * torch.randn_like(cat)).clamp(-1, 1), cat).tolist() == [1.0]


def test_rows_and_tables_have_it():
    quality = ImageQuality(ms_ssim=False, lpips=[], dists=[], same_class=True)
    x = ((photo(data.cat()) + 1) * 127.5).to(torch.uint8)[0]
    assert quality.row("cat", x, x)["same_class_lite2"] == 1.0
    assert quality.info["same_class_lite2"]["backbone"] == "lite2"
    metric = find_metric("same_class_lite2")
    assert metric is not None
    assert metric.higher
    assert metric.text(0.5) == "50.0%"
    with pytest.raises(UserError, match="held out, on lite2"):
        ClassAgreement("lite0")  # pyright: ignore[reportArgumentType]

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torchvision.transforms import v2
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from aeic_lightning.errors import UserError
from aeic_lightning.metrics.features import SemanticLoss


@pytest.fixture(scope="module")
def lite0():
    return SemanticLoss()


def photo(load, size):
    return torch.from_numpy(np.array(Image.fromarray(load()).resize(size))).permute(2, 0, 1)[None] / 127.5 - 1


def test_lite0_is_the_distance_of_unit_embeddings(lite0):
    x, y = photo(data.chelsea, (128, 96)), photo(data.coffee, (128, 96))
    e, f = (lite0.backbone.embedding(image).double().numpy()[0] for image in (x, y))
    cosine = e @ f / np.sqrt((e @ e) * (f @ f))
    assert lite0(y, x).item() == pytest.approx(np.sqrt(2 - 2 * cosine), rel=1e-4)
    assert lite0.name == "semantic_lite0"


def test_large_images_are_resized_and_small_ones_are_not(lite0):
    x, y = photo(data.chelsea, (450, 300)), photo(data.coffee, (450, 300))
    shrink = v2.Resize(224, antialias=True)  # shorter side
    torch.testing.assert_close(lite0(y, x), lite0(shrink(y), shrink(x)))
    assert lite0(y[..., :128, :128], x[..., :128, :128]) != lite0(*(v2.Resize(224)(z[..., :128, :128]) for z in (y, x)))


def test_another_content_is_further_than_another_look(lite0):
    cat, coffee = photo(data.chelsea, (224, 160)), photo(data.coffee, (224, 160))
    darker = 0.7 * cat - 0.1
    mirrored = cat.flip(3)
    assert lite0(cat, cat).item() == 0
    assert max(lite0(darker, cat), lite0(mirrored, cat)) < lite0(coffee, cat)


def test_gradients_reach_the_reconstruction_alone(lite0):
    x = photo(data.chelsea, (64, 64)).requires_grad_()
    x_hat = photo(data.coffee, (64, 64)).requires_grad_()
    lite0(x_hat, x).sum().backward()
    assert x.grad is None
    assert x_hat.grad.abs().sum() > 0
    same = x.detach().clone().requires_grad_()
    lite0(same, x).sum().backward()
    assert same.grad.isfinite().all()


def test_clip_resizes_the_shorter_side_and_crops_the_centre(tmp_path):
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        projection_dim=16,
    )
    clip = CLIPVisionModelWithProjection(config).eval()
    clip.save_pretrained(tmp_path)
    loss = SemanticLoss("clip", str(tmp_path))
    prepare = v2.Compose(
        [
            v2.Resize(32, antialias=True),
            v2.CenterCrop(32),
            v2.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        ]
    )
    x, y = photo(data.chelsea, (90, 60)), photo(data.coffee, (90, 60))
    with torch.no_grad():
        e, f = (clip(pixel_values=prepare((image + 1) / 2)).image_embeds for image in (x, y))
    expected = (e / e.norm() - f / f.norm()).norm()
    assert loss(y, x).shape == (1,)
    torch.testing.assert_close(loss(y, x)[0], expected, rtol=1e-4, atol=1e-5)
    assert loss.name == "semantic_clip"
    assert not loss.state_dict()


def test_bad_choices_are_refused():
    with pytest.raises(UserError, match="choose lite0 or clip"):
        SemanticLoss("dinov3")

import copy
import math
from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from aeic_lightning.errors import UserError
from aeic_lightning.losses import adversarial
from aeic_lightning.losses.adversarial import (
    ProjectedDiscriminator,
    colour,
    cutout,
    diff_augment,
    discriminator_loss,
    generator_loss,
    translate,
)
from aeic_lightning.models.hed import HedFeatures


@pytest.fixture
def discriminator():
    torch.manual_seed(0)
    return ProjectedDiscriminator().train()


def images(batch=4, size=64, seed=0):
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# Losses


def test_losses_in_closed_form():
    fake, real = [torch.tensor([[1.0, -1.0], [0.5, 0.0]]), torch.tensor([[2.0], [3.0]])], [torch.zeros(2, 1)] * 2
    minus_log_sigmoid = lambda v: math.log1p(math.exp(-v))  # noqa: E731
    expected_g = sum(map(minus_log_sigmoid, (1, -1, 0.5, 0))) / 4 + sum(map(minus_log_sigmoid, (2, 3))) / 2
    expected_fake = sum(map(minus_log_sigmoid, (-1, 1, -0.5, 0))) / 4 + sum(map(minus_log_sigmoid, (-2, -3))) / 2
    assert generator_loss(fake).item() == pytest.approx(expected_g)
    assert discriminator_loss(fake, real).item() == pytest.approx(expected_fake + 2 * math.log(2))


def test_a_smoothed_label_has_its_optimum_at_that_probability():
    logit = math.log(0.8 / 0.2)
    for loss in (
        lambda v: generator_loss([v], real_label=0.8),
        lambda v: discriminator_loss([torch.zeros(1, 1)], [v], real_label=0.8),
    ):
        v = torch.full((1, 1), logit, requires_grad=True)
        loss(v).backward()
        assert v.grad.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("target", [0.8, 1.0])
def test_the_generator_aims_at_the_label_of_real_images(target):
    """What the term gives for given logits, against the cross-entropy written out."""
    term = adversarial.Adversarial(real_label=target)
    logits = [torch.tensor([[1.5, -0.5]]), torch.tensor([[3.0]])]
    term.discriminator.forward = lambda x: logits
    sigmoid = lambda v: 1 / (1 + math.exp(-v))  # noqa: E731
    entropy = lambda v: -target * math.log(sigmoid(v)) - (1 - target) * math.log(1 - sigmoid(v))  # noqa: E731
    value = term({}, SimpleNamespace(x_hat=None), None)
    assert value.item() == pytest.approx((entropy(1.5) + entropy(-0.5)) / 2 + entropy(3.0), rel=1e-5)


def test_both_halves_of_the_discriminators_loss_have_the_smoothed_label():
    """A joint update's loss is the sum of what two separate ones take, written out from the logits."""
    term = adversarial.Adversarial(real_label=0.8).eval()
    x_hat, x = images(2, 64, seed=1), images(2, 64, seed=2)
    with torch.no_grad():
        fake, real = ([head.double() for head in term.discriminator(x)] for x in (x_hat, x))
        minus_log = lambda v: -torch.log(torch.sigmoid(v))  # noqa: E731
        of_real = sum((0.8 * minus_log(v) + 0.2 * minus_log(-v)).mean() for v in real).item()
        of_fake = sum(minus_log(-v).mean() for v in fake).item()
        assert term.real_loss(x).item() == pytest.approx(of_real, rel=1e-5)
        assert term.fake_loss(x_hat).item() == pytest.approx(of_fake, rel=1e-5)
        assert term.discriminator_loss(x_hat, x).item() == pytest.approx(of_real + of_fake, rel=1e-5)


# Discriminator


def test_logits_of_three_heads(discriminator):
    logits = discriminator(images(4, 128))
    assert [tuple(head.shape) for head in logits] == [(4, 16), (4, 4), (4, 1)]
    assert [tuple(head.shape) for head in discriminator(images(1, 32))] == [(1, 1), (1, 1), (1, 1)]


def test_the_released_heads_are_those_of_the_published_code():
    """A plain re-computation with PyTorch's own layers and the head's weights: 3 x 3 logits from a map of 14 x 14."""
    discriminator = ProjectedDiscriminator("lite0", form="released").eval()
    ours = ProjectedDiscriminator("lite0").eval()
    ours.load_state_dict(discriminator.state_dict())
    head, channels = discriminator.heads[1], 112
    features = torch.randn(2, channels, 14, 14, generator=torch.Generator().manual_seed(0))
    first, second = (layer for layer in head if isinstance(layer, torch.nn.Conv2d))
    row = torch.tensor([1.0, 3.0, 3.0, 1.0])
    kernel = row[:, None] * row / 64

    def blur(x, padding):
        return F.conv2d(x, kernel.expand(x.shape[1], 1, 4, 4), padding=padding, groups=x.shape[1])

    x = F.conv2d(blur(features, 2), first.weight, first.bias, stride=2)
    assert x.shape[1:] == (128, 7, 7)
    expected = F.conv2d(blur(F.leaky_relu(x, 0.2), 1), second.weight, second.bias, stride=2)
    assert expected.shape == (2, 1, 3, 3)
    torch.testing.assert_close(head(features), expected, rtol=1e-4, atol=1e-5)
    assert ours.heads[1](features).shape == (2, 1, 4, 4)
    with pytest.raises(UserError, match="form is ours or released, not 'theirs'"):
        adversarial.Adversarial(form="theirs")


def test_crops_too_small_for_the_released_heads_are_refused_by_name():
    discriminator = ProjectedDiscriminator("lite0", form="released")
    assert discriminator(images(1, 64))[1].shape == (1, 1)
    with pytest.raises(UserError, match="crops of 48 x 48 pixels are too small"):
        discriminator(images(1, 48))


def test_the_term_passes_its_form_on():
    form = {
        name: adversarial.Adversarial(form=name).discriminator.eval()(images(1, 224)) for name in ("ours", "released")
    }
    assert [logits[1].shape[1] for logits in form.values()] == [16, 9]


def test_only_heads_are_trained_and_saved(discriminator):
    assert all(name.startswith("heads.") for name in discriminator.state_dict())
    assert all(name.startswith("heads.") for name, _ in discriminator.named_parameters())
    assert ProjectedDiscriminator().load_state_dict(discriminator.state_dict(), strict=True) == ([], [])

    before = copy.deepcopy(discriminator.backbone.net.state_dict())
    heads = copy.deepcopy(list(discriminator.parameters()))
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=1e-3)
    for step in range(2):
        optimizer.zero_grad()
        discriminator_loss(discriminator(images(seed=step)), discriminator(images(seed=9))).backward()
        optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in discriminator.backbone.net.state_dict().items())
    assert not any(torch.equal(p, q) for p, q in zip(discriminator.parameters(), heads, strict=True))


def test_it_learns_to_tell_smooth_from_rough(discriminator):
    smooth = F.interpolate(images(8, 4), size=64, mode="bicubic")
    rough = images(8, 64)
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        discriminator_loss(discriminator(smooth), discriminator(rough)).backward()
        optimizer.step()
    discriminator.eval()
    with torch.no_grad():
        fake, real = discriminator(smooth), discriminator(rough)
    for head_fake, head_real in zip(fake, real, strict=True):
        assert head_fake.mean() < head_real.mean()
    assert discriminator_loss(fake, real) < 0.7 * 6 * math.log(2)  # three heads that know nothing


def test_generator_gets_a_gradient_through_the_frozen_backbone(discriminator):
    x_hat = images().requires_grad_()
    generator_loss(discriminator(x_hat)).backward()
    assert x_hat.grad.isfinite().all()
    assert (x_hat.grad.flatten(1).abs().sum(1) > 0).all()


def test_augments_in_training_only(discriminator):
    x = images()
    assert not torch.equal(discriminator(x)[0], discriminator(x)[0])
    discriminator.eval()
    assert torch.equal(discriminator(x)[0], discriminator(x)[0])


def test_large_images_are_resized_by_area(discriminator):
    discriminator.eval()
    x = images(1, 448)
    halved = x.unflatten(3, (224, 2)).unflatten(2, (224, 2)).mean((3, 5))
    torch.testing.assert_close(discriminator(x)[1], discriminator(halved)[1], rtol=1e-4, atol=1e-5)


def test_spectral_norms_are_one(discriminator):
    for _ in range(100):
        discriminator(images(1, 32))
    discriminator.eval()
    for module in discriminator.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            norm = torch.linalg.matrix_norm(module.weight.detach().flatten(1), ord=2)
            assert norm.item() == pytest.approx(1, abs=0.05)


def test_dinov3_heads(tmp_path, monkeypatch):
    architecture = "vit_tiny_patch16_dinov3_qkvb"
    vit = timm.create_model(architecture, pretrained=False, num_classes=0)
    save_file(vit.state_dict(), tmp_path / "model.safetensors")
    # The smallest network of the family in the place of ViT-B: as many blocks, fewer channels.
    build = adversarial.DinoV3

    class Tiny(build):
        def __init__(self, weights):
            super().__init__(weights, architecture)

    monkeypatch.setattr(adversarial, "DinoV3", Tiny)
    discriminator = ProjectedDiscriminator("dinov3", str(tmp_path), form="released").train()
    x_hat = images(1, 96).requires_grad_()
    logits = discriminator(x_hat)
    assert [tuple(head.shape) for head in logits] == [(1, 9), (1, 9), (1, 1)]  # 14 x 14 patches of 224
    generator_loss(logits).backward()
    assert x_hat.grad.abs().sum() > 0
    assert all(name.startswith("heads.") for name in discriminator.state_dict())
    layers = [m for m in discriminator.heads.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert {len(layer.weight) for layer in layers} == {128, 1}, "the paper's heads have 128 channels"


def test_the_parameters_of_the_heads_are_known_without_building_them():
    for backbone in ("lite0", "hed"):
        heads = ProjectedDiscriminator(backbone).heads
        assert adversarial.head_parameters(backbone) == sum(p.numel() for p in heads.parameters())


def test_heads_on_a_network_of_another_family():
    """HED's VGG16: what the heads see is recomputed from its features."""
    discriminator = ProjectedDiscriminator("hed").eval()
    x_hat = images(2, 64).requires_grad_()
    logits = discriminator(x_hat)
    assert [tuple(head.shape) for head in logits] == [(2, 16), (2, 4), (2, 1)]  # maps of stride 4 and 8
    maps = HedFeatures().features(x_hat)
    for head, map_, found in zip(discriminator.heads, [maps[2], maps[3], maps[4].mean((2, 3))], logits, strict=True):
        scaled = map_ / map_.square().mean(1, keepdim=True).sqrt()  # unit mean square over the channels
        assert torch.allclose(head(scaled).flatten(1), found, atol=1e-4)
    generator_loss(logits).backward()
    assert x_hat.grad.abs().sum() > 0
    description = adversarial.Adversarial.describe(backbone="hed")
    assert (description.backbone, description.sees(8, 300, 128)) == ("hed", (8, 224, 128))


def test_bad_choices_are_refused(tmp_path):
    with pytest.raises(UserError, match="choose lite0, hed or dinov3"):
        ProjectedDiscriminator("clip")
    with pytest.raises(UserError, match="no DINOv3 weights"):
        ProjectedDiscriminator("dinov3", str(tmp_path))


# DiffAugment


def test_the_same_seed_gives_the_same_augmentation():
    x = images()
    torch.manual_seed(5)
    first = diff_augment(x)
    state = torch.get_rng_state()
    second = diff_augment(x)
    torch.set_rng_state(state)
    assert torch.equal(diff_augment(x), second)
    torch.manual_seed(5)
    assert torch.equal(diff_augment(x), first)
    assert not torch.equal(first, second)


def test_each_image_has_its_own_draw():
    torch.manual_seed(0)
    x = images(1).expand(8, -1, -1, -1)
    for augment in (colour, translate, cutout):
        out = augment(x)
        assert out.shape == x.shape
        assert len({tuple(image.flatten().tolist()) for image in out}) > 1, augment


@settings(max_examples=30, deadline=None)
@given(st.integers(4, 40), st.integers(4, 40), st.integers(0, 2**31))
def test_translation_moves_by_an_eighth_at_most(height, width, seed):
    torch.manual_seed(seed)
    # Each pixel holds its own place, from 1 on: 0 is what came in from outside.
    places = torch.arange(1.0, height * width + 1).view(1, 1, height, width)
    out = translate(places)[0, 0]
    rows, columns = torch.nonzero(out, as_tuple=True)
    source = out[rows, columns].long() - 1
    down, right = rows - source // width, columns - source % width
    assert len(set(down.tolist())) == len(set(right.tolist())) == 1
    assert abs(down[0]) <= height / 8 + 0.5
    assert abs(right[0]) <= width / 8 + 0.5
    assert len(rows) == (height - abs(down[0])) * (width - abs(right[0]))


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 2**31))
def test_cutout_blanks_one_rectangle(height, width, seed):
    torch.manual_seed(seed)
    blank = cutout(torch.ones(1, 3, height, width))[0, 0] == 0
    rows, columns = blank.any(1), blank.any(0)
    assert torch.equal(blank, rows[:, None] & columns[None])
    for line, side in ((rows, height), (columns, width)):
        length = int(line.sum())
        assert (side + 1) // 4 <= length <= (side + 1) // 2
        assert length > 0
        assert line.int().diff(prepend=torch.zeros(1), append=torch.zeros(1)).abs().sum() == 2  # one run


def test_cutout_of_a_corner_is_possible_and_every_pixel_has_a_chance():
    torch.manual_seed(0)
    kept = cutout(torch.ones(2000, 1, 8, 8))
    share = kept.mean((0, 1))
    assert share.min() > 0.5
    assert share.max() < 0.95


def test_colour_keeps_geometry_and_is_affine_per_image():
    torch.manual_seed(0)
    grey = torch.linspace(-1, 1, 64).view(1, 1, 8, 8).expand(3, 3, 8, 8)
    out = colour(grey)
    for image in out:  # a grey ramp stays a grey ramp, with contrast 0.5 to 1.5 and mean shifted by half at most
        assert torch.allclose(image[0], image[1], atol=1e-6)
        slope = (image[0].flatten()[-1] - image[0].flatten()[0]) / 2
        assert 0.5 <= slope <= 1.5
        assert abs(image.mean()) <= 0.5
        torch.testing.assert_close(image[0].flatten(), image.mean() + slope * torch.linspace(-1, 1, 64))


def test_diffaugment_is_differentiable():
    torch.manual_seed(0)
    x = images(2, 16).double().requires_grad_()

    def augment(x):
        torch.manual_seed(1)
        return diff_augment(x)

    assert torch.autograd.gradcheck(augment, x[:, :, :6, :6].detach().requires_grad_())

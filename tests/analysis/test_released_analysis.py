"""The paper's size, built from the released names, against a forward written with torch functions alone."""

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from aeic_lightning import UserError
from aeic_lightning.analysis import AnalysisConfig, AnalysisModel
from aeic_lightning.analysis.checkpoint import load_analysis
from aeic_lightning.analysis.released import import_released, is_analysis

# Names and shapes of the released model, with what its entropy-model library keeps as buffers; from its state dict.
KEYS = Path(__file__).parent / "data" / "keys_analysis.tsv"
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def fill(name: str, shape: list[int]) -> torch.Tensor:
    """Weights from names alone: gains 1 + 0.1 N(0,1), matrices N(0,1) / sqrt(fan in), other vectors 0.1 N(0,1)."""
    noise = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape)
    if name.endswith(("norm.weight", "norm1.weight", "norm2.weight")):
        value = 1 + 0.1 * noise
    elif name.startswith("entropy_bottleneck.matrices"):
        f_in_out = {0: 3, 1: 3, 2: 3, 3: 3, 4: 1}
        value = np.log(np.expm1(1 / 10**0.2 / f_in_out[int(name[-1])])) + 0.1 * noise
    elif name.startswith(("entropy_bottleneck.biases", "entropy_bottleneck.factors")):
        value = 0.1 * noise
    elif name.endswith("quantiles"):
        value = 0.1 * noise[..., :1] + np.array([-10.0, 0.0, 10.0])
    elif len(shape) >= 2:
        value = noise / np.sqrt(np.prod(shape[1:]))
    else:
        value = 0.1 * noise
    return torch.from_numpy(value.astype(np.float32))


@pytest.fixture(scope="module")
def shapes() -> dict[str, list[int]]:
    rows = [line.split("\t") for line in KEYS.read_text().splitlines()]
    return {name: [int(n) for n in shape.split("x")] for name, shape in rows}


@pytest.fixture(scope="module")
def released(shapes) -> dict[str, torch.Tensor]:
    return {name: fill(name, shape) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def model(released, tmp_path_factory) -> AnalysisModel:
    path = tmp_path_factory.mktemp("released") / "model.ckpt"
    torch.save(import_released(released), path)
    return load_analysis(path)


def reference_forward(w: dict[str, torch.Tensor], x: torch.Tensor, heads: int = 6) -> dict[str, torch.Tensor]:
    """The network as `analysis.md` and the names of the file describe it, on a normalised image (B, 3, H, W)."""

    def conv(name: str, v: torch.Tensor, stride: int = 1) -> torch.Tensor:
        return F.conv2d(v, w[f"{name}.weight"], w[f"{name}.bias"], stride, w[f"{name}.weight"].shape[-1] // 2)

    def deconv(name: str, v: torch.Tensor) -> torch.Tensor:
        return F.conv_transpose2d(v, w[f"{name}.weight"], w[f"{name}.bias"], 2, 2, output_padding=1)

    def linear(name: str, v: torch.Tensor) -> torch.Tensor:
        return v @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, v: torch.Tensor) -> torch.Tensor:
        centred = v - v.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

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

    b, _, rows, columns = y_hat.shape
    tokens = linear("chans_embed", y_hat.reshape(b, 192, -1).transpose(1, 2))
    v = torch.cat([w["cls_token"].expand(b, 1, 384), tokens], 1) + w["pos_embed"]
    outputs = [tokens]
    for i in range(12):
        qkv = linear(f"blocks.{i}.attn.qkv", norm(f"blocks.{i}.norm1", v))
        q, k, value = qkv.reshape(b, -1, 3, heads, 384 // heads).permute(2, 0, 3, 1, 4)
        attention = torch.softmax(q @ k.transpose(-1, -2) / (384 // heads) ** 0.5, -1)
        mixed = (attention @ value).transpose(1, 2).reshape(b, -1, 384)
        v = v + linear(f"blocks.{i}.attn.proj", mixed)
        hidden = linear(f"blocks.{i}.mlp.fc1", norm(f"blocks.{i}.norm2", v))
        hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
        v = v + linear(f"blocks.{i}.mlp.fc2", hidden)
        outputs.append(v[:, 1:])
    classes = linear("head", norm("norm", v)[:, 0])

    merged = linear("fusion", torch.cat([linear(f"fusion{i}", outputs[i]) for i in range(4)], -1))
    picture = merged.transpose(1, 2).reshape(b, 384, rows, columns)
    for i in (0, 2, 4, 6):
        picture = deconv(f"head_rec.proj.{i}", picture)
        picture = leaky(picture) if i < 6 else picture
    return {"y": y, "y_hat": y_hat, "bits": bits_y + bits_z, "logits": classes, "picture": picture}


def test_paper_size_has_the_released_parameters(shapes, model):
    buffers = ("target", "bound", "scale_bound")
    count = sum(int(np.prod(shape)) for name, shape in shapes.items() if not name.endswith(buffers))
    # Our quantiles are solved for, and so a buffer; the released ones count as parameters.
    own = sum(p.numel() for p in model.parameters()) + model.codec.prior.quantiles.numel()
    assert own == count
    assert round(own / 1e6, 2) == 29.67
    assert model.sizes == AnalysisConfig()  # the defaults are the paper's


def test_forward_equals_the_released_network(released, model):
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x = F.avg_pool2d(x, 9, 1, 4) * 3  # smooth, so that the latents are like a picture's
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


def test_old_names_of_the_prior_give_the_same_checkpoint(released):
    old = {}
    for name, tensor in released.items():
        for new, start in (("matrices.", "_matrix"), ("biases.", "_bias"), ("factors.", "_factor")):
            name = name.replace(f"entropy_bottleneck.{new}", f"entropy_bottleneck.{start}")
        old[name] = tensor
    old["entropy_bottleneck._quantized_cdf"] = torch.zeros(128, 50)  # a table of its range coder
    expected, found = import_released(released), import_released({"model": old, "epoch": 3})
    assert found["model_config"] == expected["model_config"]
    for name, tensor in expected["state_dict"].items():
        assert torch.equal(found["state_dict"][name], tensor), name


def test_other_files_are_refused(released):
    assert is_analysis(released)
    assert not is_analysis({"g_a.0.weight": torch.zeros(1)})
    with pytest.raises(UserError, match="not the parameters"):
        import_released({"g_a.0.weight": torch.zeros(1)})
    short = {name: tensor for name, tensor in released.items() if name != "fusion.weight"}
    with pytest.raises(UserError, match=r"lacks aggregation\.merge\.weight"):
        import_released(short)
    with pytest.raises(UserError, match="strange"):
        import_released(released | {"strange.weight": torch.zeros(1)})
    with pytest.raises(UserError, match=r"h_s\.0\.weight"):
        import_released(released | {"h_s.0.weight": torch.zeros(192, 128, 3, 3)})

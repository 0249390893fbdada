"""The one-step decoder is the released one, at full size: recorded numbers of every block on 16 x 24 latents.

Takes about 4.5 GB and a minute, so all but the counts of parameters is slow; tests/models/decoder/test_pretrained.py
compares a small decoder with diffusers' own U-Net.
"""

import pytest
import torch
from recorded import assert_close, unet_weights, vectors
from reference_weights import fill, latents

from aeic_lightning.checkpoints.released import denoiser_state
from aeic_lightning.models.decoder import DecoderConfig, OneStepDecoder, PretrainedConfig

# The base has four channels where the trained decoder has more.
ENDS = {
    "conv_in.weight": (320, 4, 3, 3),
    "conv_in.bias": (320,),
    "conv_out.weight": (4, 320, 3, 3),
    "conv_out.bias": (4,),
}


@pytest.fixture(scope="module")
def decoder() -> OneStepDecoder:
    decoder = OneStepDecoder(320, 256, DecoderConfig(pretrained=PretrainedConfig()))
    shapes = {
        name.replace(".base_layer.", "."): tensor.shape
        for name, tensor in decoder.denoiser.trunk.state_dict().items()
        if ".lora_" not in name
    }
    unet = {name: torch.from_numpy(fill(f"unet.{name}", tuple(shape))) for name, shape in (shapes | ENDS).items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in decoder.vae.state_dict().items()}
    shapes["conv_in.weight"] = (256, 4, 3, 3)
    vae = {name: torch.from_numpy(fill(f"vae.decoder.{name}", shape)) for name, shape in shapes.items()}
    decoder.set_base(unet, vae)
    trained = denoiser_state(unet_weights())
    decoder.load_state_dict({f"denoiser.{name}": tensor for name, tensor in trained.items()})
    return decoder.eval()


@pytest.fixture(scope="module")
def ours(decoder) -> dict[str, torch.Tensor]:
    l_T, l_res = map(torch.from_numpy, latents(7, (16, 24)))
    with torch.no_grad():
        l_0, hidden = decoder.denoiser(l_T)
        x = decoder.vae(l_0 + l_res)
        assert torch.equal(decoder(l_T, l_res).x_hat, x.clamp(-1, 1))
    return {"l_0": l_0, "l_sum": l_0 + l_res, "x": x} | {f"h_{n}": h for n, h in enumerate(hidden)}


@pytest.fixture(scope="module")
def recorded() -> dict[str, torch.Tensor]:
    return vectors("decoder_16x24.npz")


@pytest.mark.slow
@pytest.mark.parametrize("n", range(9))
def test_hidden_states(ours, recorded, n):
    assert_close(ours[f"h_{n}"][:, ::32, ::2, ::2], recorded[f"h_{n}"], recorded[f"h_{n}_std"].item())
    assert ours[f"h_{n}"].std(correction=0).item() == pytest.approx(recorded[f"h_{n}_std"].item(), rel=1e-4)


@pytest.mark.slow
def test_denoised_latents(ours, recorded):
    assert_close(ours["l_0"][:, ::16], recorded["l_0"], recorded["l_0_std"].item())
    assert_close(ours["l_sum"][:, ::16], recorded["l_sum"])


@pytest.mark.slow
def test_picture(ours, recorded):
    assert_close(ours["x"][:, :, ::4, ::4], recorded["x"])
    assert ours["x"].mean().item() == pytest.approx(recorded["x_mean"].item(), abs=1e-4 * recorded["x"].std().item())


def test_parameters():
    """818.2 M in the U-Net, of which 28.9 M LoRA; 13.0 M in the VAE decoder (figures of the released model)."""
    with torch.device("meta"):
        decoder = OneStepDecoder(320, 256, DecoderConfig(pretrained=PretrainedConfig()))
    trained = {name: p.numel() for name, p in decoder.denoiser.named_parameters() if p.requires_grad}
    lora = sum(count for name, count in trained.items() if ".lora_" in name)
    assert sum(p.numel() for p in decoder.denoiser.parameters()) / 1e6 == pytest.approx(818.2, abs=0.05)
    assert lora / 1e6 == pytest.approx(28.9, abs=0.05)
    assert sum(p.numel() for p in decoder.vae.parameters()) / 1e6 == pytest.approx(13.0, abs=0.05)
    assert set(trained) - {name for name in trained if ".lora_" in name} == {
        *("conv_in.weight", "conv_in.bias", "conv_out.weight", "conv_out.bias")
    }

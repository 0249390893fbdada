"""The latent codec is the released one: AEIC-SE on 256 x 320, step by step, against recorded numbers."""

import pytest
import torch
from recorded import assert_close, codec_weights, vectors
from reference_weights import image

from aeic_lightning.checkpoints.released import codec_state
from aeic_lightning.models.codec import CodecConfig, LatentCodec
from aeic_lightning.models.codec.context import QUADTREE, bits, grid_mask

PIXELS = 256 * 320


@pytest.fixture(scope="module")
def codec() -> LatentCodec:
    with torch.device("meta"):
        codec = LatentCodec(CodecConfig(skip_threshold=None))
    codec.load_state_dict(codec_state(codec_weights("keys_codec_se.tsv")), assign=True)
    return codec.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def recorded() -> dict[str, torch.Tensor]:
    return vectors("codec_se_256x320.npz")


def steps(codec, recorded):
    """Means, raw scales and mask of each context step, with the recorded y_hat in its base."""
    y_hat = recorded["y_hat"]
    base = recorded["phi"][..., :8, :10]
    for step in range(4):
        mask = grid_mask(QUADTREE[step], *y_hat.shape[1:])
        mean, scale = codec.context.params(base, step)
        yield mean, scale, mask
        base = torch.where(mask, y_hat, base)


def test_analysis(codec, recorded):
    assert_close(codec.g_a(codec.pad(torch.from_numpy(image(256, 320)))), recorded["y"])


def test_hyper_latent(codec, recorded):
    assert_close(codec.hyper_encode(recorded["y"]), recorded["z"])
    assert_close(codec.prior.quantise(recorded["z"]), recorded["z_hat"])


def test_hyper_synthesis(codec, recorded):
    assert_close(codec.hyper_decode(recorded["z_hat"], 8, 12), recorded["phi"])


def test_context_steps(codec, recorded):
    outputs = [torch.cat([mean, scale], dim=1) for mean, scale, _ in steps(codec, recorded)]
    assert_close(outputs[0], recorded["params_0"])
    assert_close(outputs[3], recorded["params_3"])


def test_quantised_latents(codec, recorded):
    for mean, _, mask in steps(codec, recorded):
        y_hat = (recorded["y"] - mean).round() + mean
        assert_close(y_hat[mask.expand_as(y_hat)], recorded["y_hat"][mask.expand_as(y_hat)])


def test_synthesis(codec, recorded):
    l_T, l_res = codec.synthesise(recorded["y_hat"])
    assert_close(l_T[:, ::16, ::2, ::2], recorded["l_T"])
    assert_close(l_res[:, ::16, ::2, ::2], recorded["l_res"])


def test_rates(codec, recorded):
    y_hat, total = recorded["y_hat"], 0
    for mean, scale, mask in steps(codec, recorded):
        total += bits(torch.where(mask, codec.conditional.likelihood(y_hat, mean, scale), 1.0))
    assert total.item() / PIXELS == pytest.approx(recorded["bpp_y"].item(), rel=1e-5)
    bpp_z = bits(codec.prior.likelihood(recorded["z_hat"])).item() / PIXELS
    assert bpp_z == pytest.approx(recorded["bpp_z"].item(), rel=1e-5)


def test_whole_pass_agrees_until_a_value_rounds_the_other_way(codec, recorded):
    """The forward pass is made of the same steps: nearly all of y_hat, and the rate, are the recorded ones."""
    output = codec(torch.from_numpy(image(256, 320)))
    assert (output.y_hat - recorded["y_hat"]).abs().median() < 1e-4
    bpp = (output.bits_y + output.bits_z).item() / PIXELS
    assert bpp == pytest.approx((recorded["bpp_y"] + recorded["bpp_z"]).item(), rel=1e-2)

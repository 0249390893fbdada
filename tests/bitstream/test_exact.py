import functools

import pytest
import torch

from aeic_lightning.bitstream import exact
from aeic_lightning.bitstream.exact import Context, Depthwise, Gelu, HyperSynthesis, Linear, Norm, exact_mode
from aeic_lightning.bitstream.products import by_rows
from aeic_lightning.models.codec.context import QUADTREE, grid_mask
from aeic_lightning.models.layers import ChannelNorm


def integers(low, high, shape, seed=0):
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed))


def test_depthwise_sums_stay_below_24_bits():
    conv = torch.nn.Conv2d(64, 64, 5, padding=2, groups=64)
    conv.weight.data.normal_()
    conv.weight.data[0].fill_(1.0)
    layer = Depthwise(conv)
    assert layer.weight0.long().abs().sum((1, 2, 3)).max() * exact.DEPTHWISE_LIMIT < 2**24
    x = torch.randn(2, 9, 7, 64) * torch.tensor([1.0, 50.0])[:, None, None, None]
    q = (x * (exact.DEPTHWISE_LIMIT / x.flatten(1, 2).abs().amax(1)[:, None, None])).round()
    args = {"padding": 2, "groups": 64}
    in_double = torch.conv2d(q.double().permute(0, 3, 1, 2), layer.weight0.double(), **args)
    in_float = torch.conv2d(q.permute(0, 3, 1, 2), layer.weight0.float(), **args)
    assert torch.equal(in_double, in_float.double())
    sums, one = layer.sums(x)
    assert torch.equal(torch.cat(sums, dim=-1), in_float.permute(0, 2, 3, 1))
    out = layer.finish(one, *(part.flatten(1, 2) for part in sums))
    difference = out - conv(x.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
    assert difference[0].abs().max() < 0.05
    assert difference[1].abs().max() < 2.5


def test_norm_is_layer_norm():
    x = torch.randn(50, 96, generator=torch.Generator().manual_seed(0)) * 10
    with exact_mode():
        for mean in (0, 3):
            expected = torch.nn.functional.layer_norm(x + mean, (96,), eps=1e-6)
            assert (Norm(ChannelNorm(96))(x + mean) - expected).abs().max() < (4e-3 if mean else 2e-3)
        assert Norm(ChannelNorm(96))(torch.full((2, 96), 7.0)).abs().max() < 0.01  # no variance, and no NaN


@pytest.mark.parametrize("channels", [96, 512, 2048])
def test_sums_of_a_norm_stay_below_24_bits(channels):
    assert Norm(ChannelNorm(channels)).limit ** 2 * channels <= 2**24


def test_weight_and_bias_of_a_norm_are_in_the_next_layer():
    norm, conv = ChannelNorm(96), torch.nn.Conv2d(96, 5, 1)
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    x = torch.randn(50, 96)
    expected = torch.nn.functional.linear(x * norm.weight + norm.bias, conv.weight.flatten(1), conv.bias)
    assert (Linear(conv, norm=norm)(x) - expected).std() < 0.01 * expected.std()


def test_gelu_is_gelu():
    v = torch.linspace(-12, 12, 100_001)
    assert (Gelu()(v * exact.GELU_STEPS) - torch.nn.functional.gelu(v)).abs().max() < 3e-4
    large = torch.tensor([0.0, 50.0, -50.0, 1e30, -1e30])
    assert Gelu()(large * exact.GELU_STEPS).tolist() == torch.tensor([0.0, 50.0, 0.0, 1e30, 0.0]).tolist()


def test_one_quarter_of_the_outputs():
    linear = Linear(torch.nn.Conv2d(24, 32, 1))
    x = torch.randn(10, 24)
    mean, scale = linear(x).chunk(2, dim=-1)
    for quarter in range(4):
        expected = torch.cat([part.chunk(4, dim=-1)[quarter] for part in (mean, scale)], dim=-1)
        assert torch.equal(linear(x, quarter), expected)


@pytest.mark.parametrize("which", ["small", "AEIC-SE"])
def test_close_to_the_float_networks(model, se_codec, which):
    codec = model.codec if which == "small" else se_codec
    channels = codec.channels
    z_hat = integers(-6, 6, (1, channels // 2, 2, 3)).float()
    with exact_mode():
        phi, expected = HyperSynthesis(codec.h_s)(z_hat), codec.h_s(z_hat)
        assert (phi - expected).std() < 0.03 * expected.std()
        context = Context(codec.context)
        for step in range(4):
            coded = grid_mask(QUADTREE[step], *expected.shape[1:])
            for ours, theirs in zip(context.params(expected, step), codec.context.params(expected, step), strict=True):
                assert (ours - theirs)[coded].std() < 0.04 * theirs[coded].std()
                assert (ours[~coded] == 0).all()


def test_same_bits_under_every_setting(se_codec, monkeypatch):
    """Against the reference of one thread and oneDNN. The float network does not pass this."""
    layer, context = HyperSynthesis(se_codec.h_s), Context(se_codec.context)
    z_hat = integers(-6, 6, (1, 128, 3, 4)).float()

    def latents():
        with exact_mode():
            phi = layer(z_hat)[..., :10, :14]
            return context(phi, lambda mean, scale, mask: mean + scale.round())

    reference = latents()
    torch.set_num_threads(2)
    try:
        assert torch.equal(latents(), reference)
    finally:
        torch.set_num_threads(1)
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(latents(), reference)
    monkeypatch.setattr(exact, "by_rows", functools.partial(by_rows, rows=17))
    monkeypatch.setattr(exact, "PIECES", 1)
    assert torch.equal(latents(), reference)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(latents(), reference)
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(latents(), reference)
    finally:
        torch.set_float32_matmul_precision("highest")

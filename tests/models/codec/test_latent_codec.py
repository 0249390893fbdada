"""The codec as a whole: sizes, padding, rates, taps, bad configs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aeic_lightning.errors import UserError
from aeic_lightning.models.codec import CodecConfig, LatentCodec, reflect_pad


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([4, 16, 64]))
@settings(max_examples=60, deadline=None)
def test_padding_is_numpys_reflection(height, width, multiple):
    x = torch.arange(float(height * width)).reshape(1, 1, height, width)
    padded = reflect_pad(x, multiple)
    expected = np.pad(x[0, 0].numpy(), ((0, -height % multiple), (0, -width % multiple)), mode="reflect")
    assert np.array_equal(padded[0, 0].numpy(), expected)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (64, 64), (65, 130), (17, 300)])
def test_shapes_at_any_size(codec_config, height, width):
    codec = LatentCodec(codec_config).eval()
    with torch.no_grad():
        out = codec(torch.rand(1, 3, height, width) * 2 - 1)
    rows, columns = -(-height // 64) * 2, -(-width // 64) * 2
    assert out.y.shape == out.phi.shape == out.y_hat.shape == (1, 32, rows, columns)
    assert out.z.shape == (1, 16, -(-rows // 4), -(-columns // 4))
    assert out.l_T.shape == (1, 12, rows * 4, columns * 4)
    assert out.l_res.shape == (1, 8, rows * 4, columns * 4)
    assert out.bits_y.shape == out.bits_z.shape == (1,)
    assert (out.bits_z > 0).all()


def test_evaluation_is_deterministic_and_training_is_noisy(codec_config):
    codec = LatentCodec(codec_config)
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        a, b = codec.eval()(x), codec.eval()(x)
        noisy = [codec.train()(x).bits_y for _ in range(2)]
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True) if p is not None)
    assert not torch.equal(*noisy)


def test_the_bits_of_an_image_do_not_depend_on_its_batch(codec_config):
    codec = LatentCodec(codec_config).eval()
    x = torch.rand(3, 3, 64, 128) * 2 - 1
    with torch.no_grad():
        together = codec(x)
        alone = [codec(image[None]) for image in x]
    assert torch.allclose(together.bits_y, torch.cat([o.bits_y for o in alone]), rtol=1e-4)


def test_skipped_symbols_decode_as_their_mean_and_cost_nothing(codec_config):
    """Raw scales below the threshold: residual 0 on the sender's side too, so that its context is the receiver's."""
    codec = LatentCodec(codec_config).eval()
    with torch.no_grad():
        for adapter in codec.context.adapter_out:
            adapter.branch2.bias[32:] -= 100  # every raw scale far below the threshold
        out = codec(torch.rand(1, 3, 64, 64) * 2 - 1)
        means = codec.context(out.phi, lambda mean, scale, mask: mean)
    assert out.bits_y.item() == 0
    assert torch.equal(out.y_hat, means)


def test_quantised_residuals_are_integers(codec_config):
    codec_config.skip_threshold = None
    codec = LatentCodec(codec_config).eval()
    with torch.no_grad():
        out = codec(torch.rand(1, 3, 64, 64) * 2 - 1)
        residuals = []

        def read(mean, scale, mask):
            residuals.append((out.y_hat - mean)[mask.expand_as(mean)])
            return out.y_hat

        codec.context(out.phi, read)
    residual = torch.cat(residuals)
    assert torch.allclose(residual, residual.round(), atol=1e-5)
    assert residual.abs().max() > 0


def test_latents_carry_something_through_rounding_from_the_start(codec_config):
    """If y started far below 1/2, rounding would leave zeros and nothing to learn from."""
    codec = LatentCodec(codec_config).eval()
    smooth = torch.nn.functional.interpolate(torch.randn(2, 3, 4, 4), size=(128, 128), mode="bicubic").clamp(-1, 1)
    with torch.no_grad():
        assert codec(smooth).y.std() > 0.3


def test_the_released_start_is_pytorchs(codec_config):
    """Weights and biases uniform within 1/sqrt(inputs of an output), by measured spread, in every convolution."""
    torch.manual_seed(0)
    codec = LatentCodec(replace(codec_config, start="pytorch"))
    spreads = []
    for name, module in codec.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            bound = module.weight[0].numel() ** -0.5
            assert max(module.weight.abs().max(), module.bias.abs().max()) <= bound, name
            assert (module.weight != 0).all(), name
            spreads += [module.weight.flatten() / bound, module.bias / bound]
        elif isinstance(module, torch.nn.LayerNorm):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
    values = torch.cat(spreads)
    assert len(values) > 10_000
    assert values.std().item() == pytest.approx(3**-0.5, rel=0.02)


@pytest.mark.parametrize("start", ["ours", "pytorch"])
def test_an_encoder_from_elsewhere_keeps_its_own_start(codec_config, start):
    encoder = {"class_path": f"{__name__}.OfOnes", "init_args": {"channels": 32}}
    codec = LatentCodec(replace(codec_config, encoder=encoder, start=start))
    assert all((p == 1).all() for p in codec.g_a.parameters())


class OfOnes(torch.nn.Sequential):
    """An encoder of stride 32 whose weights are all 1."""

    def __init__(self, channels):
        super().__init__(torch.nn.Conv2d(3, channels, 32, stride=32))
        for p in self.parameters():
            torch.nn.init.ones_(p)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": "theirs"}, "start is ours or pytorch"),
        ({"depths": [1, 1]}, "one depth for every stage"),
        ({"widths": [8, 8, 16, 16, 30]}, "multiple of 4"),
        ({"widths": [8, 8, 16, 16, 36]}, "multiple of 8"),
        ({"synthesis_widths": [32, 16], "synthesis_depths": [1, 1]}, "g_s needs 3 widths"),
        ({"synthesis_depths": [1]}, "differ in length"),
    ],
)
def test_impossible_sizes_are_said_in_words(codec_config, change, message):
    for name, value in change.items():
        setattr(codec_config, name, value)
    with pytest.raises(UserError, match=message):
        LatentCodec(codec_config)


def test_other_strides_of_y_are_a_matter_of_list_lengths():
    config = CodecConfig(
        widths=[8, 8, 16, 32], depths=[1] * 4, context_width=16, context_depth=1,
        synthesis_widths=[16, 16], synthesis_depths=[1, 1], l_T_channels=4, l_res_channels=4,
    )  # fmt: skip
    with torch.no_grad():
        out = LatentCodec(config).eval()(torch.rand(1, 3, 64, 64))
    assert out.y.shape[2:] == (4, 4)
    assert out.l_T.shape[2:] == (8, 8)

import pytest
import torch
import torch.nn.functional as F

from aeic_lightning.classification import (
    ClassificationConfig,
    ClassificationModel,
    LatentTransformer,
    TransformerConfig,
)
from aeic_lightning.errors import UserError


def picture(*shape: int) -> torch.Tensor:
    """Noise with a spread that makes y several steps wide."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 112), (16, 16), (50, 33), (7, 90)])
def test_any_size_comes_back_at_its_size(sizes, height, width):
    model = ClassificationModel(sizes).eval()
    with torch.no_grad():
        output = model(picture(2, 3, height, width))
    assert output.x_hat.shape == (2, 3, height, width)
    assert output.logits.shape == (2, 7)
    assert output.bits_estimate.shape == (2,)
    assert output.latents.y_hat.shape == (2, 12, -(-height // 16), -(-width // 16))


def test_position_embedding_is_resampled_bicubically(sizes):
    transformer = LatentTransformer(12, sizes.transformer)
    y_hat = torch.zeros(1, 12, 3, 9)
    with torch.no_grad():
        transformer.embed.bias.zero_()
        for block in transformer.blocks:  # residual branches of nothing: the first block's output is its input
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight.zero_()
                layer.bias.zero_()
        found = transformer.features(y_hat, depth=1)[1]
        grid = transformer.pos_embed[:, 1:].reshape(1, 4, 4, 24).permute(0, 3, 1, 2)
        expected = F.interpolate(grid, (3, 9), mode="bicubic", antialias=True)
    torch.testing.assert_close(found[:, 1:], expected.flatten(2).transpose(1, 2))
    torch.testing.assert_close(found[:, 0], (transformer.cls_token + transformer.pos_embed[:, :1])[:, 0])


def test_classes_and_picture_come_from_the_decoded_latents(sizes):
    model = ClassificationModel(sizes).eval()
    with torch.no_grad():
        output = model(picture(2, 3, 64, 64))
        assert (output.latents.y - output.latents.y_hat).abs().max() > 0.1
        torch.testing.assert_close(model.transformer(output.latents.y_hat), output.logits)
        torch.testing.assert_close(model.reconstruct(output.latents.y_hat), output.x_hat)
        assert not torch.allclose(model.transformer(output.latents.y), output.logits)


def test_the_decoder_runs_only_the_blocks_it_reads(sizes):
    model = ClassificationModel(sizes).eval()
    y_hat = torch.randn(1, 12, 4, 4)
    with torch.no_grad():
        model.transformer.blocks[3].mlp.fc2.bias.fill_(torch.nan)  # the fourth: beyond aggregate [1, 3]
        assert model.reconstruct(y_hat).isfinite().all()
        assert model.transformer(y_hat).isnan().all()
        # Block 2 is not read by itself, but block 3 builds on it.
        before = model.reconstruct(y_hat)
        model.transformer.blocks[1].mlp.fc2.bias.add_(torch.randn(24))
        assert not torch.allclose(model.reconstruct(y_hat), before)


def test_quantised_latents_are_whole_steps_from_the_mean(sizes):
    codec = ClassificationModel(sizes).eval().codec
    with torch.no_grad():
        latents = codec(picture(1, 3, 64, 80))
        z_hat = codec.prior.quantise(codec.h_a(latents.y))
        mean, scale = codec.hyper_decode(z_hat, 4, 5)  # an odd side: h_s gives 4 x 6
    steps = latents.y_hat - mean
    torch.testing.assert_close(steps, steps.round(), atol=1e-5, rtol=0)
    assert (latents.y_hat - latents.y).abs().max() <= 0.5001
    assert scale.shape == mean.shape == latents.y.shape


def test_without_quantisation_the_latents_pass_and_cost_32_bits_each(sizes):
    model = ClassificationModel(sizes)
    output = model(picture(2, 3, 64, 64), quantise=False)
    assert output.latents.y_hat is output.latents.y
    assert output.bits_estimate.tolist() == [32 * 12 * 16] * 2
    output.logits.sum().backward()
    assert model.codec.g_a[0].weight.grad is not None
    assert model.codec.h_a[0].weight.grad is None


def test_training_rate_of_noise_is_near_the_rate_of_rounding(sizes):
    # Wide distributions: then noise and rounding cost the same on average.
    codec = ClassificationModel(sizes).codec
    with torch.no_grad():
        codec.h_s[-1].bias[:12] = 8.0
        codec.g_a[-1].weight.mul_(8)
        x = picture(8, 3, 64, 64)
        trained = codec.train()(x).bits.mean()
        evaluated = codec.eval()(x).bits.mean()
    assert abs(trained / evaluated - 1) < 0.02


def test_every_part_is_trained_by_the_quantised_pass(sizes):
    model = ClassificationModel(sizes)
    output = model(picture(2, 3, 64, 64))
    (output.logits.square().sum() + output.x_hat.square().mean() + output.bits_estimate.mean()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ClassificationConfig(encoder_widths=[8, 8, 8]), "3 encoder_widths"),
        (ClassificationConfig(aggregate=[0, 1]), r"aggregate \[0, 1\]"),
        (ClassificationConfig(aggregate=[13]), "transformer's 12"),
        (ClassificationConfig(transformer=TransformerConfig(width=100, heads=6)), "not divisible by its 6 heads"),
        (ClassificationConfig(transformer=TransformerConfig(drop_path=1.0)), "drop_path"),
        (ClassificationConfig(transformer=TransformerConfig(grid=[14])), "grid"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(config, message):
    with torch.device("meta"), pytest.raises(UserError, match=message):
        ClassificationModel(config)


@pytest.mark.parametrize(("width", "depth", "heads"), [(192, 12, 3), (768, 12, 12), (1024, 24, 16), (64, 1, 1)])
def test_timm_sizes_build(width, depth, heads):
    import timm

    config = ClassificationConfig(aggregate=[1], transformer=TransformerConfig(width=width, depth=depth, heads=heads))
    with torch.device("meta"):
        blocks = ClassificationModel(config).transformer.blocks.state_dict()
        vit = timm.models.VisionTransformer(embed_dim=width, depth=depth, num_heads=heads)
    assert {k: v.shape for k, v in blocks.items()} == {k: v.shape for k, v in vit.blocks.state_dict().items()}

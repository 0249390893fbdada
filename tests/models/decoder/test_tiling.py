"""Tiles: what they cover, how they are blended, where they equal the whole pass, and how much memory they take."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from aeic_lightning.errors import UserError
from aeic_lightning.models import aeic
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.decoder import DecoderOutput, OneStepDecoder, TilingConfig, one_step
from aeic_lightning.models.decoder.blocks import Attention
from aeic_lightning.models.decoder.tiling import blend_evenly, blend_tiles, gaussian_window, tile_starts

TILES = TilingConfig(unet_tile=16, unet_overlap=8, vae_tile=16, vae_overlap=8)


@given(st.integers(1, 60), st.integers(1, 20), st.data())
def test_tiles_cover_everything_once_or_more(size, tile, data):
    overlap = data.draw(st.integers(0, tile - 1))
    starts = tile_starts(size, tile, overlap)
    covered = {position for start in starts for position in range(start, start + min(tile, size))}
    assert covered == set(range(size))
    assert starts == sorted(set(starts))
    assert all(b - a <= tile - overlap for a, b in pairwise(starts))


def test_tiles_stay_on_the_grid_of_the_u_net():
    assert all(start % 8 == 0 for start in tile_starts(256, 96, 32))


@pytest.mark.parametrize(("height", "width"), [(16, 40), (40, 16), (37, 23), (24, 24)])
def test_blending_a_pointwise_function_is_the_function(height, width):
    """The weights sum to 1 at every position, the corners included."""
    x = torch.randn(2, 3, height, width)

    def function(tile):
        return nn.functional.interpolate(tile.square(), scale_factor=2)

    assert torch.allclose(blend_tiles(function, x, 16, 8, scale=2), function(x), rtol=1e-5, atol=1e-6)


def test_one_tile_is_the_whole_pass():
    seen = []
    x = torch.randn(1, 3, 12, 16)
    assert blend_tiles(lambda tile: seen.append(tile) or tile, x, 16, 8, scale=1) is x
    assert seen == [x]


@pytest.mark.parametrize(
    ("height", "width", "tile", "overlap", "sides"),
    [
        (16, 64, 32, 8, {(16, 64)}),  # the area of a tile: whole
        (24, 64, 32, 8, {(24, 24)}),  # squares that the shorter side still holds
        (64, 24, 32, 8, {(24, 24)}),
        (8, 200, 32, 8, {(8, 32)}),  # too short for squares: strips
        (64, 96, 32, 8, {(32, 32)}),
    ],
)
def test_shapes_of_tiles(height, width, tile, overlap, sides):
    seen = set()
    blend_tiles(lambda x: seen.add(tuple(x.shape[2:])) or x, torch.zeros(1, 1, height, width), tile, overlap, scale=1)
    assert seen == sides


def test_window_is_highest_in_the_middle_and_negligible_at_the_border():
    """A border position weighs next to nothing beside the neighbour that has it a third of a tile inside."""
    window = gaussian_window(96, 96)[48]
    assert window.argmax() in (47, 48)
    assert torch.allclose(window, window.flip(0))
    assert window[0] / window[32] < 1e-4


class Local(nn.Module):
    """Convolutions with a receptive field of 4 latents on each side, then enlarged: what has no global part."""

    def __init__(self) -> None:
        super().__init__()
        layers = [layer for _ in range(4) for layer in (nn.Conv2d(4, 4, 3, padding=1), nn.SiLU())]
        self.layers = nn.Sequential(*layers, nn.Upsample(scale_factor=2))

    def forward(self, x):
        return self.layers(x)


def test_local_networks_are_equal_in_tiles():
    """Within 1e-3 everywhere, seams included: a tile's border, where zeros stand for its neighbours, counts little."""
    network = Local().double()
    x = torch.randn(1, 4, 128, 160, dtype=torch.float64)
    with torch.no_grad():
        whole = network(x)
        tiled = blend_tiles(network, x, 48, 16, scale=2)
    assert (tiled - whole).abs().max() < 1e-3 * whole.std()
    # Not because the network ignored its surroundings:
    assert (network(x[..., :48]) - whole[..., :96]).abs().max() > 1e-1 * whole.std()


@pytest.fixture
def decoder(decoder_config) -> OneStepDecoder:
    torch.manual_seed(0)
    decoder = OneStepDecoder(12, 8, decoder_config)
    for name, p in decoder.named_parameters():
        if p.dim() > 1:
            nn.init.normal_(p, std=(0.7 if "conv" in name else 0.3) / p[0].numel() ** 0.5)
    return decoder.eval()


def without_statistics(decoder: OneStepDecoder) -> OneStepDecoder:
    """The same network with what is global made local: GroupNorm with constant statistics, attention to itself."""

    def scale(norm: nn.GroupNorm):
        return lambda x: x * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)

    for module in decoder.modules():
        if isinstance(module, nn.GroupNorm):
            module.forward = scale(module)
        elif isinstance(module, Attention):
            module.forward = lambda x: x
    return decoder


def test_vae_decoder_is_equal_in_tiles_but_for_its_global_parts(decoder):
    decoder = without_statistics(decoder)
    x = torch.randn(1, 8, 48, 64)
    with torch.no_grad():
        whole = decoder.vae(x)
        tiled = blend_tiles(decoder.vae, x, 32, 16, scale=8)
    assert (tiled - whole).abs().max() < 1e-3 * whole.std()


def test_small_images_are_not_tiled(decoder, decoder_config):
    l_T, l_res = torch.randn(1, 12, 16, 16), torch.randn(1, 8, 16, 16)
    whole = decoder(l_T, l_res)
    decoder.config = replace(decoder_config, tiling=TILES)
    assert torch.equal(decoder(l_T, l_res).x_hat, whole.x_hat)
    assert len(whole.hidden) == len(decoder(l_T, l_res).hidden) == 9


def test_large_images_are_tiled_in_evaluation_alone(decoder, decoder_config):
    l_T, l_res = torch.randn(1, 12, 24, 40), torch.randn(1, 8, 24, 40)
    whole = decoder(l_T, l_res)
    decoder.config = replace(decoder_config, tiling=TILES)
    tiled = decoder(l_T, l_res)
    assert tiled.x_hat.shape == whole.x_hat.shape
    assert tiled.hidden == []
    assert torch.equal(tiled.x_hat, decoder.decode_tiled(l_T, l_res, TILES).x_hat)
    decoder.train()
    assert torch.equal(decoder(l_T, l_res).x_hat.clamp(-1, 1), whole.x_hat)


def test_memory_is_that_of_a_tile(decoder):
    """The largest tensor that a network makes does not grow with the image."""
    largest = []
    hooks = [
        m.register_forward_hook(
            lambda m, args, out: largest.append(out.numel() if isinstance(out, torch.Tensor) else 0)
        )
        for m in decoder.modules()
        if not list(m.children())
    ]
    peaks = []
    with torch.no_grad():
        for side in (24, 48):
            largest.clear()
            decoder.decode_tiled(torch.randn(1, 12, side, side), torch.randn(1, 8, side, side), TILES)
            peaks.append(max(largest))
    for hook in hooks:
        hook.remove()
    assert peaks[0] == peaks[1]


@given(st.integers(1, 90), st.integers(1, 90))
def test_even_tiles_are_as_few_and_cover_little_twice(height, width):
    seen = []
    x = torch.randn(1, 2, height, width)
    blended = blend_evenly(lambda tile: seen.append(tile.shape[2:]) or tile + 1, x, 32, 8, scale=1)
    assert torch.allclose(blended, x + 1, atol=1e-5)
    if height * width > 32**2:
        assert len(seen) == len(tile_starts(height, 32, 8)) * len(tile_starts(width, 32, 8))
        assert len(set(seen)) == 1
        for size, side in zip((height, width), seen[0], strict=True):
            count = len(tile_starts(size, 32, 8))
            assert side <= 32
            assert count * side - size <= (count - 1) * 8 + 8 * count  # what must overlap, and the grid of 8


def test_large_pictures_are_tiled_without_a_setting(decoder, codec_config, decoder_config, monkeypatch):
    """Up to the area of a tile the picture is that of one pass; above, memory is that of a tile."""
    monkeypatch.setattr(one_step, "LARGE", 32)
    monkeypatch.setattr(one_step, "OVERLAP", 16)
    model = AEIC(codec_config, decoder_config).eval()
    model.decoder = decoder = without_statistics(decoder)

    def picture(*latents):
        monkeypatch.setattr(model.codec, "synthesise", lambda y_hat, level: latents)
        return model.reconstruct(torch.zeros(1, model.codec.channels, 1, 1))

    sizes = []
    for part in (decoder.denoiser, decoder.vae):
        part.register_forward_pre_hook(lambda m, args: sizes.append(tuple(args[0].shape[2:])))
    with torch.no_grad():
        small = torch.randn(1, 12, 32, 32), torch.randn(1, 8, 32, 32)
        assert torch.equal(picture(*small), decoder(*small).x_hat)
        sizes.clear()
        large = torch.randn(1, 12, 64, 80), 0.1 * torch.randn(1, 8, 64, 80)
        tiled = picture(*large)
        assert max(height * width for height, width in sizes) <= 32**2
        whole = decoder(*large).x_hat
    assert tiled.shape == whole.shape
    assert (tiled - whole).square().mean() < 1e-4 * whole.var()


def test_latents_of_large_pictures_are_those_of_one_pass(codec_config, decoder_config, monkeypatch):
    model = AEIC(codec_config, decoder_config).eval()
    for p in model.codec.g_s.parameters():
        if p.dim() > 1:
            nn.init.normal_(p, std=0.7 / p[0].numel() ** 0.5)
    monkeypatch.setattr(aeic, "TILE", 0)
    tiles = []
    monkeypatch.setattr(model.decoder, "forward", lambda *latents: DecoderOutput(torch.cat(latents, dim=1), y_hat, []))
    y_hat = torch.randn(1, model.codec.channels, 56, 40)
    with torch.no_grad():
        whole = torch.cat(model.codec.synthesise(y_hat), dim=1)
        model.codec.g_s.register_forward_pre_hook(lambda m, args: tiles.append(tuple(args[0].shape[2:])))
        latents = model.reconstruct(y_hat)
    assert len(tiles) > 1
    assert max(height * width for height, width in tiles) <= 32**2
    assert (latents - whole).square().mean() < 1e-6 * whole.var()


@pytest.mark.parametrize("tiling", [{"unet_tile": 20}, {"unet_overlap": 96}, {"vae_overlap": -8}, {"vae_tile": 0}])
def test_impossible_tiles_are_refused(decoder_config, tiling):
    with pytest.raises(UserError, match="must be multiples of 8"):
        OneStepDecoder(12, 8, replace(decoder_config, tiling=TilingConfig(**tiling)))

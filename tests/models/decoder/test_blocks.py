"""The decoder's blocks beside the diffusers library's, which the files of Stable Diffusion are written by."""

import diffusers.models.unets.unet_2d_blocks as theirs
import pytest
import torch
from diffusers.models.autoencoders.vae import Decoder
from torch import nn

from aeic_lightning.models.decoder import UNetConfig, VAEConfig
from aeic_lightning.models.decoder.denoiser import UNetTrunk
from aeic_lightning.models.decoder.one_step import vae_decoder

COMMON = {"temb_channels": None, "resnet_eps": 1e-5, "resnet_groups": 4}
ATTENTION = {"cross_attention_dim": None, "use_linear_projection": True}


def block(name: str, sizes: dict, attends: bool, heads: int) -> nn.Module:
    if attends:
        return getattr(theirs, f"CrossAttn{name}")(**sizes, **COMMON, **ATTENTION, num_attention_heads=heads)
    return getattr(theirs, name)(**sizes, **COMMON)


def their_trunk(config: UNetConfig) -> nn.Module:
    """Diffusers' blocks of these sizes, made in the order of the U-Net."""
    widths, heads, layers = config.widths, config.heads, config.layers
    last = len(widths) - 1
    trunk = nn.Module()
    down, up = nn.ModuleList(), nn.ModuleList()
    for i, (w_in, w_out) in enumerate(zip([widths[0], *widths], widths, strict=False)):
        sizes = {"in_channels": w_in, "out_channels": w_out, "num_layers": layers, "add_downsample": i < last}
        down.append(block("DownBlock2D", sizes | {"downsample_padding": 1}, config.attends[i], heads[i]))
    trunk.down_blocks = down
    mid = {"in_channels": widths[-1], "num_attention_heads": heads[-1]}
    trunk.mid_block = theirs.UNetMidBlock2DCrossAttn(**mid, **COMMON, **ATTENTION)
    for i in range(last, -1, -1):
        sizes = {"in_channels": widths[max(i - 1, 0)], "out_channels": widths[i], "num_layers": layers + 1}
        sizes |= {"prev_output_channel": widths[min(i + 1, last)], "add_upsample": i > 0}
        up.append(block("UpBlock2D", sizes, config.attends[i], heads[i]))
    trunk.up_blocks = up
    trunk.conv_norm_out = nn.GroupNorm(4, widths[0], eps=1e-5)
    return trunk


def run_theirs(trunk, x):
    skips, hidden = [x], []
    for block in trunk.down_blocks:
        x, new = block(x)
        skips += new
        hidden.append(x)
    x = trunk.mid_block(x)
    hidden.append(x)
    for block in trunk.up_blocks:
        count = len(block.resnets)
        own, skips = tuple(skips[-count:]), skips[:-count]
        x = block(x, own, upsample_size=skips[-1].shape[2:] if skips else None)
        hidden.append(x)
    return torch.nn.functional.silu(trunk.conv_norm_out(x)), hidden


def pair(make_ours, make_theirs):
    """Both networks of one seed, then filled alike; the tensors' order is that of an optimizer's state."""
    torch.manual_seed(0)
    ours = make_ours()
    torch.manual_seed(0)
    other = make_theirs()
    start, their_start = dict(ours.named_parameters()), dict(other.named_parameters())
    assert list(start) == list(their_start)
    zero = [name for name, tensor in start.items() if not tensor.any()]  # residual branches, which start as nothing
    assert all(torch.equal(start[name], their_start[name]) for name in start if name not in zero)
    for tensor in start.values():
        nn.init.normal_(tensor, std=0.2)
    other.load_state_dict(ours.state_dict())
    return ours, other


@pytest.mark.parametrize(
    "config",
    [
        UNetConfig(widths=[8, 16, 24], heads=[1, 2, 3], layers=1, groups=4, attention=[False, True, False]),
        UNetConfig(widths=[8, 16], heads=[2, 2], layers=2, groups=4),
    ],
)
@pytest.mark.parametrize("size", [(8, 12), (9, 5)])
def test_the_trunk_is_diffusers(config, size):
    ours, other = pair(lambda: UNetTrunk(config), lambda: their_trunk(config))
    x = torch.randn(2, config.widths[0], *size)
    (out, hidden), (expected, their_hidden) = ours(x), run_theirs(other, x)
    assert len(hidden) == len(their_hidden)
    for a, b in zip([out, *hidden], [expected, *their_hidden], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * b.abs().max().item())


@pytest.mark.parametrize("layers", [0, 1])
@pytest.mark.parametrize("attention", [False, True])
def test_the_vae_decoder_is_diffusers(layers, attention):
    config = VAEConfig(widths=[8, 12, 16, 20], layers=layers, groups=4, attention=attention)
    ours, other = pair(
        lambda: vae_decoder(5, config),
        lambda: Decoder(
            in_channels=5, block_out_channels=tuple(config.widths), up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=layers, norm_num_groups=4, mid_block_add_attention=attention,
        ),
    )  # fmt: skip
    z = torch.randn(2, 5, 3, 4)
    expected = other(z)
    torch.testing.assert_close(ours(z), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_recomputed_gradients_are_those_that_are_kept():
    config = UNetConfig(widths=[8, 16], heads=[2, 2], layers=1, groups=4)
    trunk = UNetTrunk(config)
    for p in trunk.parameters():
        nn.init.normal_(p, std=0.2)
    x, gradients, passes = torch.randn(1, 8, 4, 4), [], []
    trunk.down_blocks[0].resnets[0].conv1.register_forward_hook(lambda *_: passes.append(1))
    for checkpointing in (False, True):
        if checkpointing:
            trunk.enable_checkpointing()
        trunk.zero_grad()
        passes.clear()
        trunk(x)[0].square().sum().backward()
        assert len(passes) == 1 + checkpointing
        gradients.append([p.grad.clone() for p in trunk.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))

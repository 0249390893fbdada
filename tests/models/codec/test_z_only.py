"""z alone: one switch for training, estimate and stream."""

from dataclasses import replace

import pytest
import torch

from aeic_lightning.bitstream.stream import Bitstream, reconstruct
from aeic_lightning.checkpoints.checkpoint import load_model
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.random_model import random_model, save


@pytest.fixture
def model(codec_config):
    return random_model(replace(codec_config, z_only=True))


def test_training_sends_nothing_of_y_and_still_teaches_the_encoder(codec_config, decoder_config):
    model = AEIC(replace(codec_config, z_only=True), decoder_config).train()
    output = model(torch.rand(2, 3, 128, 128) * 2 - 1)
    assert output.codec.bits_y.tolist() == [0.0, 0.0]
    assert (output.bits_estimate > 0).all()
    ((output.x_hat**2).mean() + output.bits_estimate.mean() / 128**2).backward()
    gradients = [p.grad for part in (model.codec.g_a, model.codec.h_a, model.codec.context) for p in part.parameters()]
    assert all(g is not None for g in gradients[:4])
    assert sum(g.abs().sum() for g in gradients if g is not None) > 0
    assert model.codec.g_a[0].conv.weight.grad.abs().sum() > 0, "y is read by h_a"


def test_a_stream_holds_z_and_gives_the_same_latents(model, codec_config):
    """Fewer bytes than with y, no symbol of it, and the receiver gets the sender's y_hat."""
    x = torch.nn.functional.interpolate(torch.randn(1, 3, 4, 4), size=(190, 250), mode="bicubic").clamp(-1, 1)
    bitstream = Bitstream(model)
    encoded = bitstream.encode_fully(x)
    assert encoded.coded == 0
    decoded = bitstream.decode(encoded.data)
    assert torch.equal(decoded.y_hat, encoded.y_hat)
    assert reconstruct(model, decoded).shape == (3, 190, 250)
    with torch.no_grad():
        output = model.codec(x)
    assert (decoded.y_hat - output.y_hat).abs().mean() < 0.1 * output.y_hat.abs().mean()
    assert abs(8 * len(encoded.data) - 8 * 16 - output.bits_z.item()) < 0.1 * output.bits_z.item() + 64
    whole = Bitstream(random_model(codec_config))
    assert len(encoded.data) < len(whole.encode(x))
    with pytest.raises(Exception, match="another checkpoint"):
        whole.decode(encoded.data)


def test_a_checkpoint_keeps_the_switch(model, tmp_path):
    save(model, tmp_path / "z.ckpt")
    assert load_model(tmp_path / "z.ckpt").codec.config.z_only

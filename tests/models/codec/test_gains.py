"""Gain units: the dial of a codec of many rates."""

from dataclasses import replace

import pytest
import torch

from aeic_lightning.errors import UserError
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.codec import LatentCodec
from aeic_lightning.models.layers import GainUnits

WEIGHTS = [8.0, 2.0, 0.5]


@pytest.fixture
def gains() -> GainUnits:
    gains = GainUnits(6, WEIGHTS)
    with torch.no_grad():
        gains.log_gain.add_(0.3 * torch.randn_like(gains.log_gain))
        gains.log_inverse.add_(0.3 * torch.randn_like(gains.log_inverse))
    return gains


def test_a_level_has_its_own_vectors_and_a_level_between_two_their_geometric_mean(gains):
    gain = gains.gain(torch.tensor([0.0, 1.0, 2.0, 0.5, 1.25]))[..., 0, 0]
    rows = gains.log_gain.exp()
    assert torch.allclose(gain[:3], rows)
    assert torch.allclose(gain[3], (rows[0] * rows[1]).sqrt())
    assert torch.allclose(gain[4], rows[1] ** 0.75 * rows[2] ** 0.25)
    assert torch.allclose(gains.rate_weight(torch.tensor([0.0, 1.0, 2.0, 1.5])), torch.tensor([8.0, 2.0, 0.5, 1.0]))


def test_untrained_gains_undo_each_other_and_grow_with_the_level():
    gains = GainUnits(4, WEIGHTS)
    level = torch.linspace(0, 2, 9)
    assert torch.allclose(gains.gain(level) * gains.inverse(level), torch.ones(9, 4, 1, 1))
    assert (gains.gain(level).diff(dim=0) > 0).all()


def test_a_batch_holds_every_level_equally_often(gains):
    drawn = gains.draw(9)
    assert sorted(drawn.tolist()) == [0.0] * 3 + [1.0] * 3 + [2.0] * 3
    firsts = {gains.draw(2)[0].item() for _ in range(50)}
    assert firsts == {0.0, 1.0, 2.0}  # where a batch holds fewer crops than levels, each has its turn


@pytest.mark.parametrize("weights", [[1.0], [1.0, 2.0], [2.0, 0.0]])
def test_weights_that_make_no_dial_are_refused(weights):
    with pytest.raises(UserError, match="rate_levels"):
        GainUnits(4, weights)


def test_without_levels_the_codec_has_the_parameters_of_the_paper(codec_config):
    plain = LatentCodec(codec_config)
    dial = LatentCodec(replace(codec_config, rate_levels=WEIGHTS))
    assert set(dial.state_dict()) - set(plain.state_dict()) == {"gains.log_gain", "gains.log_inverse"}
    with pytest.raises(UserError, match="one rate"):
        plain(torch.zeros(1, 3, 64, 64), level=1.0)


def test_the_level_moves_the_rate_of_each_image_by_itself(codec_config, decoder_config):
    model = AEIC(replace(codec_config, rate_levels=WEIGHTS), decoder_config).eval()
    with torch.no_grad():
        for p in model.codec.g_a.parameters():
            p.add_(0.1 * torch.randn_like(p))
        x = torch.randn(1, 3, 64, 64).clamp(-1, 1)
        bits = [model(x, level).bits_estimate.item() for level in (0.0, 0.7, 1.0, 2.0)]
        together = model(x.expand(3, -1, -1, -1), torch.tensor([0.0, 1.0, 2.0])).bits_estimate
        middle = model(x).bits_estimate.item()
    assert bits == sorted(bits)
    assert together.tolist() == pytest.approx([bits[0], bits[2], bits[3]], rel=1e-4)
    assert middle == pytest.approx(bits[2], rel=1e-4)  # the middle level, where none is asked for
    with pytest.raises(UserError, match="outside of 0 to 2"):
        model(x, 3.0)


def test_gradients_reach_the_gains_of_the_levels_that_were_drawn(codec_config):
    codec = LatentCodec(replace(codec_config, rate_levels=WEIGHTS)).train()
    output = codec(torch.randn(2, 3, 64, 64), torch.tensor([0.0, 2.0]))
    (output.bits_y.sum() + output.l_T.square().sum()).backward()
    for vectors in (codec.gains.log_gain, codec.gains.log_inverse):
        reached = vectors.grad.abs().sum(1)
        assert reached[0] > 0
        assert reached[1] == 0
        assert reached[2] > 0

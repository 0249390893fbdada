"""`optimization.freeze`: parts of the model that keep their weights."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from aeic_lightning.checkpoints.checkpoint import add_realistic, load_aeic
from aeic_lightning.errors import UserError
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.systems.averaging import WeightAverage
from tests.systems.test_compression import make, weights

NORMALISED = {"class_path": "tests.models.plain_encoder.NormalisedEncoder", "init_args": {"width": 8}}


def test_frozen_modules_stay_and_the_others_learn_through_them(codec_config, decoder_config, loader, trainer):
    system = make(codec_config, decoder_config, freeze=["decoder", "codec.g_s"], weight_decay=0.1)
    before = weights(system.model)
    trainer(2).fit(system, loader(2))
    changed = {name for name, value in system.model.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(name.startswith(("decoder.", "codec.g_s.")) for name in changed)
    assert any(name.startswith("codec.g_a.") for name in changed), "the loss reaches g_a through what is frozen"


def test_a_module_that_is_not_there_is_named(codec_config, decoder_config, loader, trainer):
    with pytest.raises(UserError, match=r"no module 'codec\.g_z'.*codec\.g_"):
        trainer(1).fit(make(codec_config, decoder_config, freeze=["codec.g_z"]), loader(1))
    with pytest.raises(UserError, match="nothing to train"):
        trainer(1).fit(make(codec_config, decoder_config, freeze=["codec", "decoder"]), loader(1))


def test_frozen_layers_are_in_evaluation_mode_for_the_whole_run(codec_config, decoder_config, loader, trainer):
    """Statistics stay and dropout is off, after a validation and a pass through the shapes too; y is still noisy."""
    codec_config = replace(codec_config, encoder=NORMALISED)
    system = make(codec_config, decoder_config, freeze=["codec", "decoder.denoiser"])
    encoder, norm, seen = system.model.codec.g_a, system.model.codec.g_a.norm, []
    before = weights(system.model.codec)
    encoder.dropout.register_forward_hook(lambda module, *_: seen.append((module.training, system.model.training)))
    fitted = trainer(3, val_check_interval=1, limit_val_batches=1, num_sanity_val_steps=0)
    fitted.fit(system, loader(3, batch_size=2), loader(1))
    assert (False, True) in seen
    assert (True, True) not in seen
    after = system.model.codec.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items()), "statistics and quantiles stay"
    system.train()
    assert not norm.training
    assert system.model.codec.training
    assert system.model.decoder.training
    assert system.model.decoder.vae.training
    assert not system.model.decoder.denoiser.training


def test_what_is_not_frozen_moves_its_statistics(codec_config, decoder_config, loader, trainer):
    system = make(replace(codec_config, encoder=NORMALISED), decoder_config, freeze=["codec.g_s"])
    before = weights(system.model.codec.g_a.norm)
    trainer(2).fit(system, loader(4, batch_size=2))
    assert not torch.equal(system.model.codec.g_a.norm.running_mean, before["running_mean"])


def test_averages_cover_running_statistics(codec_config, decoder_config):
    """A BatchNorm whose statistics were averaged by hand; what counts batches is not averaged."""
    model = AEIC(replace(codec_config, encoder=NORMALISED), decoder_config)
    norm: nn.BatchNorm2d = model.codec.g_a.norm
    average = WeightAverage(model, 0.8)
    expected = norm.running_mean.double()
    for step in range(1, 20):
        norm.running_mean.normal_()
        norm.num_batches_tracked.add_(1)
        average.update(step)
        keep = min(0.8, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * norm.running_mean.double()
    raw = norm.running_mean.clone()
    average.swap_in()
    assert torch.allclose(norm.running_mean.double(), expected, atol=1e-6)
    assert not torch.equal(norm.running_mean, raw)
    average.swap_out()
    assert torch.equal(norm.running_mean, raw)
    assert norm.num_batches_tracked == 19
    checkpoint = {"state_dict": {f"model.{name}": value.clone() for name, value in model.state_dict().items()}}
    average.save(checkpoint)
    assert torch.allclose(checkpoint["state_dict"]["model.codec.g_a.norm.running_mean"].double(), expected, atol=1e-6)
    again = WeightAverage(model, 0.8)
    again.load(checkpoint)
    assert torch.equal(checkpoint["state_dict"]["model.codec.g_a.norm.running_mean"], raw)
    assert torch.equal(again.averages["codec.g_a.norm.running_mean"], average.averages["codec.g_a.norm.running_mean"])


def test_a_last_stage_of_the_decoder_alone_gives_its_realistic_weights(
    codec_config, decoder_config, tmp_path, loader, trainer
):
    """With an adversary and averages, from a checkpoint: both decoders read the same streams."""
    first = make(codec_config, decoder_config)
    fitted = trainer(1)
    fitted.fit(first, loader(1))
    fitted.save_checkpoint(tmp_path / "faithful.ckpt")
    start = str(tmp_path / "faithful.ckpt")
    last = make(codec_config, decoder_config, adversarial=0.1, init_from=start, freeze=["codec"], ema=0.9)
    fitted = trainer(2)
    fitted.fit(last, loader(2))
    fitted.save_checkpoint(tmp_path / "realistic.ckpt")
    model = load_aeic(start)
    add_realistic(model, tmp_path / "realistic.ckpt")
    pairs = zip(model.decoder.parameters(), model.realistic.parameters(), strict=True)
    assert any(not torch.equal(ours, theirs) for ours, theirs in pairs)

"""Averages of the weights: what they are, who uses them, and that training does not."""

import pytest
import torch
from lightning.pytorch import Callback, seed_everything

from aeic_lightning.checkpoints.checkpoint import load_model
from aeic_lightning.errors import UserError
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.systems import OptimizationConfig, TeacherSystem
from aeic_lightning.systems.averaging import RAW, WeightAverage


def make(codec_config, decoder_config, ema=0.9, init_from=None, freeze=()) -> TeacherSystem:
    seed_everything(0, verbose=False)
    optimization = OptimizationConfig(learning_rates=[(0, 1e-2)], ema=ema, freeze=list(freeze))
    return TeacherSystem(codec_config, decoder_config, {"rate": 0.8, "mse": 2.0}, optimization, init_from=init_from)


def parameters(system) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in system.model.named_parameters()}


def test_an_average_is_the_weighted_sum_of_all_steps(codec_config, decoder_config):
    model = AEIC(codec_config, decoder_config)
    average = WeightAverage(model, 0.8)
    history = [next(model.parameters()).detach().clone()]
    expected = history[0].double()
    for step in range(1, 30):
        with torch.no_grad():
            next(model.parameters()).add_(torch.randn_like(history[0]))
        average.update(step)
        keep = min(0.8, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * next(model.parameters()).detach().double()
    assert torch.allclose(next(iter(average.averages.values())).double(), expected, atol=1e-5)


def test_a_run_averages_the_weights_of_each_step_under_its_number(codec_config, decoder_config, loader, trainer):
    """With the share that `optimization.ema` says, and less in the first step."""
    history = []

    class Watched(TeacherSystem):
        def step_players(self):
            history.append(parameters(self))
            super().step_players()

    system = make(codec_config, decoder_config, ema=0.2)
    system.__class__ = Watched
    trainer(3).fit(system, loader(3))
    history.append(parameters(system))
    expected = {name: weight.double() for name, weight in history[0].items()}
    for weights, keep in zip(history[1:], (2 / 11, 0.2, 0.2), strict=True):
        expected = {name: keep * mean + (1 - keep) * weights[name].double() for name, mean in expected.items()}
    for name, average in system.average.averages.items():
        torch.testing.assert_close(average.double(), expected[name], rtol=1e-4, atol=1e-7)


def test_the_quantiles_of_training_come_back_with_its_weights(codec_config, decoder_config):
    model = AEIC(codec_config, decoder_config)
    average = WeightAverage(model, 0.9)
    with torch.no_grad():
        model.prior.quantiles.add_(3.0)  # as they were solved for weights that are gone
    before = model.prior.quantiles.clone()
    average.swap_in()
    assert not torch.equal(model.prior.quantiles, before), "solved for the averages"
    average.swap_out()
    assert torch.equal(model.prior.quantiles, before)


def test_training_is_the_same_with_an_average(codec_config, decoder_config, loader, trainer):
    plain, averaged = make(codec_config, decoder_config, ema=0.0), make(codec_config, decoder_config)
    for system in (plain, averaged):
        seed_everything(1, verbose=False)
        trainer(4).fit(system, loader(4))
    ours, theirs = parameters(averaged), parameters(plain)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any(not torch.equal(averaged.average.averages[name], ours[name]) for name in ours)


def test_validation_sees_the_average_and_leaves_training_as_it_was(codec_config, decoder_config, loader, trainer):
    seen = {}

    class Watched(TeacherSystem):
        def validation_step(self, batch, batch_idx):
            seen.update(parameters(self))

    system = make(codec_config, decoder_config)
    system.__class__ = Watched
    fitted = trainer(3, limit_val_batches=1, val_check_interval=3, num_sanity_val_steps=0)
    fitted.fit(system, loader(3), loader(1))
    averages, raw = system.average.averages, parameters(system)
    assert all(torch.equal(seen[name], averages[name]) for name in averages)
    assert any(not torch.equal(seen[name], raw[name]) for name in raw)


def test_readers_of_a_checkpoint_get_the_average(codec_config, decoder_config, loader, trainer, tmp_path):
    system = make(codec_config, decoder_config)
    fitted = trainer(3)
    fitted.fit(system, loader(3))
    fitted.save_checkpoint(tmp_path / "a.ckpt")
    model = load_model(tmp_path / "a.ckpt")
    started = make(codec_config, decoder_config, init_from=str(tmp_path / "a.ckpt"))
    started.load_start()
    for name, average in system.average.averages.items():
        assert torch.equal(model.get_parameter(name), average)
        assert torch.equal(started.model.get_parameter(name), average)


@pytest.mark.parametrize("freeze", [pytest.param((), marks=pytest.mark.slow), ("decoder",)])
def test_a_resumed_run_is_the_uninterrupted_one(codec_config, decoder_config, loader, trainer, tmp_path, freeze):
    whole = make(codec_config, decoder_config, freeze=freeze)
    trainer(6).fit(whole, loader(1))
    first = make(codec_config, decoder_config, freeze=freeze)

    class Half(Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = trainer.global_step == 3

    fitted = trainer(6, callbacks=[Half()])
    fitted.fit(first, loader(1))
    fitted.save_checkpoint(tmp_path / "half.ckpt")
    assert RAW in torch.load(tmp_path / "half.ckpt", weights_only=True)
    second = make(codec_config, decoder_config, freeze=freeze)
    resumed = trainer(6)
    resumed.fit(second, loader(1), ckpt_path=tmp_path / "half.ckpt")
    resumed.save_checkpoint(tmp_path / "end.ckpt")
    end = torch.load(tmp_path / "end.ckpt", weights_only=True)["state_dict"]
    ours, theirs = parameters(second), parameters(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert all(torch.equal(end[f"model.{name}"], a) for name, a in whole.average.averages.items())
    assert torch.equal(second.model.prior.quantiles, whole.model.prior.quantiles)


def test_averaged_weights_are_not_trained_on_by_mistake(codec_config, decoder_config, loader, trainer, tmp_path):
    system = make(codec_config, decoder_config)
    fitted = trainer(1)
    fitted.fit(system, loader(2))
    fitted.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="averaged weights"):
        trainer(2).fit(make(codec_config, decoder_config, ema=0.0), loader(2), ckpt_path=tmp_path / "a.ckpt")

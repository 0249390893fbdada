"""Settings of the training: what they do, and which are refused."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy

from aeic_lightning.errors import UserError
from aeic_lightning.systems import TeacherSystem, optimization
from tests.systems.test_compression import make, weights


def test_bad_settings_are_said_in_words(codec_config, decoder_config):
    with pytest.raises(UserError, match="from step 0 on"):
        make(codec_config, decoder_config, learning_rates=[(10, 1e-3)])
    with pytest.raises(UserError, match="accumulate must be at least 1"):
        make(codec_config, decoder_config, accumulate=0)


def test_cosine_falls_to_its_final_rate_at_the_last_step(codec_config, decoder_config, loader, trainer):
    seen = []

    class Watched(TeacherSystem):
        def step_players(self):
            super().step_players()
            seen.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    rates = {"learning_rates": [(0, 1e-3)], "schedule": "cosine", "final_learning_rate": 1e-4, "warmup_steps": 1}
    system = make(codec_config, decoder_config, **rates)
    system.__class__ = Watched
    trainer(4).fit(system, loader(1))
    assert seen == pytest.approx([1e-3, 1e-3, (1e-3 + 1e-4) / 2, 1e-4])
    with pytest.raises(UserError, match=r"set trainer\.max_steps"):
        trainer(-1, max_epochs=1).fit(make(codec_config, decoder_config, **rates), loader(1))
    with pytest.raises(UserError, match="cosine falls from one rate"):
        make(codec_config, decoder_config, schedule="cosine", learning_rates=[(0, 1e-3), (5, 1e-4)])


def test_quantiles_are_solved_every_so_many_steps_and_not_where_a_run_happens_to_end(
    codec_config, decoder_config, loader, trainer, monkeypatch
):
    """And the terms are told of each update under its number."""
    monkeypatch.setattr(optimization, "QUANTILE_INTERVAL", 2)
    system = make(codec_config, decoder_config)
    solved, told = [], []
    monkeypatch.setattr(system.model.codec.prior, "update_quantiles", lambda: solved.append(system.global_step))
    monkeypatch.setattr(system.objective, "updated", told.append)
    trainer(5).fit(system, loader(5))
    assert solved == [2, 4]
    assert told == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("updates", ["joint", "separate"])
def test_rates_and_gradient_norms_of_both_players_are_logged(
    codec_config, decoder_config, loader, trainer, monkeypatch, updates
):
    clipped = []
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *given: clipped.append(clip(*given)))
    adversary = {"weight": 0.1, "learning_rate": 3e-4, "updates": updates}
    system = make(codec_config, decoder_config, adversary, learning_rates=[(0, 1e-3), (1, 5e-4)], gradient_clip=0.1)
    fitted = trainer(2)
    fitted.fit(system, loader(2))
    logged = {name: value.item() for name, value in fitted.callback_metrics.items()}
    assert logged["train/learning_rate"] == pytest.approx(5e-4)
    assert logged["train/discriminator_learning_rate"] == pytest.approx(3e-4)
    # One clipping of the generator's gradient a step, then one or two of the discriminator's.
    generator, discriminator, *_ = clipped[len(clipped) // 2 :]
    assert logged["train/gradient_norm"] == pytest.approx(generator.item(), rel=1e-5)
    assert logged["train/discriminator_gradient_norm"] == pytest.approx(discriminator.item(), rel=1e-5)
    assert generator > 0.11, "before it is clipped to 0.1"
    assert generator.item() != pytest.approx(discriminator.item())


def test_without_an_adversary_there_is_one_player_to_log(codec_config, decoder_config, loader, trainer):
    fitted = trainer(1)
    fitted.fit(make(codec_config, decoder_config), loader(1))
    assert {name for name in fitted.callback_metrics if "learning_rate" in name or "norm" in name} == {
        "train/learning_rate", "train/gradient_norm",
    }  # fmt: skip


def test_a_run_of_one_level_leaves_the_gains_of_the_others(codec_config, decoder_config, loader, trainer):
    codec_config.rate_levels = [4.0, 1.0, 0.25]
    system = make(codec_config, decoder_config, level=2, weight_decay=0.0)
    before = weights(system.model.codec.gains)
    trainer(2).fit(system, loader(2, batch_size=3))
    moved = (weights(system.model.codec.gains)["log_gain"] != before["log_gain"]).any(1)
    assert moved.tolist() == [False, False, True]


def test_a_level_that_the_codec_lacks_is_refused_before_the_first_step(codec_config, decoder_config, loader, trainer):
    with pytest.raises(UserError, match="this codec has one rate"):
        trainer(1).fit(make(codec_config, decoder_config, level=1), loader(1))
    codec_config.rate_levels = [4.0, 1.0]
    with pytest.raises(UserError, match=r"level 2\.0 is outside of 0 to 1"):
        trainer(1).fit(make(codec_config, decoder_config, level=2), loader(1))


def test_a_strategy_that_splits_the_model_is_refused(codec_config, decoder_config):
    system = make(codec_config, decoder_config)
    system.trainer = SimpleNamespace(strategy=FSDPStrategy())
    with pytest.raises(UserError, match=r"trainer.strategy is FSDPStrategy: .* take ddp"):
        system.setup("fit")

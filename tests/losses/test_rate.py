"""Rate to order: the search for lambda on a plant of known law, and in a run that is resumed."""

import math
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, seed_everything

from aeic_lightning.errors import UserError
from aeic_lightning.losses import Rate
from aeic_lightning.losses.objective import Objective
from aeic_lightning.study.run_description import run_labels
from aeic_lightning.systems import OptimizationConfig, TeacherSystem

X = {"image": torch.zeros(2, 3, 8, 8)}


class Half(Callback):
    """Ends a run after two steps, as a kill would: not its last step."""

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step == 2


def output(bpp, **more):
    return SimpleNamespace(bits_estimate=torch.full((2,), bpp * 64.0), **more)


@pytest.mark.parametrize("target", [0.02, 0.3, 1.0])
def test_the_search_finds_the_rate_of_a_model_that_follows_slowly(target):
    """A rate of 0.5 lambda^-0.6 that is approached over 30 updates, and scatters from batch to batch."""
    generator = torch.Generator().manual_seed(0)
    objective = Objective({"rate": {"weight": 2.0, "target": target, "warmup_steps": 20}}).train()
    rate, rates = 0.5, []
    for step in range(1500):
        noise = torch.randn((), generator=generator).mul(0.2).exp().item()
        logged = objective({**X}, output(rate * noise), step=step).terms
        objective.updated(step + 1)
        rate += ((0.5 * max(logged["lambda"].item(), 0.01) ** -0.6) - rate) / 30
        rates.append(rate)
    assert sum(rates[-300:]) / 300 == pytest.approx(target, rel=0.05)
    assert max(rates[-300:]) < 1.25 * target


def test_lambda_is_what_the_loss_multiplies_by_and_the_state_carries_it():
    objective = Objective({"rate": {"weight": 2.0, "target": 0.1}}).train()
    for _ in range(5):
        objective(X, output(0.3), step=1)
        objective.updated(1)
    out = objective(X, output(0.3), step=1)
    assert out.total.item() == pytest.approx(out.terms["lambda"].item() * 0.3)
    assert out.terms["lambda"] > 2.0, "too many bits: lambda rises"
    assert out.terms["bpp_average"].item() == pytest.approx(0.3)
    other = Objective({"rate": {"weight": 2.0, "target": 0.1}})
    other.load_state_dict(objective.state_dict())
    assert other.terms["rate"].factor == objective.terms["rate"].factor
    assert Objective({"rate": 2.0}).state_dict() == {}, "a fixed lambda leaves nothing in a checkpoint"


def test_batches_of_one_update_count_together_and_those_of_a_skipped_one_not_at_all():
    rate = Rate(target=0.1).train()
    for bpp in (0.2, 0.4):
        rate(X, output(bpp), None)
    rate.updated(warm=False)
    assert rate.search.tolist() == [pytest.approx(0.3), 0.0], "no integral before the warm-up is over"
    rate(X, output(9.0), None)
    rate.skipped()
    rate.updated(warm=True)
    assert rate.search[0].item() == pytest.approx(0.3)


def test_the_average_of_ten_updates_and_the_integral_of_settle_updates_that_begins_after_the_warm_up():
    """Written out for the rates 0.3, 0.1, 0.2 and 0.4 with a warm-up of two updates."""
    objective = Objective({"rate": {"weight": 1.0, "target": 0.2, "settle": 7, "warmup_steps": 2}}).train()
    averages, integral = [], 0.0
    for step, bpp in enumerate((0.3, 0.1, 0.2, 0.4)):
        objective(X, output(bpp), step=step)
        objective.updated(step + 1)
        averages.append(0.9 * averages[-1] + 0.1 * bpp if averages else bpp)
        if step + 1 >= 2:
            integral += math.log(averages[-1] / 0.2) / 7
        assert objective.terms["rate"].search.tolist() == pytest.approx([averages[-1], integral], rel=1e-5, abs=1e-9)


def test_a_resumed_run_has_the_same_lambda(codec_config, decoder_config, loader, trainer, tmp_path):
    def make():
        seed_everything(0, verbose=False)
        terms = {"rate": {"weight": 1.0, "target": 0.05, "settle": 2}, "mse": 2.0}
        return TeacherSystem(codec_config, decoder_config, terms, OptimizationConfig([(0, 1e-2)]))

    whole = trainer(4)
    system = make()
    whole.fit(system, loader(1))
    first = trainer(4, callbacks=[Half()])
    first.fit(make(), loader(1))
    assert first.global_step == 2
    first.save_checkpoint(tmp_path / "a.ckpt")
    rest, second = make(), trainer(4)
    second.fit(rest, loader(1), ckpt_path=tmp_path / "a.ckpt")
    assert torch.equal(rest.objective.terms["rate"].search, system.objective.terms["rate"].search)
    assert second.callback_metrics["train/lambda"] == whole.callback_metrics["train/lambda"] != 1.0
    assert torch.equal(rest.model.codec.g_a[0].conv.weight, system.model.codec.g_a[0].conv.weight)


def test_what_cannot_be_is_said():
    with pytest.raises(UserError, match="target must be a number of bits per pixel above 0"):
        Rate(target=0.0)
    with pytest.raises(UserError, match="settle must be 1 or more"):
        Rate(target=0.1, settle=0)
    with pytest.raises(UserError, match="this codec has rate_levels"):
        Rate(target=0.1)(X, output(0.1, rate_weight=torch.ones(2)), None)


def test_results_name_the_target_in_place_of_lambda():
    model = {"class_path": "a.StudentSystem", "init_args": {"objective": {"rate": {"weight": 1.0, "target": 0.2}}}}
    labels = run_labels({"model": model}, None)
    assert labels["target"] == 0.2
    assert "lambda" not in labels

from pathlib import Path

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from aeic_lightning.classification.loss import ClassificationLossConfig, logits_distance, rate_distortion_accuracy
from aeic_lightning.config import load_config
from aeic_lightning.errors import UserError

EXPERIMENTS = Path(__file__).parents[2] / "experiments" / "classification"


def test_each_term_has_its_unit():
    config = ClassificationLossConfig(rate=1.0, alpha=0.3, beta=0.003)
    x = torch.rand(4, 3, 8, 10) - 0.5
    one_level = 2 / 255  # of 256 levels on [-1, 1]
    logits = torch.zeros(4, 5)  # every class at 1/5
    loss = rate_distortion_accuracy(
        config, logits, torch.tensor([0, 1, 2, 3]), x + 3 * one_level, x, torch.tensor([80.0, 160.0, 80.0, 160.0])
    )
    expected = {"bpp_estimate": 120 / 80, "mse_255": 9.0, "cross_entropy": torch.log(torch.tensor(5.0)).item()}
    assert {name: value.item() for name, value in loss.terms.items()} == pytest.approx(expected, rel=1e-4)
    assert loss.total.item() == pytest.approx(1.5 + 0.3 * expected["cross_entropy"] + 0.003 * 9, rel=1e-4)


def test_step_1_has_no_rate():
    x = torch.zeros(2, 3, 4, 4)
    loss = rate_distortion_accuracy(
        ClassificationLossConfig(), torch.zeros(2, 3), torch.tensor([0, 1]), x, x, torch.full((2,), torch.inf)
    )
    assert "bpp_estimate" not in loss.terms
    assert loss.total.isfinite()


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_distance_of_logits_is_the_scaled_divergence(temperature):
    own, theirs = torch.randn(2, 6, 9).unbind(0)
    divergence = kl_divergence(Categorical(logits=theirs / temperature), Categorical(logits=own / temperature)).mean()
    torch.testing.assert_close(logits_distance(own, theirs, temperature), temperature**2 * divergence)


@pytest.mark.parametrize(
    ("file", "alpha", "beta", "rate"),
    [
        ("step1", 1.0, 0.001, 0),
        ("step2_q1", 0.1, 0.001, 1),
        ("step2_q2", 0.3, 0.003, 1),
        ("step2_q3", 0.6, 0.006, 1),
        ("paper_step1", 1.0, 0.001, 0),
        ("paper_step2_q1", 0.1, 0.001, 1),
        ("paper_step2_q2", 0.3, 0.003, 1),
        ("paper_step2_q3", 0.6, 0.006, 1),
    ],
)
def test_experiments_have_the_papers_weights(file, alpha, beta, rate):
    overrides = ["vars.data=d"] if file.startswith("paper") else []
    loss = load_config([EXPERIMENTS / f"{file}.yaml"], overrides)["model"]["init_args"]["loss"]
    assert (loss["alpha"], loss["beta"], loss["rate"]) == (alpha, beta, rate)
    assert (loss["mixup"], loss["label_smoothing"]) == ((0.8, 0.1) if rate == 0 else (0.0, 0.0))


def test_meaningless_weights_are_refused():
    for wrong in ({"alpha": -1.0}, {"temperature": 0.0}, {"label_smoothing": 1.0}):
        with pytest.raises(UserError, match="loss:"):
            ClassificationLossConfig(**wrong).check()

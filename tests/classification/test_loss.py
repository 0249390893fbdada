from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from aeic_lightning.classification.losses import CrossEntropy, LogitsDistillation, logits_distance
from aeic_lightning.classification.targets import Mixup
from aeic_lightning.config import load_config
from aeic_lightning.errors import UserError
from aeic_lightning.losses.objective import Objective, read_objective

EXPERIMENTS = Path(__file__).parents[2] / "experiments" / "classification"


ROOM = "aeic_lightning.classification"
OBJECTIVE = {
    "rate": 1.0,
    "cross_entropy": {"class_path": f"{ROOM}.CrossEntropy", "weight": 0.3},
    "mse_255": {"class_path": f"{ROOM}.SquaredError255", "weight": 0.003},
}


def test_each_term_has_its_unit():
    x = torch.rand(4, 3, 8, 10) - 0.5
    one_level = 2 / 255  # of 256 levels on [-1, 1]
    output = SimpleNamespace(
        logits=torch.zeros(4, 5),  # every class at 1/5
        x_hat=x + 3 * one_level,
        bits_estimate=torch.tensor([80.0, 160.0, 80.0, 160.0]),
    )
    loss = Objective(OBJECTIVE)({"image": x, "label": torch.tensor([0, 1, 2, 3])}, output)
    expected = {"bpp_estimate": 120 / 80, "mse_255": 9.0, "cross_entropy": torch.log(torch.tensor(5.0)).item()}
    expected["top1"] = 0.25
    assert {name: value.item() for name, value in loss.terms.items()} == pytest.approx(expected, rel=1e-4)
    assert loss.total.item() == pytest.approx(1.5 + 0.3 * expected["cross_entropy"] + 0.003 * 9, rel=1e-4)


def test_step_1_has_no_rate():
    x = torch.zeros(2, 3, 4, 4)
    output = SimpleNamespace(logits=torch.zeros(2, 3), x_hat=x, bits_estimate=torch.full((2,), torch.inf))
    loss = Objective(OBJECTIVE | {"rate": 0})({"image": x, "label": torch.tensor([0, 1])}, output)
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
    settings = load_config([EXPERIMENTS / f"{file}.yaml"], overrides)["model"]["init_args"]
    entries = read_objective(settings["objective"])
    weights = {name: entry.weight for name, entry in entries.items()}
    assert weights == {"cross_entropy": alpha, "mse_255": beta} | ({"rate": rate} if rate else {})
    soft = settings.get("mixup", 0.0), entries["cross_entropy"].arguments.get("label_smoothing", 0.0)
    # As released, step 2 smooths labels too; the small one does not.
    assert soft == ((0.8, 0.1) if rate == 0 else (0.0, 0.1 if file.startswith("paper") else 0.0))


def test_meaningless_weights_are_refused():
    with pytest.raises(UserError, match=r"objective\.mse: weight must be a number, 0 or more"):
        Objective({"mse": -1.0})
    with pytest.raises(UserError, match="temperature must be above 0"):
        LogitsDistillation(temperature=0.0)
    with pytest.raises(UserError, match="label_smoothing is 0 or more and below 1"):
        CrossEntropy(label_smoothing=1.0)
    with pytest.raises(UserError, match="mixup must be 0 or more"):
        Mixup(10, -1.0)

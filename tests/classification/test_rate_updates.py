"""What a checkpoint says about the training of its entropy model, and the precisions that training refuses."""

import numpy as np
import pytest
import torch
from PIL import Image

from aeic_lightning.checkpoints.checkpoint import warn_of_untrained_rate
from aeic_lightning.classification.system import ClassificationOptimization, ClassificationSystem
from aeic_lightning.cli import main
from aeic_lightning.errors import UserError
from datamodules.labelled import SampleDigits

ROOM = "aeic_lightning.classification"
STEP1 = {
    "cross_entropy": {"class_path": f"{ROOM}.CrossEntropy"},
    "mse_255": {"class_path": f"{ROOM}.SquaredError255", "weight": 0.001},
}
STEP2 = STEP1 | {"rate": 1.0}


@pytest.fixture
def digits() -> SampleDigits:
    return SampleDigits(batch_size=8, samples_per_epoch=64)


@pytest.fixture
def sizes(sizes):
    sizes.transformer.classes = 10
    return sizes


def system(sizes, objective, init_from=None) -> ClassificationSystem:
    return ClassificationSystem(sizes, objective, ClassificationOptimization(learning_rate=2e-3), init_from)


def train(trainer, system, data, steps: int, tmp_path, name: str) -> str:
    """Train without validation; the path of the checkpoint."""
    one = trainer(steps, limit_val_batches=0)
    one.fit(system, data)
    one.save_checkpoint(tmp_path / f"{name}.ckpt")
    return str(tmp_path / f"{name}.ckpt")


def test_checkpoints_count_the_updates_that_trained_a_rate(trainer, digits, sizes, tmp_path, capfd):
    """Step 1 has none, step 2 goes on from there, and a resumed step 2 from the sum."""

    def counted(path: str) -> tuple[int, str]:
        capfd.readouterr()
        warn_of_untrained_rate(path)
        return torch.load(path, weights_only=True)["rate_updates"], capfd.readouterr().err

    first = train(trainer, system(sizes, STEP1), digits, 2, tmp_path, "step1")
    updates, said = counted(first)
    assert updates == 0
    assert said.startswith(f"warning: {first} was trained without a rate")
    assert said.count("\n") == 1

    picture = tmp_path / "digit.png"
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(picture)
    assert main(["compress", str(picture), "--checkpoint", first, "-o", str(tmp_path / "streams")]) == 0
    assert said in capfd.readouterr().err

    second = train(trainer, system(sizes, STEP2, init_from=first), digits, 2, tmp_path, "step2")
    updates, said = counted(second)
    assert updates == 2
    assert "had 2 update(s) with a rate" in said
    resumed = trainer(3, limit_val_batches=0)
    resumed.fit(system(sizes, STEP2), digits, ckpt_path=second)
    resumed.save_checkpoint(tmp_path / "resumed.ckpt")
    assert counted(str(tmp_path / "resumed.ckpt"))[0] == 3

    saved = torch.load(second, weights_only=True)
    torch.save(saved | {"rate_updates": 100}, tmp_path / "long.ckpt")
    assert counted(str(tmp_path / "long.ckpt"))[1] == ""
    del saved["rate_updates"]
    torch.save(saved, tmp_path / "older.ckpt")
    warn_of_untrained_rate(tmp_path / "older.ckpt")
    assert capfd.readouterr().err == "", "older checkpoints do not say, and a stage that starts from one neither"
    after = train(trainer, system(sizes, STEP1, init_from=str(tmp_path / "older.ckpt")), digits, 1, tmp_path, "after")
    assert "rate_updates" not in torch.load(after, weights_only=True)


@pytest.mark.parametrize("precision", ["16-mixed", "16-true"])
def test_precision_that_needs_loss_scaling_is_refused(trainer, digits, sizes, monkeypatch, precision):
    one = trainer(1)
    monkeypatch.setattr(type(one), "precision", precision)  # Lightning would refuse it on a CPU first
    with pytest.raises(UserError, match=f"trainer.precision: {precision} would need loss scaling; take bf16-mixed"):
        one.fit(system(sizes, STEP1), digits)

"""A run that is extended is the one that was longer from the start, and a finished one has nothing to do."""

import sys

import pytest
import torch

from aeic_lightning import cli
from aeic_lightning.checkpoints.checkpoint import load_model
from aeic_lightning.checkpoints.peek import step_of
from aeic_lightning.systems import TeacherSystem
from tests.systems.test_compression import make, weights


@pytest.mark.parametrize("ema", [pytest.param(0.0, marks=pytest.mark.slow), 0.9])
def test_an_extended_run_is_the_longer_one_bit_for_bit(codec_config, decoder_config, loader, trainer, tmp_path, ema):
    """From 3 to 4 steps, with a validation at the old end."""

    def run(steps, ckpt_path=None):
        system = make(codec_config, decoder_config, ema=ema)
        fitted = trainer(steps, check_val_every_n_epoch=3, num_sanity_val_steps=0)
        fitted.fit(system, loader(1), loader(1), ckpt_path=ckpt_path)
        fitted.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return system

    run(3)
    extended = weights(run(4, tmp_path / "3.ckpt"))
    whole = weights(run(4))
    assert all(torch.equal(extended[name], value) for name, value in whole.items())


def test_an_evaluation_has_quantiles_of_its_own(codec_config, decoder_config, loader, trainer, tmp_path):
    """Those of the weights that it evaluates, as a reader of the checkpoint has; training gets its own back."""
    seen = {}

    class Watched(TeacherSystem):
        def validation_step(self, batch, batch_idx):
            seen["evaluated"] = self.model.prior.quantiles.clone()
            self.trainer.save_checkpoint(tmp_path / "within.ckpt")

    system = make(codec_config, decoder_config)
    system.__class__ = Watched
    training = system.model.prior.quantiles.clone()
    fitted = trainer(2, val_check_interval=2, limit_val_batches=1, num_sanity_val_steps=0)
    fitted.fit(system, loader(2), loader(1))
    assert torch.equal(system.model.prior.quantiles, training), "2 steps are no 50"
    stored = torch.load(tmp_path / "within.ckpt", weights_only=True)["state_dict"]["model.codec.prior.quantiles"]
    assert torch.equal(stored, training)
    assert torch.equal(load_model(tmp_path / "within.ckpt").prior.quantiles, seen["evaluated"])
    assert not torch.equal(seen["evaluated"], training)


def test_a_finished_run_has_nothing_to_do(tmp_path, capfd, monkeypatch):
    """Said before anything is built, and before torch is asked for the checkpoint: this one holds no model."""
    last = tmp_path / "teacher" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    weights = torch.nn.Linear(1, 1).state_dict()  # a dictionary with an attribute, as in every real checkpoint
    torch.save({"global_step": 7, "epoch": 0, "model_config": {}, "state_dict": weights}, last)
    words = ["fit", "--config", "tiny/student_enc.yaml", f"--vars.root={tmp_path}", "--vars.name=teacher"]
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", None)
        patch.setitem(sys.modules, "aeic_lightning.config.lightning_cli", None)
        patch.setattr("aeic_lightning.config.class_or_none", None)  # one of its layers changes the class
        assert cli.main([*words, "--vars.steps=7", "--vars.val_every=7", "--ckpt_path", "last"]) == 0
    assert f"nothing to do: {tmp_path}/teacher is at step 7 of 7; to train on, raise" in capfd.readouterr().out
    assert cli.main([*words, "--vars.steps=6", "--ckpt_path", "last"]) == 2
    assert "trainer.max_steps is 6, but" in capfd.readouterr().err
    torch.save({"epoch": 0}, last)
    assert step_of(last) is None
    last.write_bytes(b"PK no checkpoint")
    assert step_of(last) is None

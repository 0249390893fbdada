"""A run that is stopped and resumed sees the batches of the uninterrupted one, whatever the moment."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from datamodules import SamplePhotos


class Recorder(LightningModule):
    """Trains one weight, and notes which batches it has trained on. Two optimizers, as the systems have."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []
        self.fail_at = fail_at

    def training_step(self, batch, batch_idx):
        if len(self.seen) == self.fail_at:
            raise KeyboardInterrupt
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward((self.weight - batch["image"].mean()) ** 2)
            optimizer.step()
        self.seen.append((self.current_epoch, batch_idx, batch["name"], [x.sum().item() for x in batch["image"]]))

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return [torch.optim.SGD([self.weight], 0.1) for _ in range(2)]


class SaveAfter(Callback):
    """Saves after a number of batches, or at the end of an epoch, then stops the process as a preemption does."""

    def __init__(self, path, batch=None, epoch=None, error=False):
        self.path, self.batch, self.epoch, self.error = path, batch, epoch, error

    def save(self, trainer):
        trainer.save_checkpoint(self.path)
        raise KeyboardInterrupt

    def on_train_batch_end(self, trainer, pl_module, *args):
        if len(pl_module.seen) == self.batch:
            self.save(trainer)

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            self.save(trainer)

    def on_exception(self, trainer, pl_module, exception):
        if self.error:
            trainer.save_checkpoint(self.path)


def fit(tmp_path, module, callbacks=(), ckpt_path=None, num_workers=0, limits=None, data=None):
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
        callbacks=list(callbacks),
        **(limits or {"max_epochs": 4}),
    )
    settings = {"crop_size": 128, "batch_size": 2, "samples_per_epoch": 11, "num_workers": num_workers, "seed": 5}
    photos = SamplePhotos(val_max_size=[32, 32], **{**settings, **(data or {})})
    try:
        trainer.fit(module, photos, ckpt_path=ckpt_path, weights_only=False)
    except (KeyboardInterrupt, SystemExit):
        # Lightning turns the interrupt into a SystemExit, or hands it on.
        assert ckpt_path is None
    return module


# 11 samples in batches of 2 make 5 steps an epoch.
MOMENTS = {
    "mid-epoch": {"batch": 3},
    "first step of an epoch": {"batch": 6},
    "last step of an epoch": {"batch": 10},
    "epoch end": {"epoch": 1},
}

# Two optimizers: 40 counts of Lightning are 20 batches.
STEPS = {"max_steps": 40, "val_check_interval": 2}


LIMITS = {"epochs": {"max_epochs": 4}, "steps": STEPS}


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    """The uninterrupted run, to each limit."""
    found = {}
    for name, limits in LIMITS.items():
        torch.manual_seed(0)
        found[name] = fit(tmp_path_factory.mktemp("whole"), Recorder(), limits=limits)
    return found


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(
    ("limit", "num_workers"),
    [("epochs", 0), ("steps", 0), ("steps", 2), pytest.param("epochs", 2, marks=pytest.mark.slow)],
)
def test_resumed_run_sees_the_batches_of_the_uninterrupted_one(tmp_path, moment, num_workers, limit, wholes):
    limits, whole = LIMITS[limit], wholes[limit]
    assert len(whole.seen) == 20
    first = fit(
        tmp_path,
        Recorder(),
        [SaveAfter(tmp_path / "a.ckpt", **MOMENTS[moment])],
        limits=limits,
        num_workers=num_workers,
    )
    assert 0 < len(first.seen) < 20
    rest = fit(tmp_path, Recorder(), ckpt_path=tmp_path / "a.ckpt", limits=limits, num_workers=num_workers)
    assert [entry[2:] for entry in first.seen + rest.seen] == [entry[2:] for entry in whole.seen]
    assert torch.equal(rest.weight, whole.weight)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batch_during_which_the_run_broke_off_is_trained_again(tmp_path, num_workers):
    whole = fit(tmp_path, Recorder())
    first = fit(tmp_path, Recorder(fail_at=7), [SaveAfter(tmp_path / "a.ckpt", error=True)], num_workers=num_workers)
    rest = fit(tmp_path, Recorder(), ckpt_path=tmp_path / "a.ckpt", num_workers=num_workers)
    assert first.seen + rest.seen == whole.seen
    assert torch.equal(rest.weight, whole.weight)


def test_resumed_twice(tmp_path):
    whole = fit(tmp_path, Recorder())
    first = fit(tmp_path, Recorder(), [SaveAfter(tmp_path / "a.ckpt", batch=3)])

    class Again(SaveAfter):
        def save(self, trainer):
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True

    second = fit(tmp_path, Recorder(), [Again(tmp_path / "b.ckpt", batch=5)], ckpt_path=tmp_path / "a.ckpt")
    rest = fit(tmp_path, Recorder(), ckpt_path=tmp_path / "b.ckpt")
    assert [entry[2:] for entry in first.seen + second.seen + rest.seen] == [entry[2:] for entry in whole.seen]


def test_limited_epochs_go_on_with_the_stream(tmp_path):
    whole = fit(tmp_path, Recorder())
    limited = fit(tmp_path, Recorder(), limits={"max_epochs": 5, "limit_train_batches": 4})
    assert [entry[2:] for entry in limited.seen] == [entry[2:] for entry in whole.seen]


def test_other_seed_at_resume_is_told(tmp_path):
    fit(tmp_path, Recorder(), [SaveAfter(tmp_path / "a.ckpt", batch=3)])
    with pytest.warns(UserWarning, match="other training samples: seed was 5, is 6"):
        fit(tmp_path, Recorder(), ckpt_path=tmp_path / "a.ckpt", data={"seed": 6})

"""Which checkpoints `LastCheckpoint` writes at which steps."""

import signal
from types import SimpleNamespace

import pytest

from callbacks.checkpoint import LastCheckpoint


def test_checkpoints_are_kept_at_their_steps_also_where_a_signal_ends_the_run(tmp_path):
    saved = []
    loop = SimpleNamespace(epoch_loop=None)
    trainer = SimpleNamespace(fit_loop=loop, world_size=1, is_global_zero=True, global_step=0)
    trainer.save_checkpoint = lambda path, weights_only: saved.append(path.name)
    callback, system = LastCheckpoint(every_n_steps=3, keep_every_n_steps=2), SimpleNamespace()
    callback.folder = tmp_path

    def begin_step_after(updates):
        system.generator_step = updates
        callback.on_train_batch_start(trainer, system, None, 0)
        written = sorted(saved)
        saved.clear()
        return written

    callback._saved = 2  # a run that goes on from its checkpoint after two updates
    assert [begin_step_after(updates) for updates in range(2, 7)] == [
        [], ["last.ckpt"], ["step_0000004.ckpt"], [], ["last.ckpt", "step_0000006.ckpt"],
    ]  # fmt: skip
    callback._signal = signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        begin_step_after(8)
    assert sorted(saved) == ["last.ckpt", "step_0000008.ckpt"]

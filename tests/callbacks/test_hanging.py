"""A step that never ends, in the process itself: the first signal ends the run, in words, within a bounded time."""

import signal
import threading
import time
from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, Dataset

from aeic_lightning.errors import UserError
from callbacks.checkpoint import LastCheckpoint
from tests.callbacks.tiny_system import TinySystem, photo


class Hanging(Dataset):
    """The third image is never read, as on a network's disk that does not answer."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict:
        if index == 2:
            print("reading", flush=True)
            threading.Event().wait()
        return {"image": photo(64, 64), "name": str(index)}


def train(folder: Path, patience: float) -> None:
    """Run by the test below, in a process of its own."""
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, default_root_dir=folder, logger=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[LastCheckpoint(every_n_steps=1, patience=patience)],
    )  # fmt: skip
    trainer.fit(TinySystem(), DataLoader(Hanging(), batch_size=1))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_step_that_hangs(forked, tmp_path, number):
    log = tmp_path / "log.txt"
    process = forked.call("tests.callbacks.test_hanging:train", tmp_path, 0.5, output=log)
    while not log.exists() or "reading" not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(timeout=60) == 128 + number
    last = tmp_path / "checkpoints" / "last.ckpt"
    said = log.read_text().splitlines()[-1]
    assert said.startswith("error: no step has ended in 0.5 seconds since the signal")
    assert said.endswith(f"go on from {last}, which is of an earlier step")
    assert last.is_file()


def test_patience_is_a_time():
    with pytest.raises(UserError, match="patience is 0"):
        LastCheckpoint(patience=0)

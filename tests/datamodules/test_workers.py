"""Workers that cannot start, die or fall silent end a run in words."""

import os
import signal
import socket
import tempfile
import time

import numpy as np
import pytest

from aeic_lightning.errors import RunError, UserError
from datamodules import ImageDataModule
from datamodules.worker_signals import check_that_workers_can_start


class Images:
    """One image, which does something else before it is given."""

    def __init__(self, before) -> None:
        self.before, self.names = before, ["a"]

    def read(self, index):
        self.before()
        return np.zeros((128, 128, 3), np.uint8)

    def size(self, index):
        return 128, 128


class Data(ImageDataModule):
    def __init__(self, before, **kwargs) -> None:
        super().__init__(crop_size=128, batch_size=1, **kwargs)
        self.train_images = self.val_images = Images(before)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    time.sleep(1000)


def stop():
    os.kill(os.getpid(), signal.SIGSTOP)


@pytest.mark.parametrize("before", [die, hang, stop])
@pytest.mark.parametrize("loader", ["train_dataloader", "val_dataloader"])
def test_a_worker_that_dies_or_falls_silent_ends_the_run_in_words(before, loader):
    found = getattr(Data(before, num_workers=1, worker_timeout=1), loader)()
    with pytest.raises(RunError, match=r"gave no batch \(DataLoader .*num_workers=0") as caught:
        next(iter(found))
    assert "\n" not in str(caught.value)
    for worker in found._iterator._workers:
        worker.join()
        assert worker.exitcode == -signal.SIGKILL


def test_batches_come_within_the_time(monkeypatch):
    loader = Data(lambda: None, num_workers=1, worker_timeout=60).train_dataloader()
    assert loader.timeout == 60
    assert next(iter(loader))["image"].shape == (1, 3, 128, 128)
    assert Data(hang).train_dataloader().timeout == 0
    with pytest.raises(UserError, match="worker_timeout is 0"):
        Data(hang, worker_timeout=0)


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets")
def test_a_folder_that_takes_no_sockets_is_said_before_workers_start(tmp_path, monkeypatch):
    long = tmp_path / ("a" * 90)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    for name in ("train_dataloader", "val_dataloader"):
        with pytest.raises(UserError, match=r"num_workers.*AF_UNIX path too long.*TMPDIR"):
            getattr(Data(hang, num_workers=1), name)()
        getattr(Data(hang), name)()
    assert list(long.iterdir()) == []
    monkeypatch.setattr(tempfile, "tempdir", None)
    check_that_workers_can_start()

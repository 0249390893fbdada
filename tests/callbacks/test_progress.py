import io
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import ProgressBar
from tiny_system import TinySystem

from aeic_lightning.errors import UserError
from callbacks.progress import PlainProgress, clock, max_steps
from callbacks.quality import QualityMetrics


def test_lines_of_a_fit(system, trainer_of, train_loader, val_loader, capsys):
    trainer = trainer_of(PlainProgress(every_n_steps=3), QualityMetrics(lpips=[], dists=[]))
    assert len([c for c in trainer.callbacks if isinstance(c, ProgressBar)]) == 1  # Lightning's own stays away
    trainer.fit(system, train_loader, val_loader)
    out, err = capsys.readouterr()
    assert "step" not in out
    lines = [line for line in err.splitlines() if line.startswith("step")]
    steps = [line for line in lines if "steps/s" in line]
    pattern = r"step (\d)/6  loss [\d.]+  bpp_estimate 0\.03  [\d.e+]+ steps/s  ETA \d+:\d\d:\d\d"
    assert [re.fullmatch(pattern, line)[1] for line in steps] == ["3", "6"]
    assert steps[-1].endswith("ETA 0:00:00")
    assert [line.split(":")[0] for line in lines if "val/psnr" in line] == ["step 2", "step 4", "step 6"]
    assert err.count("validation 3/3") == 3
    assert "\r" not in err


def test_what_it_trains_on_and_how_long(trainer_of, monkeypatch, capsys):
    """The first step takes 100 s, the others 4: the first tells nothing about the rest."""
    seconds = [0.0]
    monkeypatch.setattr("callbacks.progress.time", SimpleNamespace(monotonic=lambda: seconds[0]))
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    trainer, system, progress = trainer_of(max_steps=50), TinySystem(max_generator_steps=40), PlainProgress()
    progress.on_train_start(trainer, system)
    for step in range(1, 13):
        seconds[0] += 100 if step == 1 else 4
        system.generator_step += 1
        progress.on_train_batch_end(trainer, system, None, None, step)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "run: 40 steps on the CPU, 3 threads, seed 7",
        "the 34 steps left take about 0:02:16, validations not counted",
    ]


def test_a_gpu_is_named(trainer_of, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: f"GPU number {device.index}")
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    trainer = SimpleNamespace(
        default_root_dir="run", global_step=0, strategy=SimpleNamespace(root_device=torch.device("cuda", 1))
    )
    PlainProgress().on_train_start(trainer, TinySystem(max_generator_steps=9))
    assert capsys.readouterr().err == "run: 9 steps on GPU number 1 (cuda:1)\n"


def test_lines_of_a_test(system, trainer_of, val_loader, capsys):
    trainer_of(PlainProgress(every_n_steps=1), QualityMetrics(lpips=[], dists=[])).test(
        system, val_loader, verbose=False
    )
    err = capsys.readouterr().err
    assert [line for line in err.splitlines() if line.startswith("test ")] == ["test 1/3", "test 2/3", "test 3/3"]
    assert "test/psnr" in err


def test_a_system_without_counters_and_tags(trainer_of, train_loader, val_loader, capsys):
    class Plain(TinySystem):
        def __init__(self):
            super().__init__()
            del self.generator_step, self.max_generator_steps

        def training_step(self, batch, batch_idx):
            return self.decoder(self.encoder(batch["image"])).square().mean()

    trainer_of(PlainProgress(every_n_steps=2), max_steps=4, max_epochs=-1).fit(Plain(), train_loader, val_loader)
    lines = [line.split("  ")[:1] for line in capsys.readouterr().err.splitlines() if "steps/s" in line]
    assert lines == [["step 2/4"], ["step 4/4"]]


def test_the_last_step_is_the_generators(trainer_of):
    trainer = trainer_of(max_steps=40)
    assert max_steps(trainer, TinySystem(max_generator_steps=20)) == 20
    assert max_steps(trainer, TinySystem(max_generator_steps=None)) == 40
    assert max_steps(trainer_of(max_steps=-1), TinySystem(max_generator_steps=None)) is None


def test_other_ranks_are_silent(capsys):
    progress = PlainProgress()
    progress.disable()
    progress.print("a line")
    progress.enable()
    progress.print("another")
    assert capsys.readouterr().err == "another\n"


def test_clock():
    assert clock(0.4) == "0:00:00"
    assert clock(59.6) == "0:01:00"
    assert clock(36 * 3600 + 62) == "36:01:02"


def test_options_out_of_range():
    with pytest.raises(UserError, match="every_n_steps"):
        PlainProgress(every_n_steps=0)


def test_a_bar_on_a_terminal(system, trainer_of, train_loader, val_loader, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    trainer_of(PlainProgress(every_n_steps=3), QualityMetrics(lpips=[], dists=[])).fit(system, train_loader, val_loader)
    said = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", terminal.getvalue())
    assert re.search(r"6/6 +loss [\d.]+  bpp_estimate 0\.03  [\d.e+]+ steps/s  ETA 0:00:00", said)
    assert said.count("val/psnr") == 3, "lines of validations stand above the bar"
    assert "step 3/6" not in said
    assert "validation 3/3" not in said
